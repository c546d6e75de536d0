"""The controller's events as server-sent events: run() follows them, open() serves a reader.

An id is `EPOCH-NUMBER` of the controller's life. A reader that says the last one it had gets what
came since. Where that cannot be had (another life, too long ago, a reader too slow) it gets
`reset`: what follows is not what it had, so it should ask for everything anew. Nothing is kept for
a reader but its place.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from itertools import islice

from lmkv.core.client import Unreachable
from lmkv.core.clock import Clock, monotonic
from lmkv.core.messages import Event, Events
from lmkv.web.cluster_view import ClusterView
from lmkv.web.errors import Problem

KEPT = 4096  # events
READERS = 256
WAIT = 10.0  # seconds that a question waits at the controller
PAUSE = 0.5  # after one that was not answered
QUIET = 15.0  # then a comment says that the connection is alive


class Hub:
    def __init__(self, view: ClusterView, clock: Clock = monotonic) -> None:
        self._view = view
        self._clock = clock
        self._epoch = 0
        self._last = 0
        self._kept: deque[tuple[int, Event, float]] = deque(maxlen=KEPT)  # and when it happened
        self._reachable = False
        self._closed = False
        self._readers = 0
        self._news = asyncio.Event()  # set once, then another one takes its place

    async def run(self) -> None:
        """Follow the controller until cancelled."""
        while True:
            wait = WAIT if self._reachable else 0.0
            self._reachable = await self._follow(wait)
            if not self._reachable:
                await asyncio.sleep(PAUSE)

    async def _follow(self, wait: float) -> bool:
        try:
            self._take(await self._view.events(self._last, wait))
        except (Unreachable, Problem):
            return False
        return True

    def _take(self, answer: Events) -> None:
        if answer.epoch != self._epoch:
            asked, self._epoch, self._last = self._last, answer.epoch, 0
            self._kept.clear()
            if asked:  # they were counted from a number of another life
                self._wake()
                return
        if not answer.events and answer.last == self._last:
            return
        now = self._clock()
        self._kept.extend((each.id, each, now - each.age) for each in answer.events)
        self._last = answer.events[-1].id if answer.events else answer.last
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def recent(self, count: int, instance: str = "") -> list[tuple[Event, float]]:
        """The last events, of one instance where it is named, with their age; newest first."""
        now = self._clock()
        newest = ((each, now - at) for _, each, at in reversed(self._kept))
        mine = (kept for kept in newest if instance in ("", kept[0].instance))
        return list(islice(mine, count))

    async def wait(self, seconds: float) -> None:
        """Until something has happened, or so long."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._news.wait(), seconds)

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """All streams end."""
        self._closed = True
        self._wake()

    # ------------------------------------------------------------ readers

    def open(self, last_id: str, history: int) -> AsyncIterator[str]:
        """The stream of a reader that had `last_id`, or begins `history` events ago."""
        if not self._reachable:
            raise Unreachable("the controller does not answer")
        if self._readers >= READERS:
            raise Problem(503, "too_many", f"{READERS} readers of events are served at once")
        if not last_id:
            return self._stream(self._epoch, max(0, self._last - history), "start")
        found = re.fullmatch(r"([0-9a-f]{16})-([0-9]{1,19})", last_id)
        if found is None:
            text = f"last-event-id {last_id[:64]!r}: allowed is what an event had as its id"
            raise Problem(400, "field", text, "last-event-id")
        return self._stream(int(found[1], 16), int(found[2]), "")

    async def _stream(self, epoch: int, after: int, greeting: str) -> AsyncIterator[str]:
        self._readers += 1
        try:
            yield "retry: 1000\n\n"
            if greeting:
                yield self._greet(greeting, after)
            while not self._closed:
                news, first = self._news, self._first
                if epoch != self._epoch or after + 1 < first or after > self._last:
                    epoch, after = self._epoch, first - 1
                    yield self._greet("reset", after)
                elif after < self._last:
                    fresh = [each for each in self._kept if each[0] > after]
                    after = fresh[-1][0]
                    yield "".join(map(self._text, fresh))
                else:
                    try:
                        await asyncio.wait_for(news.wait(), QUIET)
                    except asyncio.TimeoutError:
                        yield ": quiet\n\n"
        finally:
            self._readers -= 1

    @property
    def _first(self) -> int:
        return self._kept[0][0] if self._kept else self._last + 1

    def _greet(self, kind: str, after: int) -> str:
        return self._format(after, Event(0, kind), 0.0)

    def _text(self, kept: tuple[int, Event, float]) -> str:
        number, event, at = kept
        age = self._clock() - at
        return self._format(number, event, age)

    def _format(self, number: int, event: Event, age: float) -> str:
        names = ("kind", "instance", "text", "job") if event.job else ("kind", "instance", "text")
        data = {name: getattr(event, name) for name in names} | {"age": round(age, 3)}
        head = f"id: {self._epoch:016x}-{number}\nevent: {event.kind}"
        return f"{head}\ndata: {json.dumps(data)}\n\n"
