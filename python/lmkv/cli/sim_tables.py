"""What `lmkv sim` has found, for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from lmkv.cli.tables import console

if TYPE_CHECKING:
    from lmkv.sim.report import Latency, Run


def show(runs: Sequence[Run]) -> None:
    out = console()
    out.print(_hits(runs))
    out.print(_latencies(runs))
    out.print(_controllers(runs))
    for run in runs:
        out.print(
            f"pool {run.pool_chunks:,}: {run.instances:,} instances, {run.seconds:.0f} s; "
            f"the simulator itself: {run.simulator_cpu_percent:.0f} % of a core, "
            f"{run.simulator_rss_mib:,.0f} MiB, late by {run.simulator_late.p99:g} ms (p99)"
        )


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _hits(runs: Sequence[Run]) -> Table:
    hits = sorted({cause for run in runs for cause in run.hit_tokens})
    misses = sorted({cause for run in runs for cause in run.miss_tokens})
    table = _table("pool chunks", "requests", "late", "hit rate", *hits, *misses)
    for run in runs:
        total = max(1, sum(run.hit_tokens.values()) + sum(run.miss_tokens.values()))
        both = {**run.hit_tokens, **run.miss_tokens}
        shares = [f"{100 * both.get(cause, 0) / total:.1f} %" for cause in (*hits, *misses)]
        table.add_row(
            f"{run.pool_chunks:,}",
            f"{run.requests:,}",
            str(run.unfinished),
            f"{100 * run.hit_rate:.1f} %",
            *shares,
        )
    return table


def _latencies(runs: Sequence[Run]) -> Table:
    table = _table("pool chunks", "ms, p50 / p99 (n): locate", "known", "visible", "pulled", "bad")
    for run in runs:
        pulled = sum(run.pulled_chunks.values())
        table.add_row(
            f"{run.pool_chunks:,}",
            _text(run.locate),
            _text(run.known),
            _text(run.visible),
            f"{pulled:,}",
            f"{pulled - run.pulled_chunks.get('good', 0):,}",
        )
    return table


def _text(latency: Latency) -> str:
    return f"{latency.p50:g} / {latency.p99:g} ({latency.count:,})"


def _controllers(runs: Sequence[Run]) -> Table:
    table = _table(
        "pool chunks", "controller", "state", "instances", "chunks", "drifts", "resyncs",
        "% of a core", "MiB",
    )  # fmt: skip
    for run in runs:
        for each in run.controllers:
            table.add_row(
                f"{run.pool_chunks:,}",
                each.address,
                each.state,
                f"{each.instances:,}",
                f"{each.keys:,}",
                str(each.drifts),
                str(each.resyncs),
                "-" if each.cpu_percent is None else f"{each.cpu_percent:.1f}",
                "-" if each.rss_mib is None else f"{each.rss_mib:,.0f}",
            )
    return table
