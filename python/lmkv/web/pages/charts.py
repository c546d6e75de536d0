"""Options of ECharts. Text has its colour, light or dark, from the page's style (style.py)."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

from lmkv.core.causes import CAUSES, HIT_CAUSES
from lmkv.core.messages import FlowInfo
from lmkv.web.pages.watch import Point

LINKS = 40  # pairs that a picture of flows shows
# Hits are cold colours, misses warm ones; the commonest are told apart best.
HIT_COLOURS = ("#4f8fd9", "#2aa198", "#6fbf73", "#9b7fd4")
MISS_COLOURS = (
    "#e0a13c", "#b9a88f", "#c7603f", "#a8763e", "#d16ba5", "#8d8d8d", "#e07b5a", "#c9b037",
    "#d9534f", "#992f2f", "#ff3b30", "#a0522d", "#cfcf6a", "#6f6a60",
)  # fmt: skip
COLOURS = dict(zip(CAUSES, HIT_COLOURS + MISS_COLOURS))
LINE = "#8886"
FONT = "system-ui, Segoe UI, DejaVu Sans, sans-serif"  # as style.py has it
SHORT = "(v => v >= 1e9 ? v/1e9+'G' : v >= 1e6 ? v/1e6+'M' : v >= 1e3 ? v/1e3+'k' : v)"
BYTES = (
    "(v => { const u = ['B','KiB','MiB','GiB','TiB']; let i = 0;"
    " while (v >= 1000 && i < 4) { v /= 1024; i++; }"
    " return (v >= 100 || !i ? v.toFixed(0) : v.toFixed(1)) + ' ' + u[i]; })"
)
ROUND = "(v => Math.round(v).toLocaleString('en'))"
TOOLTIP = {
    "backgroundColor": "var(--panel)", "borderColor": "var(--line)", "confine": True,
    "textStyle": {"color": "var(--ink)", "fontSize": 12},
}  # fmt: skip


def _base(axis: str, value: str) -> dict[str, Any]:
    return {
        "animation": False,
        "textStyle": {"fontFamily": FONT},
        "grid": {"left": 64, "right": 16, "top": 16, "bottom": 28},
        "tooltip": {"trigger": "axis", ":valueFormatter": value, **TOOLTIP},
        "xAxis": {
            "type": "value", "min": -300, "max": 0, "interval": 60,
            "axisLabel": {":formatter": "(v => v ? v/60 + ' min' : 'now')"},
            "axisLine": {"lineStyle": {"color": LINE}}, "splitLine": {"show": False},
            "axisPointer": {"label": {"show": False}},
        },
        "yAxis": {
            "type": "value", "min": 0, "minInterval": 1, "splitNumber": 3,
            "axisLine": {"show": False}, "axisTick": {"show": False},
            "axisLabel": {":formatter": axis},
            "splitLine": {"lineStyle": {"color": "#8883"}},
        },
    }  # fmt: skip


def causes(points: Sequence[Point]) -> dict[str, Any]:
    """Tokens per second by cause, stacked: hits below, misses above them."""
    seen = [cause for cause in CAUSES if any(point.tokens.get(cause) for point in points)]
    shown = seen or list(HIT_CAUSES)
    options = _base(SHORT, ROUND)
    options["grid"]["top"] = 40
    options["legend"] = {
        "top": 0,
        "left": 56,
        "type": "scroll",
        "icon": "rect",
        "itemHeight": 8,
        "itemGap": 16,
    }
    options["series"] = [
        {
            "name": cause.replace("_", " "), "type": "line", "stack": "tokens", "symbol": "none",
            "color": COLOURS[cause], "lineStyle": {"width": 0}, "areaStyle": {"opacity": 0.85},
            "data": [[-round(p.age), round(p.tokens.get(cause, 0.0), 1)] for p in points],
        }
        for cause in shown
    ]  # fmt: skip
    return options


def pulled(points: Sequence[Point]) -> dict[str, Any]:
    options = _base(BYTES, BYTES)
    most = max((point.peer_bytes for point in points), default=0.0)
    between = step(most)
    options["yAxis"] |= {"interval": between, "max": between * max(1, ceil(most / between))}
    options["series"] = [
        {
            "name": "from peers per second", "type": "line", "symbol": "none", "color": "#2aa198",
            "areaStyle": {"opacity": 0.25},
            "data": [[-round(p.age), round(p.peer_bytes)] for p in points],
        }
    ]  # fmt: skip
    return options


def step(most: float) -> float:
    """Between two lines of an axis of bytes: a round figure, four of which are enough."""
    unit = 1.0
    while most >= 1000 * unit:
        unit *= 1024
    return next(unit * n for n in (1, 2, 5, 10, 20, 50, 100, 200, 250) if 4 * unit * n >= most)


def flow(info: FlowInfo) -> dict[str, Any]:
    """From holders on the left to those that they gave to on the right. A name that is on both
    sides is two nodes: bytes go round in circles, and this picture must not."""
    pairs = info.flows[:LINKS]
    sources = dict.fromkeys(pair.source for pair in pairs)
    targets = dict.fromkeys(pair.target for pair in pairs)
    nodes = [{"name": name, "depth": 0} for name in sources]
    right = {"position": "left"}
    nodes += [{"name": _right(name), "depth": 1, "label": right} for name in targets]
    return {
        "animation": False,
        "textStyle": {"fontFamily": FONT},
        "tooltip": {":valueFormatter": BYTES, **TOOLTIP},
        "series": [
            {
                "type": "sankey", "left": 8, "right": 8, "top": 8, "bottom": 8, "nodeGap": 12,
                "draggable": False, "layoutIterations": 0, "emphasis": {"focus": "adjacency"},
                "lineStyle": {"color": "source", "opacity": 0.35},
                "data": nodes,
                "links": [
                    {"source": p.source, "target": _right(p.target), "value": p.bytes}
                    for p in pairs
                ],
            }
        ],
    }  # fmt: skip


def _right(name: str) -> str:
    return name + "\u200b"
