"""A stream and a real registry: they end with the same, whatever was lost between them."""

from __future__ import annotations

from random import Random

import msgspec
import pytest
from lmkv.controller.registry import Registry
from lmkv.core.config import ControllerConfig
from lmkv.core.messages import HeartbeatOk, Ranks, Register, Resync

from tests.unit.test_stream import Instance


class Pair:
    """A stream and a registry that hear each other; `lose` drops what is on its way."""

    def __init__(self) -> None:
        self.us = Instance()
        self.restarted()

    def restarted(self) -> None:
        self.registry = Registry(ControllerConfig(), self.us.clock)

    def run(self, rounds: int = 4, seconds: float = 1.0) -> None:
        for _ in range(rounds):
            for message, arrays in self.us.pump():
                for _, answer, out in self.registry.hear(b"us", message, arrays):
                    self.us.hear(answer, *out)
            self.us.clock.advance(seconds)

    def agree(self) -> bool:
        number = self.registry.instances["us"].number
        told = self.registry.placement.directory.sums(number)
        return told == self.us.table.sums() and not self.registry.syncing(
            self.registry.instances["us"]
        )


def test_a_registry_ends_with_the_same_sums() -> None:
    pair = Pair()
    pair.us.hold(1, 2, 3)
    pair.run()
    assert pair.agree()
    for n in range(4, 20):  # more than there is room for
        pair.us.hold(n)
        pair.run(1)
    assert pair.agree()
    assert (pair.registry.drifts, pair.registry.resyncs) == (0, 0)


def test_a_lost_message_is_noticed_and_made_good() -> None:
    pair = Pair()
    pair.run()
    pair.us.hold(1)
    pair.us.pump()  # on its way, and lost
    pair.us.hold(2)
    pair.run()
    assert pair.agree()
    assert pair.us.table.sums()[0] == 2


def test_a_resync_that_is_lost_is_asked_for_again() -> None:
    pair = Pair()
    pair.run()
    pair.us.hold(1)
    pair.us.pump()  # lost
    pair.us.clock.advance(1.0)
    (beat,) = pair.us.says()
    out = pair.registry.hear(b"us", beat, [])
    assert [type(message) for _, message, _ in out] == [HeartbeatOk, Resync]  # lost too
    pair.run(4)
    assert pair.agree()


def test_ranks_that_are_lost_are_told_again() -> None:
    pair = Pair()
    pair.run()
    pair.run(1, seconds=0.5)
    pair.us.version = 1
    assert pair.us.kinds() == [Ranks]  # lost
    pair.run()
    assert pair.registry.instances["us"].registration.data_version == 1


def test_a_controller_that_answers_late_gets_one_full_sync() -> None:
    pair = Pair()
    pair.us.hold(1)
    registrations = []
    for _ in range(3):
        registrations += pair.us.says()
        pair.us.clock.advance(1.0)
    assert len(registrations) == 3
    welcomes = [m for r in registrations for _, m, _ in pair.registry.hear(b"us", r, [])]
    for welcome in welcomes:
        pair.us.hear(welcome)
        for message, arrays in pair.us.pump():
            pair.registry.hear(b"us", message, arrays)
    pair.run()
    assert pair.agree()
    assert (pair.registry.drifts, pair.registry.resyncs) == (0, 0)


def test_a_controller_that_was_restarted_learns_all() -> None:
    pair = Pair()
    pair.us.hold(1, 2)
    pair.run()
    pair.restarted()
    pair.run()
    assert pair.agree()


def test_a_new_epoch_starts_from_nothing() -> None:
    pair = Pair()
    pair.us.hold(1, 2)
    pair.run()
    pair.us.table.begin_epoch()
    pair.us.epoch = 6
    pair.us.stream.restart()
    pair.us.hold(3)
    pair.run()
    assert pair.agree()
    assert pair.us.table.sums()[0] == 1


class Named(Instance):
    """One of many, with full slots, that says how many it has, or does not."""

    def __init__(self, number: int, slots: int, says: bool) -> None:
        super().__init__(slots)
        self.name, self._says = f"i{number}", says
        room = self.table.reserve(Random(number).randbytes(16 * (slots - 1)), self.clock())
        assert room is not None
        self.table.admit(*room)
        self.table.take_changes()

    def _register(self) -> Register:
        slots = self.table.sums()[0] if self._says else 0
        return msgspec.structs.replace(super()._register(), instance=self.name, slots=slots)


def storm(many: list[Named], registry: Registry) -> int:
    """All come back at once; the most syncs that ran at a time."""
    by_name = {each.name.encode(): each for each in many}
    most = 0
    while not registry.instances or any(map(registry.syncing, registry.instances.values())):
        for each in many:
            for message, arrays in each.pump():
                for to, answer, out in registry.hear(each.name.encode(), message, arrays):
                    by_name[to].hear(answer, *out)
                most = max(most, registry.syncs - registry.syncs_waiting)
    return most


@pytest.mark.parametrize("says", [True, False])
def test_all_come_back_at_once_and_nothing_is_done_twice(says: bool) -> None:
    many = [Named(i, 1 << 15, says) for i in range(24)]
    registry = Registry(ControllerConfig(), many[0].clock)
    assert storm(many, registry) == registry.config.syncs_at_once
    directory = registry.placement.directory
    for each in many:
        assert directory.sums(registry.instances[each.name].number) == each.table.sums()
        assert each.stats.take()["syncs"] == {"new": 1}
    keys = sum(each.table.sums()[0] for each in many)
    assert (len(directory), registry.drifts) == (keys, 0)
    assert directory.moved < keys / 2 if says else directory.moved > keys
    while not directory.sweep(0):
        pass
    assert directory.bytes <= 40 * keys + 512 * 16384 + (4 << 20)
