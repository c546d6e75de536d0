"""The CLI's answers as tables for people.

Names come from the network: they are never read as rich's markup, and what in them is not printable
is `?`. Into a pipe a line is as long as it must be, so that nothing a script reads is cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lmkv.core.messages import (
    ENDED,
    STATES,
    ControllerState,
    InstanceState,
    LookupInfo,
    Prefix,
    StatusInfo,
)
from lmkv.core.text import printable

PIPE_WIDTH = 10_000
RIGHT = ">"  # before a column's name: numbers
GAP = 2  # between columns
# Columns that a narrow terminal can do without, the least first.
SPARE = (
    "first key",
    "model",
    "address",
    ">ranks",
    ">load",
    ">syncs",
    ">memory",
    "lmkv",
    ">heartbeat",
    ">pool",
    ">chunks",
    ">rate",
    "asked by",
    ">size",
    ">left",
    ">moved",
    ">age",
    ">matched",
    ">hits",
    ">copies",
    "where",
)
FOLDED = ("holders", "causes", "reason")  # may take several lines, of so many characters at least:
FOLD = 24
UNFOLDED = 34  # characters: ids and keys are copied, and names are no longer, as a rule
OPEN = tuple(state for state in STATES if state not in ENDED)  # of jobs
INSTANCE_COLUMNS = (
    "instance", "state", "model", ">ranks", ">chunks", ">pool", ">load", ">heartbeat",
    ">hit tokens",
)  # fmt: skip


class Printable(Console):
    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)


def console() -> Console:
    made = Printable(markup=False, highlight=False, emoji=False)
    if not made.is_terminal:
        made.width = PIPE_WIDTH
    return made


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], room: int = PIPE_WIDTH) -> Table:
    """Where `room` is too narrow, those of SPARE are left out until the rest has its place; what
    then is still too wide takes several lines."""
    made = Table(box=None, pad_edge=False)
    cells = [list(row) for row in rows]
    widths = {
        name: max([len(name.lstrip(RIGHT)), *(len(row[i]) for row in cells)])
        for i, name in enumerate(columns)
    }
    wanted = {name: min(width, FOLD) if name in FOLDED else width for name, width in widths.items()}
    shown = list(columns)
    for name in SPARE:
        if sum(wanted[each] + GAP for each in shown) - GAP > room and name in shown:
            shown.remove(name)
    for name in shown:
        made.add_column(
            name.lstrip(RIGHT),
            justify="right" if name.startswith(RIGHT) else "left",
            overflow="fold",
            no_wrap=name not in FOLDED and widths[name] <= UNFOLDED,
        )
    for row in cells:
        made.add_row(*(cell for name, cell in zip(columns, row) if name in shown))
    return made


# ---------------------------------------------------------------- the cluster


def status_table(info: StatusInfo) -> None:
    out = console()
    for line in (*heading(info), *tokens(info.hit_tokens, info.miss_tokens)):
        out.print(line)
    instances_table(sorted(info.instances, key=lambda each: each.instance))


def heading(info: StatusInfo) -> list[str]:
    who = f"cluster {info.cluster}, controller {info.controller} ({info.state}), "
    who += f"up {span(info.uptime)}, lmkv {info.version}"
    what = (
        counted(info.keys, "chunk"),
        size(info.directory_bytes),
        counted(info.locates, "locate"),
        counted(info.drifts, "drift"),
        counted(info.resyncs, "resync"),
    )
    open_ones = [f"{info.jobs[state]} {state}" for state in OPEN if info.jobs.get(state)]
    return [who, ", ".join(what), *([f"jobs: {', '.join(open_ones)}"] if open_ones else [])]


def tokens(hits: Mapping[str, int], misses: Mapping[str, int]) -> list[str]:
    """Two lines, or none where nothing was asked for."""
    hit, miss = sum(hits.values()), sum(misses.values())
    if not hit + miss:
        return []
    share = 100 * hit / (hit + miss)
    return [
        f"hit {hit:,} tokens ({share:.1f} %){causes(hits)}",
        f"missed {miss:,} tokens{causes(misses)}",
    ]


def causes(found: Mapping[str, int]) -> str:
    """`: cold 12, retired 3`, the most first."""
    some = sorted(((n, name) for name, n in found.items() if n), reverse=True)
    return ": " + ", ".join(f"{name} {n:,}" for n, name in some) if some else ""


def instances_table(instances: Sequence[InstanceState]) -> None:
    if not instances:
        typer.echo("no instances", err=True)
        return
    out = console()
    out.print(table(INSTANCE_COLUMNS, map(instance_row, instances), out.width))


def instance_row(instance: InstanceState) -> list[str]:
    return [
        instance.instance,
        state(instance),
        instance.model,
        str(instance.ranks),
        f"{instance.keys:,}",
        fill(instance.pool_granules),
        f"{instance.load:.1f}",
        f"{instance.heartbeat_age:.1f} s",
        f"{sum(instance.hit_tokens.values()):,}",
    ]


def fill(granules: Mapping[str, int]) -> str:
    """How much of the pool is taken; nothing before it is known."""
    whole = sum(granules.values())
    return f"{100 * (whole - granules.get('free', 0)) / whole:.0f} %" if whole else "-"


def state(instance: InstanceState) -> str:
    """`live`, `live, not pullable`, `incompatible (weights)`."""
    text = instance.state if instance.pullable else f"{instance.state}, not pullable"
    return f"{text} ({instance.differs})" if instance.differs else text


def instance_page(instance: InstanceState) -> None:
    out = console()
    facts = {
        "instance": instance.instance,
        "epoch": f"{instance.epoch:016x}",
        "state": state(instance),
        "differs": _differs(instance),
        "model": instance.model or "-",
        "serving url": instance.serving_url or "-",
        "dp rank": str(instance.dp_rank),
        "ranks": str(instance.ranks),
        "lmkv": instance.version or "-",
        "data version": str(instance.data_version),
        "heartbeat": f"{instance.heartbeat_age:.1f} s ago",
        "requests": f"{instance.running} running, {instance.waiting} waiting",
        "load": f"{instance.load:.2f}",
        "chunks": f"{instance.keys:,}",
        "pool": _pool(instance.pool_granules),
        "retired at": _retired(instance.retired_age),
        "pulled": f"{size(instance.bytes_in)} in, {size(instance.bytes_out)} out, in 5 min",
    }
    for name, value in facts.items():
        out.print(f"{name:<14}{value}")
    for line in tokens(instance.hit_tokens, instance.miss_tokens):
        out.print(line)


def _differs(instance: InstanceState) -> str:
    if not instance.differs:
        return "-"
    return f"{instance.differs} is not that of {instance.differs_from}: they do not share"


def _retired(age: float) -> str:
    """`age` is the upper bound of the median's bucket."""
    return f"half of the slots at most {span(age)} old" if age else "-"


