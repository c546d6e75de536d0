"""The CLI's answers as tables for people.

Names come from the network: they are printed as they are, never read as rich's markup. Into a pipe
a line is as long as it must be, so that nothing a script reads is cut.
"""

from __future__ import annotations

import typer
from rich.console import Console
from rich.table import Table

from lmkv.core.messages import InstanceState, LookupInfo, StatusInfo

PIPE_WIDTH = 10_000


def _console() -> Console:
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    return console


def status_table(info: StatusInfo) -> None:
    console = _console()
    console.print(
        f"cluster {info.cluster}, controller {info.controller} ({info.state}), "
        f"up {info.uptime:.0f} s, lmkv {info.version}"
    )
    console.print(
        f"{info.keys:,} chunks, {info.directory_bytes / 2**20:.1f} MiB, {info.locates:,} locates, "
        f"{info.drifts} drifts, {info.resyncs} resyncs"
    )
    table = Table(box=None, pad_edge=False)
    for name in ("instance", "state", "model", "ranks", "chunks", "heartbeat", "hit tokens"):
        table.add_column(
            name, justify="left" if name in ("instance", "state", "model") else "right"
        )
    for instance in info.instances:
        table.add_row(
            instance.instance,
            _state(instance),
            instance.model,
            str(instance.ranks),
            f"{instance.keys:,}",
            f"{instance.heartbeat_age:.1f} s",
            f"{sum(instance.hit_tokens.values()):,}",
        )
    if info.instances:
        console.print(table)
    else:
        typer.echo("no instances", err=True)


def _state(instance: InstanceState) -> str:
    text = instance.state if instance.pullable else f"{instance.state}, not pullable"
    return f"{text} (differs in {instance.differs})" if instance.differs else text


def lookup_table(info: LookupInfo) -> None:
    console = _console()
    table = Table(box=None, pad_edge=False)
    table.add_column("chunk", justify="right")
    table.add_column("tokens", justify="right")
    table.add_column("key")
    table.add_column("holders")
    for i, (key, holders) in enumerate(zip(info.keys, info.holders)):
        first = i * info.chunk_tokens
        span = f"{first}-{first + info.chunk_tokens - 1}"
        table.add_row(str(i), span, key, ", ".join(holders) or "-")
    if not info.keys:
        typer.echo(f"shorter than a chunk of {info.chunk_tokens} tokens", err=True)
        return
    console.print(table)
    for instance, tokens in info.matched.items():
        console.print(f"{instance} has the first {tokens:,} tokens")
