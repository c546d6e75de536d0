"""Measured rates: how fast each peer's bytes come, and how fast this engine computes a prompt.

    rates.started(peer, size) -> rates.ended(peer, size, brought, begin, seconds)   a pull
    rates.prefill.scheduled(tokens, requests) -> rates.prefill.output()             a step
    rates.estimate(peer, size), rates.computing_is_faster(peer, size, tokens)

A rate is the middle one of the last measurements: one that is odd says nothing, and the second of
its kind is believed. A peer's are forgotten after a minute; it is then unknown again, and who is
unknown is asked. So a slow peer costs two pulls a minute, and is found again when it is fast.
What concerns peers is called under the reader's lock, `prefill` by the scheduler thread.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

UNKNOWN = 1e9  # bytes per second assumed for the deadline of a pull from an unknown peer
LATENCY = 0.005  # seconds: a mover's round trip, and a pass of the scheduler
FORGET = 60.0  # seconds after which a pull says nothing about its peer
LONGEST = 1.0  # seconds of overlapping pulls that are measured as one
PEERS = 1024  # beyond, those of whom nothing is known are left out
OPEN_STEPS = 8  # more than vLLM has under way at once


class Measured:
    """The middle of the last `keep` rates, of two the greater; None before there are two."""

    def __init__(self, keep: int, forget: float = math.inf) -> None:
        self._rates: deque[tuple[float, float]] = deque(maxlen=keep)  # (when, rate)
        self._forget = forget

    def add(self, amount: float, seconds: float, now: float) -> None:
        self._rates.append((now, amount / max(seconds, 1e-6)))

    def rate(self, now: float) -> float | None:
        while self._rates and now - self._rates[0][0] >= self._forget:
            self._rates.popleft()
        if len(self._rates) < 2:
            return None
        return statistics.median_high(rate for _, rate in self._rates)


@dataclass(eq=False)
class _Step:
    begin: float
    tokens: int
    request: Any  # the prompt that most of the step computes,
    settled: int  # and how many of its tokens are computed when the step has ended


class Prefill:
    """Tokens a second of steps that are mostly prefill, `least` tokens or more.

    A step's time runs from when it was scheduled, or from the output of the step before it where
    vLLM schedules ahead, to its own output.
    """

    def __init__(self, least: int, clock: Callable[[], float]) -> None:
        self._least = least
        self._clock = clock
        self._measured = Measured(5)
        self._steps: deque[_Step] = deque(maxlen=OPEN_STEPS)
        self._last_output = -math.inf

    def scheduled(self, tokens: Mapping[str, int], requests: Mapping[str, Any]) -> None:
        """A step computes so many tokens of these requests, which are vLLM's as they were before
        it (their `num_computed_tokens` and `num_prompt_tokens` are read)."""
        total = sum(tokens.values())
        if total < self._least:
            return
        prompts: list[tuple[int, Any]] = []
        for name, count in tokens.items():
            request = requests.get(name)
            if request is not None and request.num_computed_tokens < request.num_prompt_tokens:
                prompts.append((count, request))
        prefill = sum(count for count, _ in prompts)
        if 2 * prefill < total:
            return
        count, request = max(prompts, key=lambda prompt: prompt[0])
        settled = request.num_computed_tokens + count
        self._steps.append(_Step(self._clock(), prefill, request, settled))

    def output(self) -> None:
        """Some step's output has come."""
        now = self._clock()
        for step in list(self._steps):
            # Counted as computed when scheduled; in flight until their output has come.
            request = step.request
            in_flight = getattr(request, "num_in_flight_tokens", 0)
            if request.num_computed_tokens - in_flight >= step.settled:
                self._steps.remove(step)
                self._measured.add(step.tokens, now - max(step.begin, self._last_output), now)
        self._last_output = now

    @property
    def rate(self) -> float | None:
        return self._measured.rate(self._clock())


@dataclass
class _Peer:
    measured: Measured = field(default_factory=lambda: Measured(3, FORGET))
    queued: int = 0  # bytes asked for that are under way
    # Pulls that overlap share the link, and are one measurement: their bytes over their time.
    brought: int = 0
    seconds: float = 0.0
    ended: float = -math.inf  # when the one before ended


class Rates:
    """A pull that brought less than a slot, and a step of less than a chunk, measure nothing."""

    def __init__(self, slot_bytes: int, chunk_tokens: int, clock: Callable[[], float]) -> None:
        self.prefill = Prefill(chunk_tokens, clock)
        self._least = slot_bytes
        self._clock = clock
        self._peers: dict[str, _Peer] = {}

    def started(self, peer: str, size: int) -> None:
        if len(self._peers) > PEERS:
            now = self._clock()
            known = {n: p for n, p in self._peers.items() if p.queued or p.measured.rate(now)}
            self._peers = known
        self._peers.setdefault(peer, _Peer()).queued += size

    def ended(self, peer: str, size: int, brought: int, begin: float, seconds: float) -> None:
        """A pull of `size` bytes, posted at `begin`, has brought `brought` of them after `seconds`;
        0: it says nothing about the rate (failed, or part of it was not there to be read)."""
        known = self._peers[peer]
        known.queued -= size
        assert known.queued >= 0, "each pull ends once"
        if brought >= self._least and seconds > 0:
            end = begin + seconds  # not when we heard of it
            known.brought += brought
            known.seconds += max(0.0, end - max(begin, known.ended))
            known.ended = max(end, known.ended)
        if known.brought and (not known.queued or known.seconds >= LONGEST):
            known.measured.add(known.brought, known.seconds, self._clock())
            known.brought, known.seconds = 0, 0.0

    def rate(self, peer: str) -> float | None:
        """Bytes per second; None: unknown."""
        known = self._peers.get(peer)
        return known.measured.rate(self._clock()) if known else None

    def estimate(self, peer: str, size: int) -> float:
        """Seconds until `size` bytes more would be here."""
        known = self._peers.get(peer)
        queued = known.queued if known else 0
        return LATENCY + (queued + size) / (self.rate(peer) or UNKNOWN)

    def computing_is_faster(self, peer: str, size: int, tokens: int) -> bool:
        """Than pulling these `tokens`; False as long as either is unknown: a pull measures."""
        prefill = self.prefill.rate
        if prefill is None or self.rate(peer) is None:
            return False
        return self.estimate(peer, size) > tokens / prefill

    def snapshot(self) -> dict[str, Any]:
        """What is known, for people and tests."""
        return {
            "prefill": self.prefill.rate,
            "peers": {
                name: {"rate": self.rate(name), "queued": peer.queued}
                for name, peer in list(self._peers.items())
            },
        }
