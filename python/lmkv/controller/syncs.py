"""Which instances are in a full sync: `at_once` at most, the others wait their turn.

want() -> start() -> progress() ... end(); drop() when the instance is gone. A sync that stands
still for `timeout` seconds goes back to the end of the queue, and so does one whose instance lives
and yet states nothing (`beat`): the question, or the answer, was lost. An instance begins one at
most every `pause` seconds, so that one that is always wrong cannot keep the controller busy.
"""

from __future__ import annotations

from dataclasses import dataclass

from lmkv.core.clock import Clock

BEATS = 2  # pauses are a heartbeat long
WELCOME = 0  # the number of the sync that `Welcome` asks for


@dataclass
class Running:
    number: int
    reason: str
    moved: float  # when something of it came


class Syncs:
    def __init__(self, at_once: int, timeout: float, pause: float, clock: Clock) -> None:
        self._at_once = at_once
        self._timeout = timeout
        self._pause = pause
        self._clock = clock
        self._running: dict[str, Running] = {}
        self._waiting: dict[str, str] = {}  # name: reason, in the order of asking
        self._begun: dict[str, float] = {}
        self._number = WELCOME

    @property
    def running(self) -> int:
        return len(self._running)

    def __len__(self) -> int:
        """Those that run or wait."""
        return len(self._running) + len(self._waiting)

    def __contains__(self, name: str) -> bool:
        """Whether it runs or waits."""
        return name in self._running or name in self._waiting

    def welcome(self, name: str) -> bool:
        """Begin at once, with `Welcome`; False: it waits."""
        self.drop(name)
        if len(self._running) >= self._at_once:
            self._waiting[name] = "new"
            return False
        self._begin(name, WELCOME, "new")
        return True

    def want(self, name: str, reason: str) -> None:
        """Whatever runs for `name` is worth nothing; another one is due."""
        self._running.pop(name, None)
        self._waiting.setdefault(name, reason)

    def start(self) -> list[tuple[str, int, str]]:
        """(name, number, reason) of those whose turn it is."""
        if not self._waiting or len(self._running) >= self._at_once:  # asked with every message
            return []
        now, started = self._clock(), []
        for name, reason in list(self._waiting.items()):
            if len(self._running) >= self._at_once:
                break
            if now - self._begun.get(name, float("-inf")) < self._pause:
                continue
            del self._waiting[name]
            self._number += 1
            self._begin(name, self._number, reason)
            started.append((name, self._number, reason))
        return started

    def progress(self, name: str, number: int) -> bool:
        """A slice has come; False: of a sync that does not run."""
        running = self._running.get(name)
        if running is None or running.number != number:
            return False
        running.moved = self._clock()
        return True

    def beat(self, name: str) -> None:
        """A heartbeat has come, and slices come before heartbeats: by the second one without any,
        none is under way."""
        running = self._running.get(name)
        if running is not None and self._clock() - running.moved >= BEATS * self._pause:
            self.want(name, running.reason)

    def end(self, name: str) -> None:
        self._running.pop(name, None)

    def expire(self) -> None:
        now = self._clock()
        for name, running in list(self._running.items()):
            if now - running.moved > self._timeout:
                del self._running[name]
                self._waiting[name] = running.reason

    def drop(self, name: str) -> None:
        self._running.pop(name, None)
        self._waiting.pop(name, None)
        self._begun.pop(name, None)

    def _begin(self, name: str, number: int, reason: str) -> None:
        self._begun[name] = now = self._clock()
        self._running[name] = Running(number, reason, now)
