"""Bytes that came from instance to instance, in a window that slides: add() -> answer().

Instances tell them with each heartbeat. They are kept by slices of time, of which the oldest is
forgotten; a slice has so many pairs at most, and whatever is beyond counts for `other`. What came
to an instance and what was taken of it are kept as sums of all slices, so that a page of instances
costs little.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping

from lmkv.core.clock import Clock
from lmkv.core.messages import Flow, FlowInfo, Pair
from lmkv.core.metrics import OTHER
from lmkv.core.peer_labels import as_label

SLICE = 10.0  # seconds
SLICES = 30
PAIRS = 2048  # of a slice
PEERS = 64  # of a heartbeat
MOST = (1 << 64) - 1


class Flows:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began = clock()
        self._slices: deque[tuple[float, Counter[tuple[str, str]]]] = deque()
        self._into: Counter[str] = Counter()  # by target, of all slices
        self._out_of: Counter[str] = Counter()  # by source
        self.bytes = 0  # since the start

    def add(self, target: str, peer_bytes: Mapping[str, int]) -> None:
        """What `target` says that came to it, by source."""
        if not peer_bytes:
            return
        pairs = self._slice()
        for number, (source, size) in enumerate(peer_bytes.items()):
            pair = (as_label(source) if number < PEERS else OTHER, target)
            if pair not in pairs and len(pairs) >= PAIRS:
                pair = OTHER, OTHER
            more = min(size, MOST - pairs[pair])
            pairs[pair] += more
            self._out_of[pair[0]] += more
            self._into[pair[1]] += more
            self.bytes = min(self.bytes + size, MOST)

    def _slice(self) -> Counter[tuple[str, str]]:
        now = self._clock()
        self._forget(now)
        if not self._slices or now - self._slices[-1][0] >= SLICE:
            self._slices.append((now, Counter()))
        return self._slices[-1][1]

    def _forget(self, now: float) -> None:
        """Slices that are older than the window."""
        while self._slices and now - self._slices[0][0] >= SLICE * SLICES:
            _, pairs = self._slices.popleft()
            for (source, target), size in pairs.items():
                _less(self._out_of, source, size)
                _less(self._into, target, size)

    def of(self, instance: str) -> tuple[int, int]:
        """Bytes that came to it and that were taken of it, in the whole window."""
        self._forget(self._clock())
        into, out_of = self._into.get(instance, 0), self._out_of.get(as_label(instance), 0)
        return min(into, MOST), min(out_of, MOST)

    def answer(self, question: Flow) -> FlowInfo:
        now = self._clock()
        window = max(SLICE, min(question.seconds, SLICE * SLICES))
        total: Counter[tuple[str, str]] = Counter()
        for began, pairs in self._slices:
            if now - began < window:
                total.update(pairs)
        most = total.most_common(question.limit)
        return FlowInfo(
            question.request,
            min(window, now - self._began),
            min(total.total(), MOST),
            len(total),
            [Pair(source, target, min(size, MOST)) for (source, target), size in most],
        )


def _less(sums: Counter[str], name: str, size: int) -> None:
    """What has come to nothing takes no room."""
    sums[name] -= size
    if not sums[name]:
        del sums[name]
