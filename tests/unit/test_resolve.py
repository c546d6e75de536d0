"""Names of controllers become addresses, and change, while nobody waits."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
from lmkv.agent.resolve import Addresses
from lmkv.core.clock import ManualClock
from lmkv.core.records import records

NAME = "dns+tcp://lmkv.svc:7550"
ONE, TWO, SIX = "tcp://10.0.0.1:7550", "tcp://10.0.0.2:7550", "tcp://[fd00::1]:7550"


class World:
    """`records` is what the name stands for; a lookup ends with `end()`."""

    def __init__(self, *configured: str) -> None:
        self.clock = ManualClock()
        self.records: list[str] | OSError = []
        self.jobs: list[Callable[[], None]] = []
        self.asked: list[tuple[str, int]] = []
        self.addresses = Addresses(configured, self.clock, self.lookup, self.jobs.append)

    def lookup(self, name: str, port: int) -> list[str]:
        self.asked.append((name, port))
        if isinstance(self.records, OSError):
            raise self.records
        return self.records

    def end(self, records: list[str] | OSError) -> list[str]:
        self.records = records
        self.jobs.pop()()
        return self.addresses.turn()


def test_addresses_without_names_need_no_lookup() -> None:
    world = World(ONE, TWO, ONE)
    assert world.addresses.turn() == [ONE, TWO]
    assert world.jobs == []


def test_a_name_is_all_its_addresses_in_the_place_where_it_stands() -> None:
    world = World(TWO, NAME)
    assert world.addresses.turn() == [TWO]
    assert world.end([ONE, TWO, SIX]) == [TWO, ONE, SIX]
    assert world.asked == [("lmkv.svc", 7550)]


def test_it_is_looked_up_again_every_five_seconds_one_at_a_time() -> None:
    world = World(NAME)
    world.addresses.turn()
    world.clock.advance(60.0)
    world.addresses.turn()
    assert len(world.jobs) == 1  # the resolver takes its time
    assert world.end([ONE]) == [ONE]
    world.clock.advance(4.9)
    world.addresses.turn()
    assert world.jobs == []
    world.clock.advance(0.2)
    assert world.addresses.turn() == [ONE]
    assert world.end([TWO]) == [TWO]


def test_what_is_known_stays_while_the_name_is_not_found(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    world = World(NAME)
    world.addresses.turn()
    world.end([ONE])
    for _ in range(3):
        world.clock.advance(5.1)
        world.addresses.turn()
        assert world.end(OSError("no such name")) == [ONE]
    assert caplog.messages == [f"lmkv: {NAME} has no address: no such name"]


def test_the_systems_resolver_gives_whole_addresses() -> None:
    assert records("127.0.0.1", 7550) == ["tcp://127.0.0.1:7550"]
    assert records("[::1]", 7550) == ["tcp://[::1]:7550"]


def test_a_lookup_runs_in_a_thread_of_its_own() -> None:
    addresses = Addresses(["dns+tcp://127.0.0.1:7550"], ManualClock(), records)
    addresses.turn()
    found = addresses._found.get(timeout=20.0)
    assert found == {"dns+tcp://127.0.0.1:7550": ["tcp://127.0.0.1:7550"]}
