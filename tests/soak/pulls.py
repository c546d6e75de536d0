"""Pulls by the real engine over the loopback transport: damage -> jobs -> every verdict checked.

The holder's slots stand still while a batch is pulled, so each verdict is known beforehand. Every
few batches a job goes to a peer of which something else is out of date.
"""

from __future__ import annotations

import itertools
import os
import random
import select
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

from lmkv import _native

from tests.soak.corruption import KINDS, Ask, Damage, draw, note_cuts
from tests.soak.slots import (
    EARLIER,
    GRANULES,
    OURS,
    THEIRS,
    Memory,
    Truth,
    generation,
    key,
    place,
)
from tests.soak.tally import GONE, GOOD, PEER_DEAD, Tally

SEGMENT, BATCH = 128, 128  # slots of a segment; cases of a batch, in every second slot of two
SLOTS = 3 * SEGMENT  # the third segment is not announced
PATH = "pull, loopback"
DEADLINE = 120.0
ENDING = 0.0003  # seconds into a job, at most
names = itertools.count()


@dataclass
class Cases:
    """Of one job: what is asked for, and where each goes."""

    rows: list[str]
    asks: list[Ask]
    own: list[int]
    counters: list[int]
    expected: list[frozenset[int]]
    stale: bool | None = None  # whether the peer must be called out of date; None: either


def mapped_writable(pool: _native.Pool, layout: _native.SlotLayout) -> _native.PoolMap:
    """The pool as its mover has it."""
    ours = _native.PoolMap(layout.granule_bytes, pool.slots, pool.segment_slots, 0, writable=True)
    for segment in range(pool.segments):
        fd = pool.segment_fd(segment)
        ours.add_segment(fd)
        os.close(fd)
    return ours


class Reader:
    """An engine, its own pool, and the check of what it says; of any transport."""

    def __init__(self, truth: Truth, transport: _native.Transport, slots: int) -> None:
        self.truth, self._layout = truth, truth.layout
        pool = _native.Pool(self._layout.granule_bytes, slots, slots)
        pool.add_segment()
        self._pool = mapped_writable(pool, self._layout)
        self.memory = Memory(self._pool.address, slots, self._layout)
        transport.register(self._pool.address, slots * self._layout.slot_bytes)
        self.engine = _native.PullEngine(transport, self._pool)
        self._jobs: dict[int, Cases] = {}
        self._next = itertools.count(1)
        self._counter = 0

    def counters(self, n: int) -> list[int]:
        """Of our own admissions: never used twice."""
        first, self._counter = self._counter + 1, self._counter + n
        return list(range(first, first + n))

    def post(self, peer: _native.PullPeer, cases: Cases, epoch: int = THEIRS) -> None:
        job = next(self._next)
        self._jobs[job] = cases
        n = len(cases.asks)
        self.engine.pull(
            job, peer, self._layout, epoch, OURS,
            b"".join(key(ask.n) for ask in cases.asks),
            b"".join(ask.place for ask in cases.asks),
            struct.pack(f"<{n}I", *(ask.counter for ask in cases.asks)),
            b"".join(place(own) for own in cases.own),
            struct.pack(f"<{n}I", *cases.counters),
            DEADLINE,
        )  # fmt: skip

    def finish(self, tally: Tally, path: str) -> None:
        """Wait for all jobs, and judge them."""
        while self._jobs:
            assert select.select([self.engine.fd], [], [], 2 * DEADLINE)[0], (
                f"{path}: {len(self._jobs)} jobs are never answered"
            )
            for event in self.engine.take():
                cases = self._jobs.pop(event.job)
                assert not event.limbo_ended and len(event.results) == len(cases.asks)
                wrong_stale = cases.stale is not None and event.stale != cases.stale
                for i, result in enumerate(event.results):
                    expected = frozenset() if wrong_stale else cases.expected[i]
                    right = self._right(cases, i, result)
                    tally.count((cases.rows[i], path), result, right, expected)

    def _right(self, cases: Cases, i: int, result: int) -> bool:
        ask, own, counter = cases.asks[i], cases.own[i], cases.counters[i]
        at, ours = self.memory.address(own), generation(OURS, counter)
        readable = _native.check_slot(at, self._layout, key(ask.n), ours) == GOOD
        if result != GOOD:
            return not readable
        return readable and self.memory.payload(own) == self.truth.payload(ask.n)


