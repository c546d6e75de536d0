"""What the demo found: one table for people, `demo-report.json` for programs."""

from __future__ import annotations

import os
from dataclasses import asdict
from statistics import median
from typing import Any

from demo.client import Answer, Metrics
from demo.scenes import COLD, MAPPED, NIXL, PREFIX, Ask, Measured
from demo.servers import BLOCK

PULL_BYTES = "vllm:lmkv_pull_bytes_total"
PULL_SECONDS = "vllm:lmkv_pull_seconds_sum"
EXTERNAL_HITS = "vllm:external_prefix_cache_hits_total"
PULLED_SHARE = 0.9
KEYS = {
    COLD: "cold_ttft_s",
    NIXL: "peer_hit_ttft_s",
    MAPPED: "mapped_hit_ttft_s",
    PREFIX: "prefix_hit_ttft_s",
}


def _asks(measured: Measured, row: str) -> list[Ask]:
    return [ask for ask in measured.asks if ask.row == row]


def _ttft(measured: Measured, row: str) -> float:
    return median(ask.answer.ttft_s for ask in _asks(measured, row))


def whole_chunks(tokens: int) -> int:
    """What of a prompt can hit: whole chunks, and at least one token is always computed."""
    return (tokens - 1) // BLOCK * BLOCK


def make_report(measured: Measured, seconds: float) -> dict[str, Any]:
    """`tokens`, `pulled_tokens` and `bytes` are sums over the NIXL rows."""
    nixl = measured.metrics.get(NIXL, Metrics())
    prompts = [ask.answer.prompt_tokens for ask in _asks(measured, NIXL)]
    pull_s = nixl.total(PULL_SECONDS)
    report: dict[str, Any] = {key: _ttft(measured, row) for row, key in KEYS.items()}
    report |= {
        "tokens": sum(prompts),
        "whole_chunk_tokens": sum(map(whole_chunks, prompts)),
        "pulled_tokens": int(nixl.causes.get("hit_peer", 0)),
        "external_hit_tokens": int(nixl.total(EXTERNAL_HITS)),
        "bytes": int(nixl.total(PULL_BYTES)),
        "pull_gb_per_s": nixl.total(PULL_BYTES) / pull_s / 1e9 if pull_s else None,
        "outputs_equal": all(ask.equal for ask in measured.asks),
        "without_lmkv_ttft_s": [answer.ttft_s for answer in measured.problem],
        "with_lmkv_ttft_s": [answer.ttft_s for answer in measured.solved or ()],
        "causes": {row: metrics.causes for row, metrics in measured.metrics.items()},
        "router_causes": measured.router_metrics.causes,
        "requests": [
            {"row": a.row, "manual": a.title, "equal": a.equal, **asdict(a.answer)}
            for a in measured.asks
        ],
        "cores": os.cpu_count(),
        "seconds": seconds,
    }
    report["goals"] = goals(report)
    return report


def goals(report: dict[str, Any]) -> dict[str, bool]:
    peer, mapped, prefix = (report[KEYS[row]] for row in (NIXL, MAPPED, PREFIX))
    return {
        "outputs equal the reference's": report["outputs_equal"],
        "pulled at least 90 % of the whole chunks": report["pulled_tokens"]
        >= PULLED_SHARE * report["whole_chunk_tokens"],
        "peer hit at most 1.2 x prefix hit + 50 ms": peer <= 1.2 * prefix + 0.05,
        "mapped hit at most 1.2 x prefix hit + 50 ms": mapped <= 1.2 * prefix + 0.05,
        "mapped hit at most 1.1 x peer hit": mapped <= 1.1 * peer,
    }


def _causes(metrics: Metrics) -> str:
    return ", ".join(f"{cause} {value:.0f}" for cause, value in sorted(metrics.causes.items()))


def show(measured: Measured, report: dict[str, Any]) -> None:
    """The one table, the answers of the first manual, and the goals."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="First token of a question about a manual")
    for name in (
        "",
        "first token",
        "of",
        "prompt",
        "not computed",
        "moved",
        "rate",
        "equal",
        "tokens by cause",
    ):
        table.add_column(name, justify="left" if name in ("", "tokens by cause") else "right")

    def router_rows(words: str, pair: tuple[Answer, ...], equal: str, causes: str) -> None:
        for which, answer in zip(("1st", "2nd"), pair):
            table.add_row(
                f"{words}, {which} question",
                f"{answer.ttft_s:.2f} s",
                "1",
                str(answer.prompt_tokens),
                str(answer.cached_tokens),
                "",
                "",
                equal,
                causes if which == "2nd" else "",
            )

    router_rows("without lmkv, through the router", measured.problem, "", "")
    if measured.solved:
        equal = "yes" if all(ask.equal for ask in _asks(measured, "router")) else "NO"
        causes = _causes(measured.router_metrics)
        router_rows("with lmkv, through the router", measured.solved, equal, causes)
        table.add_section()
        for row in KEYS:
            asks = _asks(measured, row)
            metrics = measured.metrics.get(row, Metrics())
            moved, seconds = metrics.total(PULL_BYTES), metrics.total(PULL_SECONDS)
            table.add_row(
                row,
                f"{_ttft(measured, row):.2f} s",
                str(len(asks)),
                str(sum(ask.answer.prompt_tokens for ask in asks)),
                str(sum(ask.answer.cached_tokens for ask in asks)),
                f"{moved / 1e6:.0f} MB" if moved else "",
                f"{moved / seconds / 1e9:.2f} GB/s" if seconds else "",
                "yes" if all(ask.equal for ask in asks) else "NO",
                _causes(metrics),
            )
    # As wide as it needs where the output is a file or a pipe.
    console = Console(width=None if Console().is_terminal else 160)
    console.print(table)
    for which, answer in zip(("1st", "2nd"), measured.solved or measured.problem):
        console.print(f"{which} answer: {answer.text.strip()!r}", highlight=False)
    for goal, met in report.get("goals", {}).items():
        console.print(f"{'[green]met' if met else '[red]MISSED'}[/] {goal}")
