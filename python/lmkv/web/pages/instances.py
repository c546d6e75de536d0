"""`/instances?sort=&desc=&page=&filter=`: all of them, in any order, a page at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fastapi import Request
from nicegui import ui

from lmkv.core.messages import INSTANCE_SORTS, Instances, InstancesInfo, InstanceState
from lmkv.core.tokens import ADMIN
from lmkv.web.pages.dialog import Doing, Target
from lmkv.web.pages.frame import live
from lmkv.web.pages.text import (
    NONE,
    act_button,
    age,
    count,
    escape,
    instance_link,
    link,
    percent,
    size,
    table,
)

if TYPE_CHECKING:
    from lmkv.web.pages.site import Site

PAGE = 25
MOST_PAGES = 10_000
HEADS = {
    "instance": ("Instance", "w"),
    "state": ("State", "w"),
    "model": ("Model", "w"),
    "fill": ("Pool filled", "n"),
    "retired_age": ("Retired at", "n"),
    "pinned": ("Pinned", "n"),
    "limbo": ("Limbo", "n"),
    "bytes_in": ("Pulled in", "n"),
    "bytes_out": ("Pulled out", "n"),
    "hit_tokens": ("Hit", "n"),
    "miss_tokens": ("Missed", "n"),
    "load": ("Load", "n"),
    "heartbeat_age": ("Heard", "n"),
    "version": ("Version", "w"),
}
LEGEND = (
    "Retired at: median age of slots as they were retired for room. Pinned, limbo: granules. "
    "Pulled: bytes of the last 5 minutes, also by mapping. Hit, missed: tokens since it "
    "registered. Heard: ago."
)


def page(site: Site) -> None:
    @ui.page("/instances")
    async def instances(
        request: Request,
        sort: str = "instance",
        desc: str = "",
        page: str = "1",
        filter: str = "",  # noqa: A002
    ) -> None:
        sort = sort if sort in INSTANCE_SORTS else "instance"
        number = int(page) if page.isascii() and page.isdigit() and len(page) < 6 else 1
        number = min(max(1, number), MOST_PAGES)
        text = filter[:256]
        question = Instances(
            sort=sort, descending=bool(desc), filter=text, limit=PAGE, offset=(number - 1) * PAGE
        )
        with site.frame(request, "Instances") as frame:
            live("<h1>Instances</h1>" + _form(text, sort, desc)).classes("bare")
            with ui.element("section").classes("panel"):
                shown = live()
            doing = Doing(site, frame, request)
            if frame.may(ADMIN):
                doing.bar(("clear",), Target.whole(), "Clear the cluster")

            async def act(told: Mapping[str, str]) -> None:
                doing.choose(told.get("instance", ""))

            frame.acted(act)

            async def refresh() -> None:
                info = await site.view.instances(question)
                shown.content = instances_html(info, question, number)

            await frame.keep(refresh)


def _form(text: str, sort: str, desc: str) -> str:
    return (
        '<form class="find" method="get" action="/instances" role="search">'
        f'<input type="hidden" name="sort" value="{escape(sort)}">'
        f'<input type="hidden" name="desc" value="{escape(desc)}">'
        '<label for="filter" class="unseen">Filter</label>'
        f'<input id="filter" name="filter" value="{escape(text)}" maxlength="256" '
        'placeholder="a part of name, model or version, or a state">'
        '<button class="plain">Filter</button></form>'
    )


def instances_html(info: InstancesInfo, question: Instances, number: int) -> str:
    rows = [_row(each) for each in info.instances]
    empty = "No instance is like that." if question.filter else "No instance has registered yet."
    heads = [(_head(sort, question), kind) for sort, (_, kind) in HEADS.items()]
    heads.append(('<span class="unseen">Do</span>', "w"))
    pages = max(1, -(-info.total // PAGE))
    around = [
        _place("Previous", min(number - 1, pages), question) if number > 1 else "",
        f"Page {number} of {pages} · {info.total} instances",
        _place("Next", number + 1, question) if number < pages else "",
    ]
    caption = "Instances; the heads of the columns sort them"
    return (
        table(heads, rows, empty, caption)
        + f"<p><small>{LEGEND}</small></p>"
        + f'<nav class="pager" aria-label="Pages">{" ".join(filter(None, around))}</nav>'
    )


def _head(sort: str, question: Instances) -> str:
    name = HEADS[sort][0]
    here = sort == question.sort
    arrow = (" ▼" if question.descending else " ▲") if here else ""
    # Figures are first asked for by their greatest.
    down = not question.descending if here else HEADS[sort][1] == "n"
    return link(
        "/instances", name + arrow, sort=sort, desc="1" if down else "", filter=question.filter
    )


def _place(text: str, number: int, question: Instances) -> str:
    desc = "1" if question.descending else ""
    return link(
        "/instances", text, sort=question.sort, desc=desc, page=number, filter=question.filter
    )


def state_html(state: str) -> str:
    return f'<span class="state {escape(state)}">{escape(state)}</span>'


def retired_at(each: InstanceState) -> str:
    """The median age; it is known from above."""
    return f"≤ {age(each.retired_age)}" if each.retired_age else NONE


def _row(each: InstanceState) -> list[str]:
    pool = each.pool_granules
    held = sum(pool.values())
    return [
        instance_link(each.instance),
        state_html(each.state),
        escape(each.model),
        percent(held - pool.get("free", 0), held),
        retired_at(each),
        count(pool.get("pinned", 0)),
        count(pool.get("limbo", 0)),
        size(each.bytes_in),
        size(each.bytes_out),
        count(sum(each.hit_tokens.values())),
        count(sum(each.miss_tokens.values())),
        f"{each.load:.2f}",
        age(each.heartbeat_age),
        escape(each.version),
        act_button("⋯", f"Do with {each.instance}", instance=each.instance),
    ]
