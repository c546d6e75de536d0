"""`/`: is all well, what is saved, what came from peers, what happened last."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import Request
from nicegui import ui

from lmkv.core.client import Unreachable
from lmkv.core.messages import Event
from lmkv.web.pages import charts
from lmkv.web.pages.alarms import alarms
from lmkv.web.pages.frame import live
from lmkv.web.pages.text import (
    age,
    count,
    escape,
    instance_link,
    job_link,
    percent,
    size,
    table,
)
from lmkv.web.pages.watch import BIN, Watch

if TYPE_CHECKING:
    from lmkv.web.pages.site import Site

EVENTS = 12


def page(site: Site) -> None:
    @ui.page("/")
    async def overview(request: Request) -> None:
        with site.frame(request, "Overview") as frame:
            live('<h1 class="unseen">Overview</h1>').classes("bare")
            bar, figures = live(), live()
            with ui.element("section").classes("panel"):
                live(
                    "<h2>Prompt tokens per second, by where they came from or why they missed</h2>"
                )
                causes = chart(230)
            with ui.element("div").classes("split"):
                with ui.element("section").classes("panel"):
                    live("<h2>Last events</h2>")
                    events = live()
                with ui.element("section").classes("panel"):
                    live("<h2>Bytes from peers per second</h2>")
                    pulled = chart(220)

            drawn = -1

            async def refresh() -> None:
                nonlocal drawn
                watch = site.watch
                if watch.status is None:
                    await watch.look()
                bar.content, figures.content = bar_html(watch), figures_html(watch)
                events.content = events_html(site.hub.recent(EVENTS))
                newest = watch.samples[-1].number // BIN if watch.samples else 0
                if newest != drawn:
                    drawn, points = newest, watch.points()
                    show(causes, charts.causes(points))
                    show(pulled, charts.pulled(points))
                if watch.trouble:
                    raise Unreachable(watch.trouble)

            await frame.keep(refresh)


def chart(height: int) -> ui.echart:
    made = ui.echart({"series": []}, renderer="svg")
    return made.style(f"height:{height}px; width:100%")


def show(shown: ui.echart, options: dict[str, object]) -> None:
    shown.options.clear()
    shown.options.update(options)
    shown.update()


def bar_html(watch: Watch) -> str:
    found = alarms(watch)
    if not found:
        return '<div class="bar">No drift, no digest mismatch, one version, all compatible.</div>'
    return f'<div class="bar bad" role="alert">{"<br>".join(map(escape, found))}</div>'


def figures_html(watch: Watch) -> str:
    info, now = watch.status, watch.now()
    states = info.states if info else {}
    saved = now.saved if now else 0.0
    computed = sum(now.tokens.values()) - saved if now else 0.0
    pool = info.pool_granules if info else {}
    held = sum(pool.values())
    figures = [
        ("Live", count(states.get("live", 0)), f"{states.get('syncing', 0)} syncing"),
        ("Suspect", count(states.get("suspect", 0)), "not handed out"),
        ("Dead", count(states.get("dead", 0)), "forgotten"),
        ("Saved, tokens/s", count(saved), f"{count(computed)}/s computed"),
        ("Hit rate", percent(saved, saved + computed), f"of the last {BIN} s"),
        ("From peers, /s", size(now.peer_bytes if now else 0), "pulled or mapped"),
        ("Chunks", count(info.keys if info else 0), "in the directory"),
        ("Pools filled", percent(held - pool.get("free", 0), held), "of all instances"),
    ]
    cells = "".join(
        f'<div class="figure"><span>{name}</span><b>{value}</b><small>{small}</small></div>'
        for name, value, small in figures
    )
    return f'<div class="figures">{cells}</div>'


def events_html(events: list[tuple[Event, float]], named: bool = True) -> str:
    heads = [("Ago", "n"), ("What", "w"), *([("Instance", "w")] if named else []), ("", "rest")]
    rows = [
        [
            age(old),
            escape(event.kind),
            *([instance_link(event.instance)] if named else []),
            escape(event.text) + (f" {job_link(event.job)}" if event.job else ""),
        ]
        for event, old in events
    ]
    return table(heads, rows, "Nothing has happened yet.", "The last events, newest first")
