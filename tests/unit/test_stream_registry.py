"""A stream and a real registry: they end with the same, whatever was lost between them."""

from __future__ import annotations

from lmkv.controller.registry import Registry
from lmkv.core.config import ControllerConfig
from lmkv.core.messages import HeartbeatOk, Ranks, Resync

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
