"""Bytes that came from instance to instance, in a window that slides: add() -> answer().

Instances tell them with each heartbeat. They are kept by slices of time, of which the oldest is
forgotten; a slice has so many pairs at most, and whatever is beyond counts for `other`.
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
        self._slices: deque[tuple[float, Counter[tuple[str, str]]]] = deque(maxlen=SLICES)
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
            pairs[pair] = min(pairs[pair] + size, MOST)
            self.bytes = min(self.bytes + size, MOST)

    def _slice(self) -> Counter[tuple[str, str]]:
        now = self._clock()
        if not self._slices or now - self._slices[-1][0] >= SLICE:
            self._slices.append((now, Counter()))
        return self._slices[-1][1]

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
