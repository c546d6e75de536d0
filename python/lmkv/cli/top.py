"""`lmkv top`: the cluster as it changes.

Tokens a second are differences of two answers, over the time that the controller counted between
them. Without a terminal each look is printed below the last one.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from lmkv.cli.common import (
    DEFAULT_CONTROLLER,
    UNREACHABLE,
    ControllerOption,
    OutputOption,
    Trouble,
    ask,
    check_output,
    ending,
    plain,
    print_json,
    question,
    say,
)

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from lmkv.core.messages import InstanceState, StatusInfo

PAUSE = 1.0  # seconds after a question that nobody answered
LINES = 7  # of the screen that are not instances


class Rates(NamedTuple):
    """Tokens a second, `None` before there are two looks."""

    hit: float | None
    miss: float | None
    hits: dict[str, float]  # by cause
    misses: dict[str, float]
    instances: dict[str, float]  # hits, by instance


def rates(before: StatusInfo | None, now: StatusInfo) -> Rates:
    """Of another life of the controller nothing can be said."""
    if before is None or before.epoch != now.epoch or now.uptime <= before.uptime:
        return Rates(None, None, {}, {}, {})
    seconds = now.uptime - before.uptime
    hits = _grown(before.hit_tokens, now.hit_tokens, seconds)
    misses = _grown(before.miss_tokens, now.miss_tokens, seconds)
    past = {(each.instance, each.epoch): _hits(each) for each in before.instances}
    each_ones = {
        each.instance: (_hits(each) - past.get((each.instance, each.epoch), 0)) / seconds
        for each in now.instances
    }
    return Rates(sum(hits.values()), sum(misses.values()), hits, misses, each_ones)


def _grown(before: dict[str, int], now: dict[str, int], seconds: float) -> dict[str, float]:
    grown = {name: (n - before.get(name, 0)) / seconds for name, n in now.items()}
    return {name: n for name, n in grown.items() if n > 0}


def _hits(instance: InstanceState) -> int:
    return sum(instance.hit_tokens.values())


def top(
    controller: ControllerOption = DEFAULT_CONTROLLER,
    output: OutputOption = "table",
    interval: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, max=3600, help="Between two looks.")
    ] = 2.0,
    count: Annotated[
        int, typer.Option("-n", "--count", metavar="N", min=0, help="Looks; 0: until ctrl-C.")
    ] = 0,
) -> None:
    """Instances and tokens a second, live, until ctrl-C; with -o json a line each time."""
    from lmkv.cli.tables import console
    from lmkv.core.messages import Status, StatusInfo

    check_output(output)
    first = ask(controller, Status(1), StatusInfo)
    if output == "json":
        shown: Any = _Lines()
    else:
        out = console()
        shown = _Screen(out) if out.is_terminal else _Pages(out)
    try:
        with ending(), shown:
            _look(controller, first, shown, interval, count)
    except KeyboardInterrupt:
        pass


def _look(controller: str, now: StatusInfo, shown: Any, interval: float, count: int) -> None:
    before: StatusInfo | None = None
    looks = 0
    while True:
        shown.show(now, rates(before, now), "")
        looks += 1
        if looks == count:
            return
        time.sleep(interval)
        before, now = now, _again(controller, now, shown)


def _again(controller: str, last: StatusInfo, shown: Any) -> StatusInfo:
    """The next answer, however long that takes; what failed meanwhile is shown."""
    from lmkv.core.messages import Status, StatusInfo

    while True:
        try:
            return question(controller, Status(1), StatusInfo)
        except Trouble as trouble:
            if trouble.status != UNREACHABLE:
                raise
            shown.show(last, rates(None, last), str(trouble))
        time.sleep(PAUSE)


class _Lines:
    """JSON, a line each."""

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def show(self, info: StatusInfo, found: Rates, trouble: str) -> None:
        if trouble:
            say(trouble)
            return
        print_json({**plain(info), "rates": found._asdict()}, indent=None)


class _Pages(_Lines):
    """One page after the other."""

    def __init__(self, out: Console) -> None:
        self._out = out

    def show(self, info: StatusInfo, found: Rates, trouble: str) -> None:
        if trouble:
            say(trouble)
            return
        self._out.print(page(info, found, "", len(info.instances), self._out.width))
        self._out.print()


class _Screen:
    """The terminal's other page, drawn anew each time."""

    def __init__(self, out: Console) -> None:
        from rich.live import Live

        self._out = out
        self._live = Live(console=out, screen=True, auto_refresh=False)

    def __enter__(self) -> None:
        self._live.start()

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, info: StatusInfo, found: Rates, trouble: str) -> None:
        room = max(1, self._out.height - LINES)
        self._live.update(page(info, found, trouble, room, self._out.width), refresh=True)


def page(info: StatusInfo, found: Rates, trouble: str, room: int, width: int) -> RenderableType:
    """At most `room` instances: those with the most hits a second first, then by name."""
    from rich.console import Group
    from rich.text import Text

    from lmkv.cli import tables

    head = [Text(line, no_wrap=True, overflow="ellipsis") for line in tables.heading(info)]
    if trouble:
        head.insert(0, Text(trouble, style="bold red", no_wrap=True, overflow="ellipsis"))
    for word, rate, by in (("hit", found.hit, found.hits), ("missed", found.miss, found.misses)):
        told = "-" if rate is None else f"{rate:,.0f} tokens/s"
        whole = {name: round(n) for name, n in by.items()}
        head.append(
            Text(f"{word:<7}{told}{tables.causes(whole)}", no_wrap=True, overflow="ellipsis")
        )
    order = sorted(
        info.instances, key=lambda each: (-found.instances.get(each.instance, 0), each.instance)
    )
    rows = [
        [*tables.instance_row(each)[:-1], _rate(found.instances.get(each.instance))]
        for each in order[:room]
    ]
    columns = (*tables.INSTANCE_COLUMNS[:-1], ">hit tokens/s")
    parts: list[RenderableType] = [*head]
    parts.append(tables.table(columns, rows, width) if rows else Text("no instances"))
    if len(order) > room:
        parts.append(Text(f"and {len(order) - room} more"))
    return Group(*parts)


def _rate(found: float | None) -> str:
    return "-" if found is None else f"{found:,.0f}"
