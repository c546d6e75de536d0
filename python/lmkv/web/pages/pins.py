"""`/pins?instance=&after=`: what is kept, where, for whom and how long."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fastapi import Request
from nicegui import ui

from lmkv.core.messages import Pins, PinsInfo, PinState, Submit
from lmkv.core.tokens import OPERATE
from lmkv.web.pages.acts import ACTS
from lmkv.web.pages.dialog import Doing, Target
from lmkv.web.pages.frame import live
from lmkv.web.pages.text import (
    act_button,
    age,
    escape,
    instance_link,
    job_link,
    link,
    size,
    table,
)

if TYPE_CHECKING:
    from lmkv.web.pages.site import Site

PAGE = 50


def page(site: Site) -> None:
    @ui.page("/pins")
    async def pins(request: Request, instance: str = "", after: str = "") -> None:
        question = Pins(instance=instance[:256], after=after[:512], limit=PAGE)
        with site.frame(request, "Pins") as frame:
            live("<h1>Pins</h1>" + _form(question)).classes("bare")
            with ui.element("section").classes("panel"):
                shown = live()
            doing = Doing(site, frame, request)

            async def act(told: Mapping[str, str]) -> None:
                await doing.open(ACTS["unpin"], unpinned(told))

            frame.acted(act)

            async def refresh() -> None:
                info = await site.view.pins(question)
                shown.content = pins_html(info, question, frame.may(OPERATE))

            await frame.keep(refresh)


def unpinned(told: Mapping[str, str]) -> Target:
    """The pins of an owner at an instance, or all that there are."""
    instance, owner = told.get("instance", ""), told.get("owner", "")
    whose = f"what {owner} has pinned at {instance}" if owner else f"all pins of {instance}"
    return Target(Submit(0, "", instance=instance, owner=owner, whole=True), says=whose)


def _form(question: Pins) -> str:
    return (
        '<form class="find" method="get" action="/pins" role="search">'
        '<label for="instance" class="unseen">Instance</label>'
        f'<input id="instance" name="instance" value="{escape(question.instance)}" '
        'maxlength="256" placeholder="an instance"><button class="plain">Filter</button></form>'
    )


def pins_html(info: PinsInfo, question: Pins, may: bool) -> str:
    rows = [_row(each, may) for each in info.pins]
    heads = [
        ("Instance", "w"), ("Pin", "w"), ("Owner", "w"), ("Ends in", "n"), ("Chunks", "n"),
        ("Bytes", "n"), ("First chunk", "rest"), ("", "w"),
    ]  # fmt: skip
    around = [f"{info.total:,} pins"]
    if question.after:
        around.append(link("/pins", "First", instance=question.instance))
    if info.next:
        around.append(link("/pins", "Next", instance=question.instance, after=info.next))
    return (
        table(heads, rows, "Nothing is pinned.", "Pins by instance")
        + f'<nav class="pager" aria-label="Pages">{" ".join(around)}</nav>'
    )


def _row(each: PinState, may: bool) -> list[str]:
    return [
        instance_link(each.instance),
        job_link(each.id),
        escape(each.owner or "nobody"),
        age(each.left) if each.left else "when it is unpinned",
        f"{each.chunks:,}",
        size(each.bytes),
        f"<code>{escape(each.first[:16])}…</code>",
        act_button(
            "Unpin", f"Unpin {each.owner} at {each.instance}", instance=each.instance,
            owner=each.owner,
        ) if may else "",
    ]  # fmt: skip
