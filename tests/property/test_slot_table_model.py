"""The slot table against a small model: what is readable, reserved, pinned and in limbo.

The model does not know which slots are evicted; it learns that from `take_changes()`, as a
controller does, and holds that only unpinned readable ones are.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from itertools import islice
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from lmkv._native import Directory, SlotTable

CAPACITY, SEGMENT = 12, 5
SIZES = st.sampled_from([3, 5, 11, 15, 16])  # granules
SOME_KEYS = st.lists(st.integers(0, 30), min_size=1, max_size=6, unique=True)


def raw(names: list[int]) -> bytes:
    return b"".join(n.to_bytes(16, "little") for n in names)


def split(data: bytes, size: int) -> list[bytes]:
    return [data[i : i + size] for i in range(0, len(data), size)]


def granules_of(place: bytes) -> range:
    first = int.from_bytes(place[:4], "little")
    return range(first, first + place[4])


class SlotTableMachine(RuleBasedStateMachine):
    jobs = Bundle("jobs")  # reserved: (epoch, names, places, counters)
    limbos = Bundle("limbos")
    pinnings = Bundle("pinnings")
    rewrites = Bundle("rewrites")  # reserved again: (epoch, names with old slots, places, counters)

    def __init__(self) -> None:
        super().__init__()
        self.table = SlotTable(CAPACITY, SEGMENT, 0.2, 0.1)
        self.table.grow(7)
        self.listener = Directory()
        self.who = self.listener.add(0, 0)
        self.now, self.epoch = 0.0, 0
        self.readable: dict[int, tuple[bytes, bytes]] = {}  # name -> place, counter
        self.taken: dict[bytes, str] = {}  # place -> "reserved" or "limbo"
        self.pins: dict[tuple[bytes, bytes], int] = {}
        self.reserved: dict[int, bytes] = {}
        self.counters: set[bytes] = set()

    def hear(self, ended: bool = False, retired: Collection[int] = ()) -> None:
        """What the table tells is applied to the model and to a listener. Of pinned slots it
        retracts those that were `retired` by name, and all at an epoch's end."""
        for announced, keys, places, counters in self.table.take_changes():
            apply = self.listener.announce if announced else self.listener.retract
            assert apply(self.who, keys, places, counters) == len(keys) // 16
            for key, place, counter in zip(split(keys, 16), split(places, 8), split(counters, 4)):
                name = int.from_bytes(key, "little")
                if announced:
                    self.readable[name] = (place, counter)
                else:
                    assert self.readable.pop(name) == (place, counter)
                    assert ended or name in retired or (place, counter) not in self.pins

    def prefix(self, names: list[int]) -> list[int]:
        return names[: next((i for i, n in enumerate(names) if n not in self.readable), len(names))]

    def frames_left(self) -> int:
        """Frames in which nothing is held."""
        held = [*self.taken, *(place for place, _ in self.pins)]
        return self.table.usable - len({g // 16 for place in held for g in granules_of(place)})

    def got(self, places: list[bytes], counters: list[bytes]) -> None:
        """These were reserved: they overlap nothing that is held."""
        held = [*self.taken, *(place for place, _ in self.pins)]
        own = [g for place in places for g in granules_of(place)]
        assert len(set(own)) == len(own)
        assert not set(own) & {g for place in held for g in granules_of(place)}
        assert max(own, default=0) < 16 * self.table.usable
        for place in places:  # none crosses a segment
            assert len({g // (16 * SEGMENT) for g in granules_of(place)}) == 1
        assert len(set(counters)) == len(counters)
        assert not set(counters) & self.counters
        self.counters.update(counters)
        self.taken.update(dict.fromkeys(places, "reserved"))

    @rule(target=jobs, names=SOME_KEYS, age=st.sampled_from([0.0, 0.01, 1.0]), size=SIZES)
    def reserve(
        self, names: list[int], age: float, size: int
    ) -> tuple[int, list[int], bytes, bytes]:
        self.now += age
        names = [n for n in names if n not in self.readable and n not in self.reserved]
        left = self.frames_left()
        sizes = bytes(size if n % 2 else 16 for n in names)
        got = self.table.reserve(raw(names), self.now, sizes if size < 16 else b"")
        assert len(names) <= left or got is None
        if size == 16 or not any(n < 16 for n in sizes):  # full ones need a frame each, no more
            assert (got is None) == (len(names) > left)
        if got is None:
            return self.epoch, [], b"", b""
        places = split(got[0], 8)
        assert [place[4] for place in places] == list(sizes if size < 16 else b"\x10" * len(names))
        self.got(places, split(got[1], 4))
        self.reserved.update(zip(names, places))
        return (self.epoch, names, *got)

    @rule(target=rewrites, names=SOME_KEYS, size=SIZES)
    def reserve_again(self, names: list[int], size: int) -> tuple[int, list[Any], bytes, bytes]:
        names = [n for n in names if n in self.readable]
        old = [self.readable[n] for n in names]
        got = self.table.reserve_again(raw(names), self.now, bytes([size]) * len(names))
        if got is None:
            return self.epoch, [], b"", b""
        self.hear()  # it may have evicted one of them for room
        self.got(split(got[0], 8), split(got[1], 4))
        return (self.epoch, list(zip(names, old)), *got)

    @rule(rewrite=consumes(rewrites))
    def replace(self, rewrite: tuple[int, list[Any], bytes, bytes]) -> None:
        epoch, olds, places, counters = rewrite
        self.hear()
        expected = []
        for name, old in olds:
            there = epoch == self.epoch and self.readable.get(name) == old
            expected.append(0 if not there else 2 if old in self.pins else 1)
        old_places = b"".join(place for _, (place, _) in olds)
        old_counters = b"".join(counter for _, (_, counter) in olds)
        got = self.table.replace(places, counters, old_places, old_counters)
        assert list(got) == expected
        self.table.abort(places, counters)  # of those that replaced nothing
        moved = [name for (name, _), done in zip(olds, expected) if done == 1]
        self.hear(retired=moved)
        for place in split(places, 8):
            del self.taken[place]
        found = {n: (p, c) for (n, _), p, c in zip(olds, split(places, 8), split(counters, 4))}
        for name in moved:
            assert self.readable[name] == found[name]

    def forget(self, names: list[int], places: bytes) -> None:
        for name, place in zip(names, split(places, 8)):
            if self.reserved.get(name) == place:
                del self.reserved[name]

    @rule(job=consumes(jobs), front=st.booleans())
    def admit(self, job: tuple[int, list[int], bytes, bytes], front: bool) -> None:
        epoch, names, places, counters = job
        good = epoch == self.epoch
        assert self.table.admit(places, counters, front=front) == (len(names) if good else 0)
        if good:
            self.forget(names, places)
            assert self.table.admit(places, counters) == 0
        else:
            self.table.abort(places, counters)
        for place in split(places, 8):
            del self.taken[place]
        if good:
            assert self.table.lookup(raw(names)) == len(names)

    @rule(job=consumes(jobs))
    def abort(self, job: tuple[int, list[int], bytes, bytes]) -> None:
        _, names, places, counters = job
        self.table.abort(places, counters)
        self.forget(names, places)
        for place in split(places, 8):
            del self.taken[place]

    @rule(target=limbos, job=consumes(jobs))
    def abort_into_limbo(self, job: tuple[int, list[int], bytes, bytes]) -> tuple[bytes, bytes]:
        _, names, places, counters = job
        self.table.abort(places, counters, limbo=True)
        self.forget(names, places)
        self.taken.update(dict.fromkeys(split(places, 8), "limbo"))
        return places, counters

    @rule(limbo=consumes(limbos))
    def end_limbo(self, limbo: tuple[bytes, bytes]) -> None:
        self.table.end_limbo(*limbo)
        for place in split(limbo[0], 8):
            del self.taken[place]

    @rule(names=SOME_KEYS, use=st.booleans())
    def lookup(self, names: list[int], use: bool) -> None:
        before = self.prefix(names)
        found = self.table.lookup(raw(names), use=use)
        self.hear()  # a use may have revived some
        assert found == len(self.prefix(names)) >= len(before)
        assert use or found == len(before)

    @rule(names=SOME_KEYS)
    def retire(self, names: list[int]) -> None:
        there = [n for n in names if n in self.readable]
        pinned = [n for n in there if self.readable[n] in self.pins]
        assert self.table.retire(raw(names)) == len(there)
        self.hear(retired=there)
        assert not set(there) & set(self.readable)
        for name in pinned:
            assert self.table.lookup(raw([name])) == 0  # not revived

    @rule(target=pinnings, names=SOME_KEYS)
    def pin(self, names: list[int]) -> list[tuple[bytes, bytes]]:
        pinned = [self.readable[n] for n in self.prefix(names)]
        places, counters, _ = self.table.pin(raw(names))
        assert places == b"".join(place for place, _ in pinned)
        assert counters == b"".join(counter for _, counter in pinned)
        for slot in pinned:
            self.pins[slot] = self.pins.get(slot, 0) + 1
        return pinned

    @rule(pinned=consumes(pinnings))
    def unpin(self, pinned: list[tuple[bytes, bytes]]) -> None:
        for slot in pinned:
            self.pins[slot] -= 1
            if self.pins[slot] == 0:
                del self.pins[slot]
        self.table.unpin(b"".join(p for p, _ in pinned), b"".join(c for _, c in pinned))

    @rule(names=SOME_KEYS)
    def touch(self, names: list[int]) -> None:
        held = [self.readable[n] for n in names if n in self.readable]
        self.table.touch(b"".join(p for p, _ in held), b"".join(c for _, c in held))

    @rule(slots=st.integers(7, CAPACITY))
    def grow(self, slots: int) -> None:
        self.table.grow(max(slots, self.table.usable))

    @rule()
    def begin_epoch(self) -> None:
        self.table.begin_epoch()
        self.epoch += 1
        self.reserved.clear()
        self.counters.clear()
        self.hear(ended=True)
        assert not self.readable

    @invariant()
    def the_model_agrees(self) -> None:
        self.hear()
        names = list(range(31))
        state = bytes(1 if n in self.readable else 2 if n in self.reserved else 0 for n in names)
        assert self.table.contains(raw(names)) == state
        found = self.prefix(names)
        where = [self.readable[n] for n in found]
        joined = b"".join(p for p, _ in where), b"".join(c for _, c in where), len(found)
        assert self.table.places(raw(names)) == joined

    @invariant()
    def no_slot_is_in_two_states(self) -> None:
        self.hear()
        granules = self.table.granules()
        assert sum(granules.values()) == 16 * self.table.usable
        pinned = {place for place, _ in self.pins}
        in_use = {place for place, _ in self.readable.values()}
        every = [g for place in {*in_use, *pinned, *self.taken} for g in granules_of(place)]
        assert len(set(every)) == len(every)
        assert len(in_use) == len(self.readable)
        assert granules["pinned"] == sum(place[4] for place in pinned)
        assert granules["readable"] == sum(place[4] for place in in_use - pinned)
        for state in ("reserved", "limbo"):
            taken = [place for place, is_ in self.taken.items() if is_ == state]
            assert granules[state] == sum(place[4] for place in taken)
        assert self.table.pins == sum(self.pins.values())

    @invariant()
    def the_listener_agrees(self) -> None:
        self.hear()
        assert self.listener.sums(self.who) == self.table.sums()
        keys, places, counters = self.table.slice(0, 16 * CAPACITY)
        told = zip(split(keys, 16), split(places, 8), split(counters, 4))
        expected = [(p, raw([n]), c) for n, (p, c) in self.readable.items()]
        expected.sort(key=lambda slot: int.from_bytes(slot[0][:4], "little"))
        assert [(p, k, c) for k, p, c in told] == expected  # in the order of their granules


TestSlotTable = SlotTableMachine.TestCase
TestSlotTable.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


class Oldest:
    """The order of age, in ten lines: a list of keys, oldest first, and the FIFO of the retired."""

    def __init__(self, slots: int) -> None:
        self.slots, self.recent, self.retired = slots, list[int](), list[int]()

    def use(self, names: list[int]) -> None:
        for name in reversed(names):
            if name in self.recent:
                self.recent.remove(name)
            elif name in self.retired:
                self.retired.remove(name)
            self.recent.append(name)

    def store(self, names: list[int]) -> None:
        self.retired = [n for n in self.retired if n not in names]  # a new slot takes the name
        while len(self.recent) + len(self.retired) + len(names) > self.slots:
            if not self.retired:
                self.retired.append(self.recent.pop(0))
            self.retired.pop(0)
        self.use(names)


class AgeMachine(RuleBasedStateMachine):
    """Which key goes when, exactly: uses of prefixes, retirements, revivals, reuse."""

    def __init__(self) -> None:
        super().__init__()
        self.table = SlotTable(8, 8, 0.0)
        self.table.grow(8)
        self.model = Oldest(8)
        self.fresh = iter(range(1000, 10**6))

    @rule(n=st.integers(1, 4))
    def store(self, n: int) -> None:
        names = list(islice(self.fresh, n))
        got = self.table.reserve(raw(names), 0.0)
        assert got is not None
        assert self.table.admit(*got) == n
        self.model.store(names)

    @rule(data=st.data())
    def use(self, data: st.DataObject) -> None:
        known = self.model.recent + self.model.retired
        if known:
            names = data.draw(st.lists(st.sampled_from(known), unique=True))
            assert self.table.lookup(raw(names)) == len(names)
            self.model.use(names)

    @rule(data=st.data())
    def retire(self, data: st.DataObject) -> None:
        if self.model.recent:
            names = data.draw(st.lists(st.sampled_from(self.model.recent), unique=True))
            assert self.table.retire(raw(names)) == len(names)
            for name in reversed(names):
                self.model.recent.remove(name)
                self.model.retired.append(name)

    @invariant()
    def the_same_are_readable(self) -> None:
        names = self.model.recent + self.model.retired
        state = bytes([1] * len(self.model.recent) + [0] * len(self.model.retired))
        assert self.table.contains(raw(names)) == state
        assert self.table.granules()["retired"] == 16 * len(self.model.retired)


TestAge = AgeMachine.TestCase
TestAge.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_places_are_the_protocols() -> None:
    table = SlotTable(3, 3)
    table.grow(3)
    got = table.reserve(raw([1, 2, 3]), 0.0)
    assert got is not None
    assert list(struct.iter_unpack("<IBBH", got[0])) == [(16 * i, 16, 0, 0) for i in range(3)]
