"""`/instances/NAME`: who it is, what its pool is made of, with whom it shares, what happened, and
its settings."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from fastapi import Request
from nicegui import background_tasks, ui

from lmkv.core.client import Unreachable
from lmkv.core.config import as_text
from lmkv.core.messages import ConfigResult, InstanceState, Pins
from lmkv.core.metrics import GRANULE_STATES
from lmkv.core.tokens import OPERATE
from lmkv.web.errors import Problem
from lmkv.web.pages import commands
from lmkv.web.pages.acts import ON_INSTANCE
from lmkv.web.pages.dialog import Doing, Target
from lmkv.web.pages.frame import live
from lmkv.web.pages.instances import retired_at, state_html
from lmkv.web.pages.overview import events_html
from lmkv.web.pages.pins import pins_html
from lmkv.web.pages.text import NONE, age, count, escape, instance_link, percent, size, table

if TYPE_CHECKING:
    from lmkv.web.pages.site import Site

EVENTS = 20
PINS = 20
COLOURS = dict(
    zip(GRANULE_STATES, ("transparent", "#e0a13c", "#2aa198", "#9b7fd4", "#8d8d8d", "#d9534f"))
)


def page(site: Site) -> None:
    @ui.page("/instances/{name:path}")
    async def instance(request: Request, name: str) -> None:
        with site.frame(request, name) as frame:
            live(f"<h1>{escape(name)}</h1>").classes("bare")
            doing = Doing(site, frame, request)
            if frame.may(OPERATE):
                doing.bar(ON_INSTANCE, Target.whole(name))
            line = shlex.join(["lmkv", "describe", "instance", name])
            live(commands.line_html(line))
            with ui.element("div").classes("split"):
                with ui.element("section").classes("panel"):
                    live("<h2>Pool</h2>")
                    pool = live()
                with ui.element("section").classes("panel"):
                    live("<h2>Identity</h2>")
                    identity = live()
            with ui.element("div").classes("split"):
                with ui.element("section").classes("panel"):
                    live("<h2>Tokens by cause, since it registered</h2>")
                    causes = live()
                with ui.element("section").classes("panel"):
                    live("<h2>Sharing</h2>")
                    sharing = live()
            with ui.element("section").classes("panel"):
                live("<h2>Its pins</h2>")
                pins = live()
            with ui.element("section").classes("panel"):
                live("<h2>Its events</h2>")
                events = live()

            with ui.element("section").classes("panel"):
                live("<h2>Its settings, and who set them</h2>")
                settings = live()
            told = _Settings(site, name, settings)

            async def refresh() -> None:
                found = await site.view.instance(name)
                pool.content, identity.content = pool_html(found), identity_html(found)
                causes.content, sharing.content = causes_html(found), sharing_html(found)
                events.content = events_html(site.hub.recent(EVENTS, name), named=False)
                held = Pins(instance=name, limit=PINS)
                pins.content = pins_html(await site.view.pins(held), held, may=False)
                told.of(found.epoch)

            await frame.keep(refresh)


class _Settings:
    """Asked for once a life of the instance: they do not change in it. That takes as long as it
    takes, and holds up nothing else."""

    def __init__(self, site: Site, name: str, shown: ui.html) -> None:
        self._site, self._name, self._shown = site, name, shown
        self._epoch = 0

    def of(self, epoch: int) -> None:
        if epoch != self._epoch:
            self._epoch = epoch
            background_tasks.create(self._ask())

    async def _ask(self) -> None:
        try:
            html = settings_html(await self._site.view.settings(self._name))
        except Problem as problem:
            html = f"<p>{escape(problem.message)}</p>"
        except Unreachable:
            self._epoch = 0  # asked again when the page is
            return
        self._shown.content = html


def pool_html(found: InstanceState) -> str:
    pool = found.pool_granules
    held = sum(pool.values())
    if not held:
        return "<p>No heartbeat has told of its pool yet.</p>"
    parts = "".join(
        f'<i style="width:{100 * pool.get(state, 0) / held:.2f}%;background:{colour}"></i>'
        for state, colour in COLOURS.items()
    )
    rows = [
        [
            _key(state),
            f"{granules:,}",
            percent(granules, held),
        ]
        for state, granules in sorted(pool.items(), key=lambda each: -each[1])
    ]
    heads = [("State", "w"), ("Granules", "n"), ("Of the pool", "n")]
    made = table(heads, rows, "", "The pool by the state of its granules")
    return f'<div class="pool" aria-hidden="true">{parts}</div>{made}'


def _key(state: str) -> str:
    colour = COLOURS.get(state, "#8888")
    return f'<span class="key"><i style="--c:{colour}"></i>{escape(state)}</span>'


def identity_html(found: InstanceState) -> str:
    facts = {
        "State": state_html(found.state),
        "Model": escape(found.model or NONE),
        "Version": escape(found.version or NONE),
        "Ranks": str(found.ranks),
        "Data-parallel rank": str(found.dp_rank),
        "Serves at": escape(found.serving_url or NONE),
        "Epoch": f"{found.epoch:016x}",
        "Heard": f"{age(found.heartbeat_age)} ago",
        "Chunks": f"{found.keys:,}",
        "Slots retired at": retired_at(found),
        "Pulled in 5 min": f"{size(found.bytes_in)} in, {size(found.bytes_out)} out",
        "Requests": f"{found.running} running, {found.waiting} waiting",
        "Load": f"{found.load:.2f} (1 is sixteen requests)",
    }
    return (
        "<dl>"
        + "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in facts.items())
        + "</dl>"
    )


def causes_html(found: InstanceState) -> str:
    told = {**found.hit_tokens, **found.miss_tokens}
    total = sum(told.values())
    rows = [
        [escape(cause.replace("_", " ")), count(tokens), percent(tokens, total)]
        for cause, tokens in sorted(told.items(), key=lambda each: -each[1])
        if tokens
    ]
    heads = [("Cause", "w"), ("Tokens", "n"), ("Of all", "n")]
    return table(heads, rows, "No request has ended yet.", "Tokens by cause")


def settings_html(found: ConfigResult) -> str:
    """What was set by somebody stands first."""
    rows = [
        [
            escape(each.name),
            f"<code>{escape(as_text(each.name, each.value))}</code>"
            + (f" <small>{escape(each.used)}</small>" if each.used else ""),
            escape(each.origin),
        ]
        for each in sorted(found.settings, key=lambda each: each.origin == "default")
    ]
    heads = [("Setting", "w"), ("Value", "rest"), ("From", "w")]
    return table(heads, rows, "It tells none.", "Settings of the instance, and their origin")


def sharing_html(found: InstanceState) -> str:
    if found.state == "dead":
        return "<p>It is dead: nothing of it is handed out.</p>"
    pulls = "Peers can pull from it." if found.pullable else "Peers on its host only read from it."
    if found.differs:
        other = instance_link(found.differs_from)
        text = f"It differs from {other} in <b>{escape(found.differs)}</b>: neither has what the "
        return f"<p>{text}other could use.</p><p>{pulls}</p>"
    text = "It shares with the first instance of its model, and all that are like that one."
    return f"<p>{text}</p><p>{pulls}</p>"
