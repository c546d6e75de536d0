"""Names of peers as values of a label: few at a time, short, and printable.

    labels.of(name)     its label, or `other` while there are as many as may be
    labels.take_gone()  labels that are none any more: their series can be removed

Peers make up their names, and a new one with each start, so a label that was not used for `idle`
seconds makes room. Whatever counts under `other` stays there.
"""

from __future__ import annotations

from collections.abc import Callable

from lmkv.core.metrics import OTHER
from lmkv.core.text import printable

MOST = 32
LONGEST = 128  # characters
IDLE = 600.0  # seconds


class PeerLabels:
    def __init__(
        self, clock: Callable[[], float], most: int = MOST, idle: float | None = IDLE
    ) -> None:
        """`idle` None: a label is for ever, where series cannot be removed."""
        self._clock = clock
        self._most = most
        self._idle = idle
        self._used: dict[str, float] = {}  # label: when; the one used last at the end
        self._gone: list[str] = []

    def of(self, name: str) -> str:
        label = as_label(name)
        if label not in self._used and not self._room():
            return OTHER
        self._used.pop(label, None)
        self._used[label] = self._clock()
        return label

    def _room(self) -> bool:
        if len(self._used) < self._most:
            return True
        oldest = next(iter(self._used))
        if self._idle is None or self._clock() - self._used[oldest] < self._idle:
            return False
        del self._used[oldest]
        self._gone.append(oldest)
        return True

    def take_gone(self) -> list[str]:
        gone, self._gone = self._gone, []
        return gone


def as_label(name: str) -> str:
    return printable(name)[:LONGEST]
