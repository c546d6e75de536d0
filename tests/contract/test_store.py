"""What a slot table promises to those who store and pull, run on the table alone.

A store: reserve, each rank gathers and reports, admit when all have. A pull: reserve, READs on each
rank, admit what all ranks have good; what timed out waits in limbo until every READ has ended. A
scripted pool stands for the ranks' memory: it notes who writes to which slot, and when.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from lmkv._native import SlotTable

RANKS = 2


def keys(*numbers: int) -> bytes:
    return b"".join(n.to_bytes(16, "little") for n in numbers)


def split(data: bytes, size: int) -> list[bytes]:
    return [data[i : i + size] for i in range(0, len(data), size)]


@dataclass
class Job:
    names: list[int]
    places: bytes
    counters: bytes
    waiting: set[int] = field(default_factory=lambda: set(range(RANKS)))
    bad: set[int] = field(default_factory=set)  # indices that a rank could not do


class Store:
    """The agent's part in small: jobs on a table, and what the ranks' memory would hold."""

    def __init__(self, slots: int) -> None:
        self.table = SlotTable(slots, slots)
        self.table.grow(slots)
        self.now = 0.0
        self.memory: list[dict[bytes, int]] = [{} for _ in range(RANKS)]  # place -> name
        self.writers: dict[bytes, Job] = {}

    def begin(self, *names: int) -> Job | None:
        self.now += 1.0
        got = self.table.reserve(keys(*names), self.now)
        if got is None:
            return None
        job = Job(list(names), *got)
        for place in split(job.places, 8):
            assert place not in self.writers, "two jobs write to one slot"
            self.writers[place] = job
        return job

    def report(self, job: Job, rank: int, bad: tuple[int, ...] = ()) -> int:
        """A rank has written its part; with the last one the good slots are admitted."""
        for place, name in zip(split(job.places, 8), job.names):
            self.memory[rank][place] = name
        job.waiting.discard(rank)
        job.bad |= set(bad)
        return 0 if job.waiting else self.finish(job)

    def finish(self, job: Job) -> int:
        places, counters = split(job.places, 8), split(job.counters, 4)
        good = [i for i in range(len(places)) if i not in job.bad]
        failed = [i for i in range(len(places)) if i in job.bad]
        self.table.abort(*(b"".join(a[i] for i in failed) for a in (places, counters)))
        for place in places:
            del self.writers[place]
        return self.table.admit(*(b"".join(a[i] for i in good) for a in (places, counters)))

    def time_out(self, job: Job) -> None:
        self.table.abort(job.places, job.counters, limbo=True)

    def reads_ended(self, job: Job) -> None:
        for place in split(job.places, 8):
            del self.writers[place]
        self.table.end_limbo(job.places, job.counters)

    def check(self, *names: int) -> int:
        """A hit is right in every rank's memory."""
        found = self.table.lookup(keys(*names))
        places, _, n = self.table.places(keys(*names))
        assert n == found
        for place, name in zip(split(places, 8), names):
            assert all(memory[place] == name for memory in self.memory)
        return found


@pytest.fixture
def store() -> Store:
    return Store(4)


def test_a_slot_is_readable_when_all_ranks_have_it(store: Store) -> None:
    job = store.begin(1, 2)
    store.report(job, 0)
    assert store.check(1, 2) == 0
    assert store.report(job, 1) == 2
    assert store.check(1, 2) == 2


def test_one_ranks_failure_shortens_the_prefix(store: Store) -> None:
    job = store.begin(1, 2, 3)
    store.report(job, 0, bad=(1,))
    assert store.report(job, 1) == 2
    assert store.check(1, 2, 3) == 1
    again = store.begin(2)
    store.report(again, 0)
    store.report(again, 1)
    assert store.check(1, 2, 3) == 3


def test_a_slot_that_a_read_may_still_reach_is_not_given_out(store: Store) -> None:
    slow = store.begin(1, 2)
    store.time_out(slow)
    for name in range(10, 20):  # more than the pool holds: all reuse the two other slots
        job = store.begin(name)
        assert job is not None
        for rank in range(RANKS):
            store.report(job, rank)
        assert store.check(name) == 1
    assert store.begin(21, 22, 23) is None
    store.report(slow, 0)  # lands late, into limbo
    assert store.table.lookup(keys(1)) == 0
    store.reads_ended(slow)
    assert store.begin(21, 22, 23) is not None


def test_a_retired_slot_holds_its_bytes_until_reuse(store: Store) -> None:
    job = store.begin(1, 2)
    for rank in range(RANKS):
        store.report(job, rank)
    store.table.retire(keys(1, 2))
    assert store.check(1, 2) == 2  # revived
    store.table.retire(keys(1, 2))
    other = store.begin(3, 4, 5)
    for rank in range(RANKS):
        store.report(other, rank)
    assert store.check(3, 4, 5) == 3
    assert store.check(1, 2) == 1  # the tail was reused, and nothing wrong is found


def test_a_load_in_flight_keeps_its_slots(store: Store) -> None:
    job = store.begin(1, 2)
    for rank in range(RANKS):
        store.report(job, rank)
    places, counters, pinned = store.table.pin(keys(1, 2))
    assert pinned == 2
    for name in range(10, 20):
        other = store.begin(name)
        assert other is not None
        for rank in range(RANKS):
            store.report(other, rank)
    assert store.check(1, 2) == 2
    store.table.unpin(places, counters)
    assert store.table.pins == 0


def test_a_store_from_before_a_reset_is_never_found(store: Store) -> None:
    old = store.begin(1)
    store.table.begin_epoch()
    new = store.begin(1)
    assert new is not None and new.places != old.places
    for rank in range(RANKS):
        store.report(old, rank)
    assert store.table.granules()["reserved"] == 32
    store.table.abort(old.places, old.counters)
    for rank in range(RANKS):
        store.report(new, rank)
    assert store.check(1) == 1
