"""A worker and a mover without bytes: what is in each slot is a number, and copies take time.

The agent talks to them as to real ones, by messages over links inside this process. A slot has what
was stored or pulled under its counter until something is written over a part of it; a pull finds at
its end whether the holder's slot still has what was announced, as a real one does by the slot's
header. Every chunk is compressed to the same number of granules.
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
from lmkv.core.geometry import GRANULES_A_SLOT
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
    Rewrite,
    Rewritten,
    Stored,
    WorkerState,
)
from lmkv.core.steps import Load, LoadResult, Store

if TYPE_CHECKING:
    from lmkv.sim.hub import Hub

CONTROL, MOVER = "sim://worker", "sim://mover"
PLACE, COUNTER = wire.PLACE_BYTES, wire.COUNTER_BYTES
SHRUNK = 12  # granules of a compressed slot

Told = tuple[AnyMessage, list[bytes]]
Hear = Callable[["InnerLink", Message, list[bytes]], None]
Say = Callable[..., None]  # a message and its arrays


@dataclass(frozen=True)
class Rates:
    """Bytes per second."""

    pull: float
    copy: float
    latency: float = 0.001  # seconds before a pull's first byte


class InnerLink(Link):
    """Of the agent, to somebody in this process; `hear` takes what is sent, at once, and whom to
    answer."""

    def __init__(self, address: str, hear: Hear) -> None:
        self.address = address
        self.refuse = ignore
        self._hear = hear
        self._told: deque[Told] = deque()

    def send(self, message: Message, *arrays: bytes) -> bool:
        self._hear(self, message, list(arrays))
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
        self._granules: dict[int, int] = {}  # that they take, by the first
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

    def link(self, address: str) -> InnerLink | None:
        """None: that is not of ours. Whoever asks the mover has a link of his own."""
        if address == MOVER:
            return InnerLink(MOVER, self._hear_mover)
        return self._control if address == CONTROL else None

    # ------------------------------------------------------------ worker

    def _hear_control(self, link: InnerLink, message: Message, frames: list[bytes]) -> None:
        if isinstance(message, Attach):
            state = WorkerState(0, message.epoch, 0, self.info, MOVER, 1, local_segments=1)
            self._say(link, state)
        elif isinstance(message, Check):
            self._say(link, Checked(0, message.job), self._found(*frames[1:]))

    def store(self, store: Store) -> None:
        self._overwrite(store.place)
        self._hub.after(self._chunk_bytes / self._rates.copy, partial(self._stored, store))

    def _stored(self, store: Store) -> None:
        self._write(store.place, store.counter)
        self._say(self._control, Stored(0, store.job), b"", b"", b"\1")
        self.on_stored(self._name, store.key)

    def load(self, load: Load, done: Callable[[LoadResult], None]) -> None:
        size = len(load.chunks) * self._chunk_bytes
        result = LoadResult(len(load.chunks), seconds=size / self._rates.copy, bytes=size)
        self._hub.after(result.seconds, partial(done, result))

    # ------------------------------------------------------------ mover

    def _hear_mover(self, link: InnerLink, message: Message, frames: list[bytes]) -> None:
        say = partial(self._say, link)
        if isinstance(message, Pull):
            self._pull(say, message, frames)
        elif isinstance(message, Limbo) and message.job not in self._limbo:
            say(LimboEnded(0, message.job))
        elif isinstance(message, Compress):
            results = self._found(*frames[1:])
            sizes = bytes([SHRUNK]) * len(results)
            answer = partial(say, Compressed(0, message.job), results, sizes)
            self._hub.after(self._bytes(frames[1]) / self._rates.copy, answer)
        elif isinstance(message, Rewrite):
            self._overwrite(frames[3])
            seconds = self._bytes(frames[3]) / self._rates.copy
            self._hub.after(seconds, partial(self._rewritten, say, message, frames))

    def _pull(self, say: Say, pull: Pull, frames: list[bytes]) -> None:
        _, places, _, own, _ = frames
        self._overwrite(own)
        now, begin = self._hub.clock(), max(self._hub.clock(), self._free)
        self._free = begin + self._bytes(places) / self._rates.pull
        seconds = self._free - now + self._rates.latency
        if seconds <= pull.deadline:
            self._hub.after(seconds, partial(self._pulled, say, pull, frames, seconds))
            return
        self._limbo.add(pull.job)
        late = Pulled(0, pull.job, pull.deadline)
        results = bytes([PullResult.TIMEOUT]) * (len(places) // PLACE)
        self._hub.after(pull.deadline, partial(say, late, results))
        self._hub.after(seconds, partial(self._landed, say, pull.job))

    def _pulled(self, say: Say, pull: Pull, frames: list[bytes], seconds: float) -> None:
        _, places, counters, own, own_counters = frames
        holder = self._find(pull.peer.instance, pull.peer.epoch)
        if holder is None:
            results = bytes([PullResult.PEER_DEAD]) * (len(places) // PLACE)
        else:
            results = holder._found(places, counters)
        size = self._bytes(self._take(results, own, own_counters))
        say(Pulled(0, pull.job, seconds, size, stale=holder is None), results)

    def _landed(self, say: Say, job: int) -> None:
        self._limbo.discard(job)
        say(LimboEnded(0, job))

    def _rewritten(self, say: Say, asked: Rewrite, frames: list[bytes]) -> None:
        _, places, counters, own, own_counters = frames
        results = self._found(places, counters)
        self._take(results, own, own_counters)
        say(Rewritten(0, asked.job), results)

    def _say(self, link: InnerLink, message: AnyMessage, *arrays: bytes) -> None:
        link.say(message, *arrays)
        self._wake()

    # ------------------------------------------------------------ slots

    def _found(self, places: bytes, counters: bytes) -> bytes:
        """Results: what has that counter is good."""
        right = (self.holds.get(slot) == counter for slot, counter in _slots(places, counters))
        return bytes(PullResult.GOOD if each else PullResult.GONE for each in right)

    def _take(self, results: bytes, places: bytes, counters: bytes) -> bytes:
        """What is good comes to these places, which are answered."""
        taken = b""
        for i, (_, counter) in enumerate(_slots(places, counters)):
            if results[i] == PullResult.GOOD:
                taken += places[i * PLACE : (i + 1) * PLACE]
                self._write(taken[-PLACE:], counter)
        return taken

    def _write(self, place: bytes, counter: int) -> None:
        self.holds[_granule(place)] = counter
        self._granules[_granule(place)] = place[4]

    def _overwrite(self, places: bytes) -> None:
        """Whatever has a granule of these places is gone."""
        for at in range(0, len(places), PLACE):
            first = _granule(places[at:])
            for granule in range(first - GRANULES_A_SLOT + 1, first + places[at + 4]):
                if granule + self._granules.get(granule, GRANULES_A_SLOT) > first:
                    self.holds.pop(granule, None)

    def _bytes(self, places: bytes) -> int:
        return sum(places[4::PLACE]) * self._chunk_bytes // GRANULES_A_SLOT


def _granule(place: bytes) -> int:
    return int.from_bytes(place[:4], "little")


def _slots(places: bytes, counters: bytes) -> Iterator[tuple[int, int]]:
    """(first granule, counter) of each."""
    for i in range(len(places) // PLACE):
        counter = counters[i * COUNTER : (i + 1) * COUNTER]
        yield _granule(places[i * PLACE :]), int.from_bytes(counter, "little")
