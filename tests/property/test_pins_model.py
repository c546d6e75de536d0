"""The table of pins against a model: sets of keys with an end, on a pool that is under pressure.

Whatever happens, the slot table counts exactly the pins of the model, what is pinned is readable,
the share holds, and each pin ends at its time.
"""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from lmkv.agent.pins import A_TURN, LOOK_EVERY, WANTED, Full, Pins
from lmkv.core.clock import ManualClock
from lmkv.core.messages import PinsHeld

from tests.slot_tables import keys, make

SLOTS, SHARE = 12, 1 / 3
NAMES = st.sampled_from(["one", "two", "three"])
OWNERS = st.sampled_from(["", "team", "other"])
TTLS = st.sampled_from([0.0, 1.0, 5.0])
SOME = st.lists(st.integers(1, 15), min_size=1, max_size=5, unique=True)


class PinsMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.table = make(SLOTS)
        self.refused: list[str] = []
        self.pins = Pins(
            self.table,
            SHARE,
            "us",
            16,
            lambda: 7,
            self.clock,
            self.refused.append,
        )
        self.held: dict[str, tuple[set[int], str, float]] = {}  # keys, owner, end

        self.store(list(range(1, 10)))

    def readable(self, names: list[int]) -> list[int]:
        """Or would be again: what was retired for room may come back."""
        return [n for n in names if self.table.lookup(keys(n))]

    def distinct(self) -> set[int]:
        return set().union(*(names for names, _, _ in self.held.values()))

    @rule(names=SOME)
    def store(self, names: list[int]) -> None:
        new = [n for n in names if self.table.contains(keys(n)) == b"\0"]
        room = self.table.reserve(keys(*new), self.clock())
        if room is not None:
            self.table.admit(*room)

    @rule(name=NAMES, names=SOME, owner=OWNERS, ttl=TTLS)
    def pin(self, name: str, names: list[int], owner: str, ttl: float) -> None:
        self.held.pop(name, None)  # the same name again is another pin in its place
        self.pins.begin(name, owner, ttl)
        ready = self.readable(names)
        fits = len(self.distinct() | set(ready)) <= SHARE * SLOTS
        try:
            added = self.pins.add(name, [keys(n) for n in names])
        except Full:
            assert not fits
            self.pins.release(name)
            return
        assert fits
        assert added == len(ready)
        self.pins.commit(name)
        self.held[name] = set(ready), owner, self.clock() + ttl if ttl else float("inf")

    @rule(name=NAMES)
    def release(self, name: str) -> None:
        mine = self.held.pop(name, (set(), "", 0.0))[0]
        assert self.pins.release(name) == len(mine)

    @rule(names=SOME, owner=OWNERS)
    def unpin(self, names: list[int], owner: str) -> None:
        within = [
            name
            for name, (mine, whose, _) in self.held.items()
            if mine <= set(names) and (not owner or whose == owner)
        ]
        found = self.pins.within(frozenset(keys(n) for n in names), owner)
        assert sorted(found) == sorted(within)
        for name in within:
            self.release(name)

    @rule(seconds=st.sampled_from([0.5, 1.0, 4.0]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.pins.turn()
        now = self.clock()
        self.held = {name: pin for name, pin in self.held.items() if now < pin[2]}

    @rule()
    def reset(self) -> None:
        self.table.begin_epoch()
        self.pins.reset()
        self.held.clear()
        self.store(list(range(1, 10)))

    @precondition(lambda self: self.held)
    @rule()
    def press(self) -> None:
        """All that may go, goes."""
        granules = self.table.granules()
        room = (granules["free"] + granules["readable"] + granules["retired"]) // 16
        taken = self.table.reserve(keys(*range(1000, 1000 + room)), self.clock())
        assert taken is not None
        self.table.abort(*taken)

    @invariant()
    def counted(self) -> None:
        assert self.table.pins == sum(len(mine) for mine, _, _ in self.held.values())
        assert self.pins.granules == 16 * len(self.distinct())
        assert self.table.granules()["pinned"] == self.pins.granules
        assert self.pins.granules <= self.pins.allowed

    @invariant()
    def kept(self) -> None:
        for n in self.distinct():
            assert self.table.contains(keys(n)) == b"\1"
            assert self.pins.holds(keys(n))

    @invariant()
    def told(self) -> None:
        for _, message in self.pins.news(-1):
            assert isinstance(message, PinsHeld)
            assert {pin.id: pin.chunks for pin in message.pins} == {
                name: len(mine) for name, (mine, _, _) in self.held.items()
            }
            expected = Counter(owner for _, owner, _ in self.held.values())
            assert Counter(pin.owner for pin in message.pins) == expected


TestPins = PinsMachine.TestCase
TestPins.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_what_requests_want_is_bounded_in_number_and_time():
    clock, table = ManualClock(), make(SLOTS)
    pins = Pins(table, SHARE, "us", 16, lambda: 7, clock)
    for n in range(1000):
        pins.want([keys(n + 1)], 5.0)
        pins.turn()
        clock.advance(LOOK_EVERY)
    assert len(pins._wants) <= 256
    clock.advance(WANTED)
    pins.turn()
    clock.advance(LOOK_EVERY)
    pins.turn()
    assert not pins._wants
    assert len(pins) == 0


def test_a_look_at_what_requests_want_is_short_and_none_is_passed_over(monkeypatch):
    monkeypatch.setattr("lmkv.agent.pins.LOOKED", 4)
    clock, table = ManualClock(), make(SLOTS)
    pins = Pins(table, SHARE, "us", 16, lambda: 7, clock)
    for n in range(5):
        pins.want([keys(100 * n + i) for i in range(1, 4)], 5.0)
    room = table.reserve(keys(401), clock())
    assert room is not None
    table.admit(*room)
    looks = 0
    while not len(pins):
        pins.turn()
        clock.advance(LOOK_EVERY)
        looks += 1
    assert looks == 3  # two of them in each


def test_a_long_pin_ends_in_several_turns_and_its_prefix_ages_from_its_tail():
    table = make(3000, retired_share=0.0)
    room = table.reserve(keys(*range(3000)), 0.0)
    assert room is not None
    table.admit(*room)
    pins = Pins(table, 1.0, "us", 16, lambda: 7, ManualClock())
    pins.begin("all", "team", 0.0)
    pins.add("all", [keys(n) for n in range(3000)])
    pins.commit("all")
    assert pins.release("all") == 3000
    left = []
    while pins.due() == 0.0:
        left.append(table.pins)
        pins.turn()
    assert left == [3000 - A_TURN, 3000 - 2 * A_TURN]
    assert (table.pins, pins.granules, pins.holds(keys(0))) == (0, 0, False)
    assert [len(message.pins) for _, message in pins.news(0)] == [0]  # type: ignore[attr-defined]
    table.reserve(keys(*range(5000, 5100)), 1.0)
    assert table.lookup(keys(*range(3000)), False) == 2900


def test_a_key_whose_slot_was_given_up_and_stored_anew_counts_by_its_slots():
    table = make(SLOTS)
    pins = Pins(table, 1.0, "us", 16, lambda: 7, ManualClock())
    for name, size in (("one", 16), ("two", 5)):
        room = table.reserve(keys(1), 0.0, bytes([size]))
        assert room is not None and table.admit(*room) == 1
        pins.begin(name, "team", 0.0)
        assert pins.add(name, [keys(1)]) == 1
        table.retire(keys(1), False)  # its bytes were wrong
    assert pins.granules == table.granules()["pinned"] == 21
    pins.release("one")
    assert pins.granules == table.granules()["pinned"] == 5
    assert pins.holds(keys(1))
    pins.release("two")
    assert pins.granules == table.granules()["pinned"] == 0
    assert not pins.holds(keys(1))
