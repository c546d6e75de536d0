"""What the pages remember: the cluster's counts, one sample a second, five minutes of them.

run() asks the controller as any client would; `take` and what reads the samples ask nobody. Counts
that are not of one life of the controller are never compared.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from lmkv.core.client import Unreachable
from lmkv.core.clock import Clock, monotonic
from lmkv.core.messages import Instances, InstanceState, StatusInfo
from lmkv.web.cluster_view import ClusterView
from lmkv.web.errors import Problem

EVERY = 1.0  # seconds
BIN = 5  # samples of a point in a chart
KEPT = 301 + 2 * BIN  # samples: five minutes of points, also just before the next one
NAMED = 8  # incompatible instances


@dataclass(frozen=True)
class Sample:
    number: int
    at: float
    epoch: int
    hits: Mapping[str, int]
    misses: Mapping[str, int]
    peer_bytes: int
    drifts: int


@dataclass
class Point:
    """Rates per second in the time up to `age` seconds ago."""

    age: float
    tokens: dict[str, float]  # by cause
    peer_bytes: float

    @property
    def saved(self) -> float:
        return sum(rate for cause, rate in self.tokens.items() if cause.startswith("hit_"))


@dataclass
class Watch:
    view: ClusterView
    clock: Clock = monotonic
    status: StatusInfo | None = None  # the last one that was had
    trouble: str = "the controller has not answered yet"  # why there is none now
    incompatible: list[InstanceState] = field(default_factory=list)
    samples: deque[Sample] = field(default_factory=lambda: deque(maxlen=KEPT))
    _number: int = 0

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(EVERY)

    async def look(self) -> None:
        try:
            info = await self.view.status()
            self.incompatible = await self._incompatible(info)
        except (Unreachable, Problem) as error:
            self.trouble = str(error)
            return
        self.take(info)

    async def _incompatible(self, info: StatusInfo) -> list[InstanceState]:
        if not info.states.get("incompatible"):
            return []
        question = Instances(filter="incompatible", sort="instance", limit=NAMED)
        found = (await self.view.instances(question)).instances
        return [each for each in found if each.state == "incompatible"]

    def take(self, info: StatusInfo) -> None:
        self.status, self.trouble = info, ""
        self._number += 1
        if self.samples and self.samples[-1].epoch != info.epoch:
            self.samples.clear()
        sample = Sample(
            self._number, self.clock(), info.epoch, info.hit_tokens, info.miss_tokens,
            info.peer_bytes, info.drifts,
        )  # fmt: skip
        self.samples.append(sample)

    # ------------------------------------------------------------ what is read of it

    def points(self) -> list[Point]:
        """Oldest first. A point keeps its samples while it ages, so that a chart moves and does not
        flicker."""
        edges = [sample for sample in self.samples if sample.number % BIN == 0]
        now = self.clock()
        return [_point(a, b, now) for a, b in pairwise(edges)]

    def now(self) -> Point | None:
        """Of the last seconds."""
        if len(self.samples) < 2:
            return None
        before = self.samples[max(0, len(self.samples) - 1 - BIN)]
        return _point(before, self.samples[-1], self.clock())

    def grown(self) -> tuple[int, int]:
        """Drifts, and tokens missed by a wrong digest, in the time that is remembered."""
        if not self.samples:
            return 0, 0
        first, last = self.samples[0], self.samples[-1]
        return last.drifts - first.drifts, _more(first.misses, last.misses, "digest")


def _point(a: Sample, b: Sample, now: float) -> Point:
    seconds = max(b.at - a.at, 1e-9)
    tokens = {cause: _more(a.hits, b.hits, cause) / seconds for cause in b.hits}
    tokens |= {cause: _more(a.misses, b.misses, cause) / seconds for cause in b.misses}
    return Point(now - b.at, tokens, (b.peer_bytes - a.peer_bytes) / seconds)


def _more(a: Mapping[str, int], b: Mapping[str, int], cause: str) -> int:
    return b.get(cause, 0) - a.get(cause, 0)
