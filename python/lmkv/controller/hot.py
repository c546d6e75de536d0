"""Which prefixes are located most: note() for each locate that found something, top() to ask.

A prefix is counted by its last key. What is counted is bounded: when there is no room a new key is
passed over, until tick() has thrown away the least of them; so a count is at most too small, and a
prefix that is located often stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import nlargest

from lmkv.core.clock import Clock

KEPT = 512  # prefixes
MOST = 4 * KEPT  # between two ticks
HALF_LIFE = 600.0  # seconds after which a hit counts half


@dataclass(slots=True)
class HotPrefix:
    model: str
    tokens: int
    hits: float = 0.0


class HotPrefixes:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._halved = clock()
        self._counted: dict[bytes, HotPrefix] = {}

    def note(self, key: bytes, model: str, tokens: int) -> None:
        prefix = self._counted.get(key)
        if prefix is None:
            if len(self._counted) >= MOST:
                return
            prefix = self._counted[key] = HotPrefix(model, tokens)
        prefix.hits += 1

    def tick(self) -> None:
        if len(self._counted) > 2 * KEPT:
            self._counted = dict(nlargest(KEPT, self._counted.items(), _hits))
        if self._clock() - self._halved >= HALF_LIFE:
            self._halved = self._clock()
            for prefix in self._counted.values():
                prefix.hits /= 2

    def ranked(self) -> list[tuple[bytes, HotPrefix]]:
        """Most hits first."""
        return sorted(self._counted.items(), key=_hits, reverse=True)


def _hits(item: tuple[bytes, HotPrefix]) -> float:
    return item[1].hits
