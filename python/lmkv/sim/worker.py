"""A worker and a mover without bytes: what is in each slot is a number, and copies take time.

The agent talks to them as to real ones, by messages over links inside this process. A slot has what
was stored or pulled under its counter until it is reserved again; a pull finds at its end whether
the holder's slot still has what was announced, as a real one does by the slot's header.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from lmkv.agent.links import Link
from lmkv.agent.refusals import ignore
from lmkv.core import wire
from lmkv.core.messages import (
    AnyMessage,
    Attach,
    Check,
    Checked,
    Compress,
    Compressed,
    HostIdentity,
    Limbo,
    LimboEnded,
    Message,
    Pull,
    Pulled,
    PullResult,
    RankInfo,
    Stored,
    WorkerState,
)
from lmkv.core.steps import Load, LoadResult, Store

if TYPE_CHECKING:
    from lmkv.sim.hub import Hub

CONTROL, MOVER = "sim://worker", "sim://mover"
PLACE, COUNTER = wire.PLACE_BYTES, wire.COUNTER_BYTES

Told = tuple[AnyMessage, list[bytes]]


@dataclass(frozen=True)
class Rates:
    """Bytes per second."""

    pull: float
    copy: float
    latency: float = 0.001  # seconds before a pull's first byte


class InnerLink(Link):
    """Of the agent, to somebody in this process; `hear` takes what is sent, at once."""

    def __init__(self, address: str, hear: Callable[[Message, list[bytes]], None]) -> None:
        self.address = address
        self.refuse = ignore
        self._hear = hear
        self._told: deque[Told] = deque()

    def send(self, message: Message, *arrays: bytes) -> bool:
        self._hear(message, list(arrays))
        return True

    def send_frames(self, frames: list[bytes]) -> bool:
        message, arrays = wire.decode(frames)
        return self.send(message, *arrays)

    def say(self, message: AnyMessage, *arrays: bytes) -> None:
        """To the agent, which receives it when it next looks."""
        self._told.append((message, list(arrays)))

    def receive(self, limit: int = 256) -> Iterator[Told]:
        while self._told:
            yield self._told.popleft()

    def close(self) -> None:
        pass


class Worker:
    """`on_stored` hears of each chunk, by instance and key, that is about to be announced. `wake`
    says that the agent should look at its links; `find` gives another instance's worker by name
    and epoch, None when it is gone."""

    def __init__(
        self,
        name: str,
        chunk_bytes: int,
        hub: Hub,
        rates: Rates,
        wake: Callable[[], None],
        find: Callable[[str, int], Worker | None],
    ) -> None:
        self.info = RankInfo(0, HostIdentity(name, 1, 1), nixl_metadata=b"simulated")
        self.holds: dict[int, int] = {}  # counters by first granule
        self.on_stored: Callable[[str, bytes], None] = lambda name, key: None
        self._name = name
        self._chunk_bytes = chunk_bytes
        self._hub = hub
        self._rates = rates
        self._wake = wake
        self._find = find
        self._free = 0.0  # when the link has brought all that was asked for
        self._limbo: set[int] = set()  # jobs past their deadline
        self._control = InnerLink(CONTROL, self._hear_control)
        self._mover = InnerLink(MOVER, self._hear_mover)

    def link(self, address: str) -> InnerLink | None:
        """None: that is not of ours."""
        return {CONTROL: self._control, MOVER: self._mover}.get(address)

    # ------------------------------------------------------------ worker

    def _hear_control(self, message: Message, frames: list[bytes]) -> None:
        if isinstance(message, Attach):
            state = WorkerState(0, message.epoch, 0, self.info, MOVER, 1, local_segments=1)
            self._control.say(state)
            self._wake()
        elif isinstance(message, Check):
            _, places, counters = frames
            right = (self.holds.get(slot) == counter for slot, counter in _slots(places, counters))
            results = bytes(PullResult.GOOD if each else PullResult.GONE for each in right)
            self._control.say(Checked(0, message.job), results)
            self._wake()

    def store(self, store: Store) -> None:
        self.holds.pop(_granule(store.place), None)
        self._hub.after(self._chunk_bytes / self._rates.copy, partial(self._stored, store))

    def _stored(self, store: Store) -> None:
        self.holds[_granule(store.place)] = store.counter
        self._control.say(Stored(0, store.job), b"", b"", b"\1")
        self._wake()
        self.on_stored(self._name, store.key)

    def load(self, load: Load, done: Callable[[LoadResult], None]) -> None:
        size = len(load.chunks) * self._chunk_bytes
        result = LoadResult(len(load.chunks), seconds=size / self._rates.copy, bytes=size)
        self._hub.after(result.seconds, partial(done, result))

    # ------------------------------------------------------------ mover

    def _hear_mover(self, message: Message, frames: list[bytes]) -> None:
        if isinstance(message, Pull):
            self._pull(message, frames)
        elif isinstance(message, Limbo) and message.job not in self._limbo:
            self._mover.say(LimboEnded(0, message.job))
        elif isinstance(message, Compress):  # no bytes, none that could be fewer
            n = len(frames[0]) // wire.KEY_BYTES
            self._say(Compressed(0, message.job), bytes([PullResult.GOOD]) * n, bytes(n))

    def _pull(self, pull: Pull, frames: list[bytes]) -> None:
        keys, places, counters, own, own_counters = frames
        n = len(keys) // wire.KEY_BYTES
        theirs, ours = list(_slots(places, counters)), list(_slots(own, own_counters))
        for granule, _ in ours:
            self.holds.pop(granule, None)
        now, size = self._hub.clock(), n * self._chunk_bytes
        begin = max(now, self._free)
        self._free = begin + size / self._rates.pull
        seconds = self._free - now + self._rates.latency
        if seconds <= pull.deadline:
            self._hub.after(seconds, partial(self._pulled, pull, theirs, ours, seconds))
            return
        self._limbo.add(pull.job)
        late = Pulled(0, pull.job, pull.deadline)
        results = bytes([PullResult.TIMEOUT]) * n
        self._hub.after(pull.deadline, partial(self._say, late, results))
        self._hub.after(seconds, partial(self._landed, pull.job))

    def _pulled(
        self,
        pull: Pull,
        theirs: list[tuple[int, int]],
        ours: list[tuple[int, int]],
        seconds: float,
    ) -> None:
        holder = self._find(pull.peer.instance, pull.peer.epoch)
        results = bytearray()
        for slot, own in zip(theirs, ours, strict=True):
            if holder is None:
                results.append(PullResult.PEER_DEAD)
            elif holder.holds.get(slot[0]) == slot[1]:
                results.append(PullResult.GOOD)
                self.holds[own[0]] = own[1]
            else:
                results.append(PullResult.GONE)
        size = results.count(PullResult.GOOD) * self._chunk_bytes
        self._say(Pulled(0, pull.job, seconds, size, stale=holder is None), bytes(results))

    def _landed(self, job: int) -> None:
        self._limbo.discard(job)
        self._say(LimboEnded(0, job))

    def _say(self, message: AnyMessage, *arrays: bytes) -> None:
        self._mover.say(message, *arrays)
        self._wake()


def _granule(place: bytes) -> int:
    return int.from_bytes(place[:4], "little")


def _slots(places: bytes, counters: bytes) -> Iterator[tuple[int, int]]:
    """(first granule, counter) of each."""
    for i in range(len(places) // PLACE):
        counter = counters[i * COUNTER : (i + 1) * COUNTER]
        yield _granule(places[i * PLACE :]), int.from_bytes(counter, "little")
