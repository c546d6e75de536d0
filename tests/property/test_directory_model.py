"""The directory against a dict: holders by key, places by holder; locate() against its words."""

from __future__ import annotations

import struct

from hypothesis import assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from lmkv._native import Directory

Slot = tuple[int, int]  # first granule, counter
NAMES = st.integers(0, 24)
SLOTS = st.tuples(st.integers(0, 63), st.integers(1, 9))
SOME = st.lists(st.tuples(NAMES, SLOTS), min_size=1, max_size=8)
PICK = st.integers(0, 1000)  # of the live instances, modulo how many there are


def raw(names: list[int]) -> bytes:
    return b"".join(n.to_bytes(16, "little") for n in names)


def arrays(items: list[tuple[int, Slot]]) -> tuple[bytes, bytes, bytes]:
    places = b"".join(struct.pack("<IBBH", 16 * s, 16, 0, 0) for _, (s, _) in items)
    return (
        raw([n for n, _ in items]),
        places,
        struct.pack(f"<{len(items)}I", *(c for _, (_, c) in items)),
    )


class DirectoryMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = Directory()
        self.held: dict[int, dict[int, Slot]] = {}  # instance -> name -> slot
        self.kind: dict[int, tuple[int, int]] = {}  # instance -> group, host
        self.stated: dict[int, set[int]] = {}  # of a running sync
        self.unswept: set[int] = set()

    def pick(self, number: int) -> int:
        assume(self.held)
        return sorted(self.held)[number % len(self.held)]

    @initialize(n=st.integers(1, 6))
    def some(self, n: int) -> None:
        for i in range(n):
            self.add(i % 3 // 2, i % 2)

    @rule(group=st.integers(0, 1), host=st.integers(0, 2))
    def add(self, group: int, host: int) -> None:
        number = self.directory.add(group, host)
        assert number not in self.held and number not in self.unswept
        self.held[number], self.kind[number] = {}, (group, host)

    @rule(number=PICK)
    def drop(self, number: int) -> None:
        instance = self.pick(number)
        self.directory.drop(instance)
        if self.held.pop(instance):
            self.unswept.add(instance)
        self.stated.pop(instance, None)

    @rule(number=PICK, items=SOME)
    def announce(self, number: int, items: list[tuple[int, Slot]]) -> None:
        instance = self.pick(number)
        new = {n for n, _ in items} - set(self.held[instance])
        assert self.directory.announce(instance, *arrays(items)) == len(new)
        self.state(instance, items)
        self.unswept.clear()  # an announcement may have taken the last hidden entry's place

    def state(self, instance: int, items: list[tuple[int, Slot]]) -> None:
        self.held[instance].update(items)
        if instance in self.stated:
            self.stated[instance] |= {n for n, _ in items}

    @rule(number=PICK, names=st.lists(NAMES, min_size=1, max_size=8, unique=True), wrong=SLOTS)
    def retract(self, number: int, names: list[int], wrong: Slot) -> None:
        instance = self.pick(number)
        held = self.held[instance]
        items = [(n, held.get(n, wrong)) for n in names] + [(n, wrong) for n in names]
        there = 0
        for name, slot in items:
            if held.get(name) == slot:
                del held[name]
                there += 1
        assert self.directory.retract(instance, *arrays(items)) == there

    @rule(number=PICK, keys=st.sampled_from([0, 100, 10_000, 100_000]))
    def expect(self, number: int, keys: int) -> None:
        self.directory.expect(self.pick(number), keys)  # changes nothing that can be asked for

    @rule(number=PICK)
    def begin_sync(self, number: int) -> None:
        instance = self.pick(number)
        self.directory.begin_sync(instance)
        self.stated[instance] = set()

    @rule(number=PICK, items=SOME, first=st.integers(0, 48))
    def sync_slice(self, number: int, items: list[tuple[int, Slot]], first: int) -> None:
        instance = self.pick(number)
        assume(instance in self.stated)
        inside = [(n, (first + s % 16, c)) for n, (s, c) in items]
        self.directory.sync_slice(instance, 16 * first, 16 * first + 256, *arrays(inside))
        self.state(instance, inside)
        self.unswept.clear()

    @rule(number=PICK)
    def end_sync(self, number: int) -> None:
        instance = self.pick(number)
        assume(instance in self.stated)
        gone = set(self.held[instance]) - self.stated.pop(instance)
        assert self.directory.end_sync(instance) == len(gone)
        for name in gone & set(self.held[instance]):
            del self.held[instance][name]

    @rule(entries=st.integers(0, 4000))
    def sweep(self, entries: int) -> None:
        self.directory.sweep(entries)
        self.unswept.clear()

    @rule()
    def sweep_all(self) -> None:
        for _ in range(513):  # a call for each sub-table that is too large
            if self.directory.sweep(10**6):
                break
        else:
            raise AssertionError("sweeping does not end")
        self.unswept.clear()

    @rule(
        names=st.lists(NAMES, unique=True),
        asker=st.one_of(st.none(), PICK),
        avoid=st.lists(st.integers(0, 5), max_size=2),
        loads=st.one_of(st.none(), st.lists(st.floats(0, 4), max_size=6)),
        sparse=st.booleans(),
    )
    def locate(
        self,
        names: list[int],
        asker: int | None,
        avoid: list[int],
        loads: list[float],
        sparse: bool,
    ) -> None:
        who = -1 if asker is None else self.pick(asker)
        answer = self.directory.locate(raw(names), who, loads=loads, avoid=avoid, sparse=sparse)
        runs, alternates, places, counters, found, incompatible = answer

        def same(other: int) -> bool:
            return who < 0 or self.kind[other][0] == self.kind[who][0]

        def usable(name: int) -> list[int]:
            holders = [i for i, held in self.held.items() if name in held]
            return [i for i in holders if i != who and i not in avoid and same(i)]

        # The longest prefix, or all that is held, covered once and in order by holders of it, with
        # their places.
        whole = next((i for i, n in enumerate(names) if not usable(n)), len(names))
        covered = [i for i, n in enumerate(names) if usable(n) and (sparse or i < whole)]
        assert found == len(covered)
        assert [i for first, n, *_ in runs for i in range(first, first + n)] == covered
        for first, n, instance, offset in runs + alternates:
            items = [(name, self.held[instance][name]) for name in names[first : first + n]]
            assert all(instance in usable(name) for name, _ in items)
            expected = arrays(items)
            assert places[8 * offset : 8 * (offset + n)] == expected[1]
            assert counters[4 * offset : 4 * (offset + n)] == expected[2]

        # A run ends only where its holder ends.
        for first, n, instance, _ in runs:
            assert first + n == len(names) or instance not in usable(names[first + n])

        # An alternate is another holder, within its run, and there is one where there can be.
        for first, n, instance, _ in runs:
            inside = [a for a in alternates if first <= a[0] < first + n]
            others = [i for i in range(first, first + n) if len(usable(names[i])) > 1]
            assert len(inside) == (1 if others else 0)
            for start, length, other, _ in inside:
                assert other != instance
                assert start == others[0] and start + length <= first + n

        # Of the keys that were looked for in vain, the first that another group's instance has.
        missed = [n for i, n in enumerate(names) if not usable(n) and (sparse or i == whole)]
        others = [n for n in missed if any(n in h and not same(i) for i, h in self.held.items())]
        if incompatible >= 0:
            assert not same(incompatible) and others[0] in self.held[incompatible]
        else:
            assert not others

        # One key, no loads: the asker's host first.
        if names and usable(names[0]) and loads is None and who >= 0:
            [(_, _, first_choice, _)] = self.directory.locate(raw(names[:1]), who, avoid=avoid)[0]
            near = [i for i in usable(names[0]) if self.kind[i][1] == self.kind[who][1]]
            assert not near or first_choice in near

    @invariant()
    def the_model_agrees(self) -> None:
        for name in range(25):
            expected = sorted(i for i, held in self.held.items() if name in held)
            assert self.directory.holders(raw([name])) == expected
        assert len(self.directory) == len(set().union(*self.held.values()))

    @invariant()
    def the_sums_agree(self) -> None:
        """With those of a directory that has heard nothing else."""
        plain = Directory()
        for instance, held in self.held.items():
            other = plain.add(0, 0)
            plain.announce(other, *arrays(list(held.items())))
            assert self.directory.sums(instance) == plain.sums(other)


TestDirectory = DirectoryMachine.TestCase
TestDirectory.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
