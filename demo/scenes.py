"""The story. Each manual gets two questions; the second finds the manual's KV, or does not.

Without lmkv: the router sends the second question to the other server, which computes all again.
Then each server, alone, answers both questions of each manual: the reference. With lmkv: server A
answers the first question (cold), then B the second (pulled by NIXL, or mapped), or A itself
(vLLM's own prefix hit). Every answer must equal, byte for byte, the reference's answer that resumed
at the same token. One request at a time on a server; other manuals for each row.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Thread

from demo.client import Answer, Client, Metrics
from demo.manuals import Manual
from demo.servers import Cluster

COLD, NIXL, MAPPED, PREFIX = "cold", "peer hit (NIXL)", "peer hit (mapped)", "prefix hit (vLLM)"
# A chunk is stored and announced in a fraction of this; but vLLM's worker spins for a second after
# a step, and the next question shall find its server's core free.
SETTLE_S = 1.5
WARM_UP = [{"role": "user", "content": "Say hello."}]

Say = Callable[[str], None]
Reference = dict[str, tuple[Answer, Answer]]  # by the manual's title


@dataclass
class Ask:
    """One measured question, and whether its answer is the reference's."""

    row: str
    title: str
    answer: Answer
    expected: Answer

    @property
    def equal(self) -> bool:
        return self.answer.text == self.expected.text


@dataclass
class Measured:
    problem: tuple[Answer, Answer]
    solved: tuple[Answer, Answer] | None = None
    asks: list[Ask] = field(default_factory=list)
    metrics: dict[str, Metrics] = field(default_factory=dict)  # B's (A's for PREFIX) by row
    router_metrics: Metrics = field(default_factory=Metrics)


def warm_up(cluster: Cluster) -> None:
    """The first request of a process is slow for reasons of its own."""
    for client in (cluster.a, cluster.b):
        client.chat(WARM_UP, max_tokens=4)


def through_router(cluster: Cluster, manual: Manual) -> tuple[Answer, Answer]:
    first = cluster.router.chat(manual.messages(0))
    time.sleep(SETTLE_S)
    return first, cluster.router.chat(manual.messages(1))


def reference(cluster: Cluster, manuals: Sequence[Manual], say: Say) -> Reference:
    """Both servers work, each on its own manuals and core."""

    found: Reference = {}
    failed: list[BaseException] = []

    def answer(client: Client, share: Sequence[Manual]) -> None:
        try:
            for manual in share:
                cold = client.chat(manual.messages(0))
                found[manual.title] = (cold, client.chat(manual.messages(1)))
                say(f"reference answers: {manual.title}")
        except Exception as failure:
            failed.append(failure)

    # Daemons: ctrl-C need not wait for the answers.
    work = ((cluster.a, manuals[::2]), (cluster.b, manuals[1::2]))
    threads = [Thread(target=answer, args=pair, daemon=True) for pair in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise RuntimeError(f"a reference answer failed: {failed[0]}")
    return found


def measure_row(
    cluster: Cluster,
    row: str,
    manuals: Sequence[Manual],
    expected: Reference,
    measured: Measured,
    say: Say,
) -> None:
    """First question to A, second to whom the row says; adds asks and the row's metrics."""
    second = cluster.a if row == PREFIX else cluster.b
    transfer = {NIXL: "nixl", MAPPED: "mapped"}.get(row)
    for manual in manuals:
        cold, hit = expected[manual.title]
        answer = cluster.a.chat(manual.messages(0))
        measured.asks.append(Ask(COLD, manual.title, answer, cold))
        say(f"cold on A: {answer.ttft_s:.1f} s")
        time.sleep(SETTLE_S)
        before = second.metrics()
        answer = second.chat(manual.messages(1), transfer=transfer)
        share = second.metrics() - before
        measured.metrics[row] = measured.metrics.get(row, Metrics()) + share
        measured.asks.append(Ask(row, manual.title, answer, hit))
        say(f"{row}: {answer.ttft_s:.2f} s")


def without_lmkv(
    cluster: Cluster, manuals: Sequence[Manual], say: Say
) -> tuple[tuple[Answer, Answer], Reference]:
    """The problem, with the first manual; and the reference for all."""
    warm_up(cluster)
    problem = through_router(cluster, manuals[0])
    say(f"through the router: {problem[0].ttft_s:.1f} s, then {problem[1].ttft_s:.1f} s")
    rest = reference(cluster, manuals[1:], say)
    # The first manual's second question, where the first one was: a prefix hit.
    asked = [client.chat(manuals[0].messages(1)) for client in (cluster.a, cluster.b)]
    hit = max(asked, key=lambda answer: answer.cached_tokens)
    return problem, rest | {manuals[0].title: (problem[0], hit)}


def with_lmkv(
    cluster: Cluster, manuals: Sequence[Manual], expected: Reference, measured: Measured, say: Say
) -> None:
    """The answer, with the first manual; then the rows, with a third of the others each."""
    warm_up(cluster)
    before = cluster.a.metrics() + cluster.b.metrics()
    measured.solved = through_router(cluster, manuals[0])
    measured.router_metrics = cluster.a.metrics() + cluster.b.metrics() - before
    for answer, wanted in zip(measured.solved, expected[manuals[0].title]):
        measured.asks.append(Ask("router", manuals[0].title, answer, wanted))
    first, second = measured.solved
    say(f"through the router: {first.ttft_s:.1f} s, then {second.ttft_s:.2f} s")
    each = len(manuals[1:]) // 3
    for number, row in enumerate((NIXL, MAPPED, PREFIX)):
        share = manuals[1 + number * each : 1 + (number + 1) * each]
        measure_row(cluster, row, share, expected, measured, say)
