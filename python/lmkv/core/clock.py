"""Time as a parameter: whoever waits or ages takes a `Clock`, so that a test can move it.

A clock is called for seconds that never go back; only differences mean anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], float]
monotonic: Clock = time.monotonic


class ManualClock:
    """A clock that stands still until `advance`."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        if seconds < 0:
            raise ValueError(f"a clock cannot go back by {-seconds} s")
        self.now += seconds


class Deadline:
    """A point in time `seconds` from now on `clock`."""

    def __init__(self, seconds: float, clock: Clock = monotonic) -> None:
        self._clock = clock
        self._end = clock() + seconds

    def left(self) -> float:
        """Seconds left, at least 0."""
        return max(0.0, self._end - self._clock())

    @property
    def over(self) -> bool:
        return self._clock() >= self._end