def _pool(granules: Mapping[str, int]) -> str:
    if not granules:
        return "-"
    parts = ", ".join(f"{name} {n:,}" for name, n in sorted(granules.items()) if n)
    return f"{fill(granules)} of {sum(granules.values()):,} granules ({parts})"


def controllers_table(controllers: Sequence[ControllerState]) -> None:
    columns = (
        "controller", "state", "address", "lmkv", ">up", ">instances", ">chunks", ">memory", ">lag",
        ">syncs", ">drifts",
    )  # fmt: skip
    out = console()
    out.print(table(columns, map(_controller_row, controllers), out.width))


def _controller_row(each: ControllerState) -> list[str]:
    told = [each.controller, each.state, each.address]
    if not each.epoch:  # it did not answer
        return [*told, *["-"] * 8]
    return [
        *told,
        each.version,
        span(each.uptime),
        str(each.instances),
        f"{each.keys:,}",
        size(each.directory_bytes),
        f"{each.lag:.1f} s",
        str(each.syncs),
        f"{each.drifts:,}",
    ]


# ---------------------------------------------------------------- prompts


def prefixes_table(prefixes: Sequence[Prefix]) -> None:
    if not prefixes:
        typer.echo("no prefix was located of late", err=True)
        return
    rows = (
        [
            each.key,
            each.model,
            f"{each.tokens:,}",
            f"{each.hits:.1f}",
            str(each.copies),
            ", ".join(each.holders) + (", ..." if each.copies > len(each.holders) else ""),
        ]
        for each in prefixes
    )
    columns = ("key", "model", ">tokens", ">hits", ">copies", "holders")
    out = console()
    out.print(table(columns, rows, out.width))


def lookup_table(info: LookupInfo) -> None:
    if not info.keys:
        typer.echo(f"shorter than a chunk of {info.chunk_tokens} tokens", err=True)
        return
    rows = []
    for i, (key, holders) in enumerate(zip(info.keys, info.holders)):
        first = i * info.chunk_tokens
        part = f"{first}-{first + info.chunk_tokens - 1}"
        rows.append([str(i), part, key, ", ".join(holders) or "-"])
    out = console()
    out.print(table((">chunk", ">tokens", "key", "holders"), rows))
    for instance, n in info.matched.items():
        out.print(f"{instance} has the first {n:,} tokens")


# ---------------------------------------------------------------- words


def counted(n: int, word: str) -> str:
    return f"{n:,} {word}" if n == 1 else f"{n:,} {word}s"


def span(seconds: float) -> str:
    """`42 s`, `12 min`, `5 h 12 min`, `3 d 4 h`."""
    whole = int(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes, hours = whole // 60, whole // 3600
    if minutes < 120:
        return f"{minutes} min"
    if hours < 48:
        return f"{hours} h {minutes % 60} min"
    return f"{hours // 24} d {hours % 24} h"


def size(n: int) -> str:
    """`12.0 MiB`."""
    amount = float(n)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:,.1f} GiB"
