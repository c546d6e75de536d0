"""What happened lately, for whoever asks: add() -> ask() answers at once or later, by due().

A question after the newest event waits, one a connection, until there is one or its time is over.
Both the history and the questions are bounded: an event that nobody has asked for in time is lost,
and `first` says so.
"""

from __future__ import annotations

from collections import deque
from itertools import islice

from lmkv.core.clock import Clock
from lmkv.core.messages import Event, Events, Subscribe

KEPT = 4096  # events
SENT = 256  # at most, in one answer
WAITING = 1024  # questions
LONGEST = 30.0  # seconds that one waits


class History:
    def __init__(self, epoch: int, clock: Clock) -> None:
        self._epoch = epoch
        self._clock = clock
        self._last = 0
        self._kept: deque[tuple[int, str, str, str, float, str]] = deque(maxlen=KEPT)
        self._waiting: dict[bytes, tuple[Subscribe, float]] = {}  # and when it must be answered
        self._next = float("inf")  # the earliest of these, or now when something has happened

    def add(self, kind: str, instance: str, text: str = "", job: str = "") -> None:
        self._last += 1
        self._kept.append((self._last, kind, instance, text, self._clock(), job))
        self._next = 0.0

    def ask(self, connection: bytes, question: Subscribe) -> Events | None:
        """None: it waits."""
        self._waiting.pop(connection, None)
        wait = min(question.wait, LONGEST)
        if question.after != self._last or not wait or len(self._waiting) >= WAITING:
            return self._answer(question)
        until = self._clock() + wait
        self._waiting[connection] = question, until
        self._next = min(self._next, until)
        return None

    def due(self) -> list[tuple[bytes, Events]]:
        """The answers to questions that have waited long enough."""
        if not self._waiting or (now := self._clock()) < self._next:
            return []
        out = []
        for connection, (question, until) in list(self._waiting.items()):
            if question.after != self._last or now >= until:
                del self._waiting[connection]
                out.append((connection, self._answer(question)))
        self._next = min((until for _, until in self._waiting.values()), default=float("inf"))
        return out

    def _answer(self, question: Subscribe) -> Events:
        now = self._clock()
        first = self._kept[0][0] if self._kept else self._last + 1
        skipped = min(max(0, question.after + 1 - first), len(self._kept))
        found = [
            Event(number, kind, instance, text, now - at, job)
            for number, kind, instance, text, at, job in islice(self._kept, skipped, skipped + SENT)
        ]
        return Events(question.request, self._epoch, first, self._last, found)
