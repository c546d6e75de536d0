"""`/flow?seconds=`: bytes from instance to instance, of the last minutes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import Request
from nicegui import ui

from lmkv.core.messages import FlowInfo
from lmkv.web.pages import charts
from lmkv.web.pages.frame import live
from lmkv.web.pages.overview import chart, show
from lmkv.web.pages.text import instance_link, percent, size, table

if TYPE_CHECKING:
    from lmkv.web.pages.site import Site

WINDOWS = {"10": "10 s", "60": "1 min", "300": "5 min"}
PAIRS = 100
HEIGHT = 380


def page(site: Site) -> None:
    @ui.page("/flow")
    async def flow(request: Request, seconds: str = "300") -> None:
        window = seconds if seconds in WINDOWS else "300"
        with site.frame(request, "Flow") as frame:
            live(f"<h1>Bytes from instance to instance</h1>{_windows(window)}").classes("bare")
            with ui.element("section").classes("panel"):
                drawing = chart(HEIGHT)
                empty = live()
            with ui.element("section").classes("panel"):
                shown = live()
            drawn: list[object] = []

            async def refresh() -> None:
                nonlocal drawn
                info = await site.view.flow(float(window), PAIRS)
                drawing.set_visibility(bool(info.flows))
                empty.content = "" if info.flows else _nothing()
                if info.flows and drawn != info.flows:
                    drawn = [*info.flows]
                    show(drawing, charts.flow(info))
                shown.content = flow_html(info)

            await frame.keep(refresh)


def _windows(window: str) -> str:
    links = [
        f'<a href="/flow?seconds={seconds}"{" aria-current=true" * (seconds == window)}>{name}</a>'
        for seconds, name in WINDOWS.items()
    ]
    return f'<nav class="find" aria-label="Time looked back">Last {" · ".join(links)}</nav>'


def _nothing() -> str:
    text = "Nothing came from a peer in this time."
    return f'<div style="height:{HEIGHT}px;display:grid;place-items:center">{text}</div>'


def flow_html(info: FlowInfo) -> str:
    rows = [
        [
            instance_link(pair.source),
            instance_link(pair.target),
            size(pair.bytes),
            f"{size(pair.bytes / max(info.seconds, 1.0))}/s",
            percent(pair.bytes, info.bytes),
        ]
        for pair in info.flows
    ]
    heads = [
        ("From", "w"), ("To", "w"), ("Bytes", "n"), ("On average", "n"), ("Of all", "n"),
    ]  # fmt: skip
    more = info.pairs - len(info.flows)
    rest = f"<p>{more} more pairs are not listed.</p>" if more > 0 else ""
    head = f"<h2>{size(info.bytes)} in {info.seconds:.0f} s, pulled or mapped</h2>"
    return head + table(heads, rows, "No pairs.", "Pairs of instances by bytes") + rest
