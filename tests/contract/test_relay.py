"""Commands through a real controller: to real agents with their threads, and to stubs.

What must follow is waited for; the one deadline that must pass is short.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from lmkv.core.client import Client
from lmkv.core.messages import (
    Command,
    Done,
    Located,
    Refused,
    Resync,
    Status,
    StatusInfo,
    SyncResult,
    Unsupported,
    WhyResult,
)
from msgspec.structs import replace

from tests.contract.test_controller import DEADLINE, Controller, until
from tests.contract.test_controller import Instance as Stub
from tests.contract.test_controllers import Instance, knows
from tests.ports import free_port
from tests.stub_instance import StubInstance, keys

PROMPT = list(range(8))  # two chunks of 4


@pytest.fixture
def controller() -> Iterator[Controller]:
    running = Controller(free_port())
    yield running
    assert running.end() == (0, "")


@pytest.fixture
def pair(controller: Controller) -> Iterator[tuple[Instance, Instance]]:
    both = Instance("us", [controller.state]), Instance("peer", [controller.state])
    until(lambda: knows(controller, 0))
    yield both
    for each in both:
        each.agent.close()


def ask(controller: Controller, command: Command) -> Any:
    with Client(controller.state, DEADLINE) as client:
        return client.ask(command)[0]


def why(controller: Controller, **arguments: str) -> Any:
    name = f"why {sorted(arguments.items())}"
    return ask(controller, Command(name, "why", "us", arguments=arguments, request=3))


def test_why(controller: Controller, pair: tuple[Instance, Instance]) -> None:
    us, peer = pair
    peer.hold(PROMPT)
    until(lambda: knows(controller, 2))
    assert us.cause(PROMPT) == "mover_down"
    assert us.cause([7, *PROMPT]) == "cold"
    answer = why(controller)
    assert isinstance(answer, Done), answer
    result = msgspec.msgpack.decode(answer.result, type=WhyResult)
    newest, oldest = result.requests
    assert (newest.request, newest.tokens, newest.matched) == ("2", 10, 0)
    assert newest.miss_tokens == {"cold": 8, "too_short": 2}
    assert oldest.miss_tokens == {"mover_down": 8, "too_short": 1}
    assert newest.age <= oldest.age
    one = msgspec.msgpack.decode(why(controller, last="1").result, type=WhyResult)
    assert [entry.request for entry in one.requests] == ["2"]
    named = msgspec.msgpack.decode(why(controller, request="1").result, type=WhyResult)
    assert [entry.request for entry in named.requests] == ["1"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"last": "0"}, "last = '0': allowed is a number from 1 to 256"),
        ({"last": "many"}, "last = 'many'"),
        ({"request": "gone"}, "request 'gone': it is not among the last 256"),
    ],
)
def test_a_bad_argument_is_named(
    controller: Controller,
    pair: tuple[Instance, Instance],
    arguments: dict[str, str],
    words: str,
) -> None:
    refused = why(controller, **arguments)
    assert isinstance(refused, Refused)
    assert words in refused.message
    assert refused.field == next(iter(arguments))
    assert refused.request == 3


def test_an_operation_of_a_later_release(
    controller: Controller, pair: tuple[Instance, Instance]
) -> None:
    assert ask(controller, Command("x", "teleport", "us", request=3)) == Unsupported("teleport", 3)
    assert isinstance(why(controller), Done)


def test_an_instance_that_does_not_know_commands(controller: Controller) -> None:
    with Stub(StubInstance("old"), controller) as old:
        old.join()
        old.beat()
        command = Command("x", "why", "old", request=3, deadline=0.1)
        refused = ask(controller, command)
        assert isinstance(refused, Refused)
        assert (refused.code, refused.request) == ("timeout", 3)
        heard = old.take(Command)
        assert isinstance(heard, Command)
        old.tell((Done(heard.request, "x"), ()))
        late = old.take(Refused)
        assert isinstance(late, Refused)
        assert late.code == "unasked"


def test_a_sync(controller: Controller, pair: tuple[Instance, Instance]) -> None:
    us, _ = pair
    us.hold(PROMPT)
    until(lambda: knows(controller, 2))
    answer = ask(controller, Command("x", "sync", "us", request=3))
    assert isinstance(answer, Done), answer
    result = msgspec.msgpack.decode(answer.result, type=SyncResult)
    assert replace(result, seconds=0.0) == SyncResult("us", 2, 2)


def test_lookups_go_on_while_drift_is_mended(controller: Controller) -> None:
    """Of three chunks the directory lacks one; until the last slice is there, the two others are
    found, and so is what is stored meanwhile."""
    stubs = StubInstance("a", 1), StubInstance("b", 2)
    with Stub(stubs[0], controller) as a, Stub(stubs[1], controller) as b:
        a.join()
        b.join()
        a.tell(*a.stub.store(1, 2))
        a.beat()
        a.stub.store(3)
        a.stub.seq -= 1  # lost, and nobody notices
        a.beat()
        resync = a.take(Resync)
        assert isinstance(resync, Resync)
        assert resync.reason == "drift"
        assert b.found(1, 2, 3) == 2
        first, second, end = a.stub.sync(resync.sync)
        a.stub.seq -= 2
        a.tell(first)
        a.beat()
        found = b.locate(1, 2, 3)
        assert isinstance(found, Located)
        assert found.found == 3  # all are in the first half of the pool
        assert tuple(b.arrays) == a.stub.table.places(keys(1, 2, 3))[:2]
        a.tell(*a.stub.store(4))
        a.beat()
        assert b.found(1, 2, 3, 4) == 4
        for message, _ in (second, end):
            message.seq = a.stub.number()  # type: ignore[attr-defined]
        a.tell(second, end)
        a.beat()
        assert b.found(1, 2, 3, 4) == 4
        with Client(controller.state) as client:
            status, _ = client.ask(Status())
        assert isinstance(status, StatusInfo)
        assert (status.drifts, status.syncs, status.keys) == (1, 0, 4)
