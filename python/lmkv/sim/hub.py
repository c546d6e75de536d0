"""One thread's wait for many agents: their sockets, and times.

    link(address, wake) -> a Link whose `wake` is called when it has something
    after(seconds, job); turn(longest) waits once and calls what is due

ZMQ tells by a socket's descriptor only that something has changed since the socket was last asked:
so a link is asked when its descriptor is readable, and again by `look_again` after it was used.
"""

from __future__ import annotations

import heapq
import select
from collections import deque
from collections.abc import Callable, Iterator
from itertools import count

import zmq

from lmkv.agent.links import Link
from lmkv.core.clock import Clock
from lmkv.core.keyfiles import ClientKeys
from lmkv.core.messages import AnyMessage

READABLE, WRITABLE = int(zmq.POLLIN), int(zmq.POLLOUT)  # enums are slow
BATCH = 8  # ordinary jobs between two looks for urgent ones

Job = Callable[[], None]


class HubLink(Link):
    """A DEALER that a `Hub` waits for."""

    def __init__(self, address: str, hub: Hub, wake: Job, urgent: bool) -> None:
        super().__init__(address, hub.keys)
        self.wake, self.urgent = wake, urgent
        self.waits = False  # its `wake` is about to be called
        self._hub = hub
        self.full = False  # could not send
        self._used = False  # received from
        descriptor = self.socket.getsockopt(zmq.FD)
        assert isinstance(descriptor, int)
        self.descriptor = descriptor
        hub.watch(self)

    @property
    def has_something(self) -> bool:
        """A message, or room where there was none."""
        events = int(self.socket.getsockopt(zmq.EVENTS))
        return bool(events & READABLE or (self.full and events & WRITABLE))

    def send_frames(self, frames: list[bytes]) -> bool:
        self.full = not super().send_frames(frames)
        return not self.full

    def receive(self, limit: int = 256) -> Iterator[tuple[AnyMessage, list[bytes]]]:
        self._used = True
        return super().receive(limit)

    def look_again(self) -> None:
        """To be called after what may have used it: what has come meanwhile is not told again. What
        nobody has asked for since stays where it is."""
        if (self._used or self.full) and not self.socket.closed:
            self._used = False
            self._hub.look(self)

    def close(self) -> None:
        self._hub.unwatch(self)
        super().close()


class Hub:
    def __init__(self, clock: Clock, keys: ClientKeys | None = None) -> None:
        """`keys`: of all its links, where controllers ask for them."""
        self.clock = clock
        self.keys = keys
        self.late: deque[float] = deque(maxlen=1 << 16)  # seconds that timed jobs waited too long
        self._epoll = select.epoll()
        self._links: dict[int, HubLink] = {}
        self._urgent: deque[HubLink] = deque()
        self._ready: deque[HubLink] = deque()
        self._times: list[tuple[float, int, Job]] = []
        self._numbers = count()

    def watch(self, link: HubLink) -> None:
        self._links[link.descriptor] = link
        self._epoll.register(link.descriptor, select.EPOLLIN)

    def unwatch(self, link: HubLink) -> None:
        if self._links.get(link.descriptor) is link:
            del self._links[link.descriptor]
            self._epoll.unregister(link.descriptor)

    def after(self, seconds: float, job: Job) -> None:
        heapq.heappush(self._times, (self.clock() + seconds, next(self._numbers), job))

    def look(self, link: HubLink) -> None:
        """Its wake is due where it has something."""
        if not link.waits and link.has_something:
            link.waits = True
            (self._urgent if link.urgent else self._ready).append(link)

    def turn(self, longest: float) -> None:
        """Wait for at most so many seconds, then call what is due: what is urgent first."""
        wait = longest
        if self._ready or self._urgent:
            wait = 0.0
        elif self._times:
            wait = min(wait, max(0.0, self._times[0][0] - self.clock()))
        for descriptor, _ in self._epoll.poll(wait, 4096):
            if descriptor in self._links:
                self.look(self._links[descriptor])
        while self._urgent:
            self._wake(self._urgent.popleft())
        self._call_due()
        for _ in range(min(BATCH, len(self._ready))):
            self._wake(self._ready.popleft())

    def _wake(self, link: HubLink) -> None:
        link.waits = link.full = False  # who still has something to send finds out again
        if not link.socket.closed:
            link.wake()

    def _call_due(self) -> None:
        for _ in range(BATCH):
            now = self.clock()
            if not self._times or self._times[0][0] > now:
                return
            at, _, job = heapq.heappop(self._times)
            self.late.append(now - at)
            job()

    def close(self) -> None:
        self._epoll.close()
