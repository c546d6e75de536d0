"""How long to wait before a child process that has died is started again."""

from __future__ import annotations

from collections.abc import Callable


class Backoff:
    """`first` seconds for the first restart, then 0.1 s doubling to 10 s; a life of `healthy`
    seconds makes it forget."""

    FIRST, LAST = 0.1, 10.0

    def __init__(self, clock: Callable[[], float], healthy: float, first: float = 0.0) -> None:
        self._clock = clock
        self._healthy = healthy
        self._first = first
        self._born = clock()
        self.next = first  # what a death now would make wait, if this life is short

    def born(self) -> None:
        self._born = self._clock()

    def died(self) -> float:
        """Seconds to wait before the next one."""
        if self._clock() - self._born >= self._healthy:
            self.next = self._first
        delay = self.next
        self.next = min(max(self.next * 2, self.FIRST), self.LAST)
        return delay
