"""Three real controllers: any of them shows all, and who does not answer holds up nobody."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from lmkv.core import cluster
from lmkv.core.client import Client

from tests.contract.test_controller import DEADLINE, Controller, until
from tests.contract.test_controllers import Instance
from tests.ports import free_port
from tests.web import Web


@pytest.fixture
def three() -> Iterator[list[Controller]]:
    running = [Web(), Controller(free_port()), Controller(free_port())]
    yield running
    for each in running:
        each.process.send_signal(signal.SIGCONT)
        each.end()


def shown(web: Any) -> dict[str, dict[str, Any]]:
    """By address."""
    answer = web.ask("/v1/controllers")
    assert answer.status == 200, answer
    return {each["address"]: each for each in answer.json["controllers"]}


def shown_when(web: Any, true: Callable[[dict[str, Any]], bool]) -> dict[str, dict[str, Any]]:
    """The first answer of which it is: who takes half a second to answer is `unreachable`, which
    on a busy machine anybody may."""
    found: dict[str, dict[str, Any]] = {}

    def look() -> bool:
        found.clear()
        found.update(shown(web))
        return true(found)

    until(look)
    return found


def test_all_are_shown_by_rest_and_to_programs(three: list[Controller]) -> None:
    web, second, third = three
    addresses = [each.state for each in three]
    us = Instance("us", addresses)
    us.hold(list(range(8)))
    found = shown_when(web, lambda all_: [each["keys"] for each in all_.values()] == [2, 2, 2])
    assert sorted(found) == sorted(addresses)
    assert next(iter(found)) == web.state
    for each in found.values():
        assert (each["state"], each["instances"], each["drifts"]) == ("ready", 1, 0)
        assert 0 <= each["lag"] < DEADLINE
    with Client(third.state, DEADLINE) as client:  # and at any of them
        epochs = {int(each["epoch"], 16) for each in found.values()}
        until(lambda: {each.epoch for each in cluster.controllers(client)} == epochs)
        assert cluster.controllers(client)[0].address == third.state

    second.process.send_signal(signal.SIGSTOP)
    third.end(signal.SIGKILL)
    found = shown(web)
    assert [found[a]["state"] for a in addresses] == ["ready", "unreachable", "unreachable"]
    assert found[third.state]["controller"] == third.state
    with Client(web.state, DEADLINE) as client:
        told = cluster.controllers(client)
    assert sorted((e.state, e.address) for e in told if e.state != "ready") == sorted(
        ("unreachable", each.state) for each in (second, third)
    )
    second.process.send_signal(signal.SIGCONT)
    until(lambda: shown(web)[second.state]["state"] == "ready")
    us.agent.close()
    until(lambda: shown(web).keys() == {web.state})  # nobody names the others any more


def test_peers_are_shown_without_any_instance() -> None:
    other = Controller(free_port())
    web = Web("--peers", f"{other.state},tcp://127.0.0.1:1")
    try:
        web.up()
        found = shown_when(web, lambda all_: all_[other.state]["state"] == "ready")
        assert found["tcp://127.0.0.1:1"]["state"] == "unreachable"
    finally:
        web.end()
        other.end()


def test_a_controller_that_comes_to_the_list_later_is_told_of(three: list[Controller]) -> None:
    web, second, _ = three
    us = Instance("us", [web.state])
    until(lambda: shown(web)[web.state]["instances"] == 1)
    assert list(shown(web)) == [web.state]
    us.agent._controllers._addresses._configured = [web.state, second.state]
    us.agent.background.wake()
    until(lambda: sorted(shown(web)) == sorted([web.state, second.state]))
    us.agent.close()