class Pulls:
    def __init__(self, truth: Truth, seed: int) -> None:
        self.random = random.Random(seed)
        layout = truth.layout
        self._layout = layout
        self._pool = _native.Pool(layout.granule_bytes, SLOTS, SEGMENT)
        self._other = _native.Pool(layout.granule_bytes, SEGMENT, SEGMENT)  # of another worker
        for _ in range(3):
            self._pool.add_segment()
        self._other.add_segment()
        memory = Memory(self._pool.address, SLOTS, layout)
        self.damage = Damage(memory, truth, 2 * SEGMENT, self.random)
        self._others = Damage(
            Memory(self._other.address, SEGMENT, layout), truth, SEGMENT, self.random
        )
        self._name, self._n = "", 0  # of the lie being told, and its chunks
        self._serve = self._transport()
        self._serve.register(self._other.address, SEGMENT * layout.slot_bytes)
        self._pull = _native.Transport("loopback", f"soak-pull-{next(names)}")
        self.reader = Reader(truth, self._pull, BATCH)
        self._peer = self.peer(self._serve)
        self._lies: dict[str, Callable[[], None]] = {
            "address of another pool": self._another_pool,
            "address of no pool": self._no_pool,
            "address a page away": self._page_away,
            "metadata of a mover that has ended": self._ended,
            "mover ends in the middle": self._ending,
            "metadata that is none": self._rubbish,
            "segments that are not known yet": self._fewer,
        }

    def _transport(self) -> _native.Transport:
        serve = _native.Transport("loopback", f"soak-serve-{next(names)}")
        serve.register(self._pool.address, SLOTS * self._layout.slot_bytes)
        return serve

    def peer(self, serve: _native.Transport | bytes, **changes: int) -> _native.PullPeer:
        metadata = serve if isinstance(serve, bytes) else serve.metadata()
        announced = {
            "address": self._pool.address,
            "granule_bytes": self._layout.granule_bytes,
            "segment_granules": SEGMENT * GRANULES,
            "usable_granules": 2 * SEGMENT * GRANULES,
        }
        return _native.PullPeer(f"peer{next(names)}", metadata, **(announced | changes))

    def run(self, tries: int, tally: Tally, progress: Callable[[int], None]) -> None:
        batches = 0
        while tries > 0:
            n = min(BATCH, tries)
            if batches % 6 == 5:
                n = self._n = min(8, n)
                self._name = self.random.choice(list(self._lies))
                self._lies[self._name]()
            else:
                self._batch(n)
            self.reader.finish(tally, PATH)
            progress(n)
            tries -= n
            batches += 1
        note_cuts(self.damage, tally)

    def _batch(self, n: int) -> None:
        slots = self.random.sample(range(0, 2 * SEGMENT, 2), n)
        drawn = draw(self.damage, list(KINDS), slots)
        own = self.random.sample(range(BATCH), n)
        at = 0
        while at < n:
            size = min(self.random.randint(1, 64), n - at)
            part = drawn[at : at + size]
            self.reader.post(
                self._peer,
                Cases(
                    [row for row, _ in part],
                    [ask for _, ask in part],
                    own[at : at + size],
                    self.reader.counters(size),
                    [frozenset({ask.expected}) for _, ask in part],
                ),
            )
            at += size

    # ------------------------------------------------------------ what is not true of the peer

    def _job(self, peer: _native.PullPeer, asks: list[Ask], expected: set[int],
             stale: bool | None) -> None:  # fmt: skip
        n = len(asks)
        self.reader.post(
            peer,
            Cases(
                [self._name] * n,
                asks,
                self.random.sample(range(BATCH), n),
                self.reader.counters(n),
                [frozenset(expected)] * n,
                stale,
            ),
        )

    def _intact(self, segment: int = 0) -> list[Ask]:
        slots = range(segment * SEGMENT, segment * SEGMENT + self._n)
        return [KINDS["none"](self.damage, slot, self.damage.chunk()) for slot in slots]

    def _another_pool(self) -> None:
        """Right chunks at the right places, of a life that this reader does not mean."""
        asks = [
            Ask(n, self._others.write(slot, n, EARLIER), place(slot), GONE)
            for slot in range(self._n)
            for n in [self.damage.chunk()]
        ]
        peer = self.peer(self._serve, address=self._other.address)
        self._job(peer, asks, {GONE}, stale=False)

    def _no_pool(self) -> None:
        away = self.random.choice([1 << 46, -(SLOTS * self._layout.slot_bytes)])
        peer = self.peer(self._serve, address=self._pool.address + away)
        self._job(peer, self._intact(), {PEER_DEAD}, stale=True)

    def _page_away(self) -> None:
        """What lies there is no header."""
        peer = self.peer(self._serve, address=self._pool.address + 4096)
        self._job(peer, self._intact(), {GONE}, stale=False)

    def _ended(self) -> None:
        mover = self._transport()
        peer = self.peer(mover)
        mover.close()
        self._job(peer, self._intact(), {PEER_DEAD}, stale=True)

    def _ending(self) -> None:
        mover = self._transport()
        self._job(self.peer(mover), self._intact(), {GOOD, PEER_DEAD}, stale=None)
        time.sleep(self.random.random() * ENDING)
        mover.close()

    def _rubbish(self) -> None:
        peer = self.peer(self.random.randbytes(40))
        self._job(peer, self._intact(), {PEER_DEAD}, stale=True)

    def _fewer(self) -> None:
        """Slots in a segment that the peer has since a data version which is not known here."""
        peer = self.peer(self._serve, usable_granules=SEGMENT * GRANULES)
        self._job(peer, self._intact(segment=1), {GONE}, stale=True)
