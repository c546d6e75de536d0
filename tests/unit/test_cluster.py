"""All controllers: whom to ask, each once, and who is who behind several addresses."""

from __future__ import annotations

from lmkv.controller.peers import TOLD, Peers
from lmkv.core.cluster import MOST, Roll
from lmkv.core.messages import ControllersInfo, ControllerState, Status

A, B, C, D = (f"tcp://10.0.0.{i}:7550" for i in range(1, 5))


def info(name: str, epoch: int, *others: str) -> ControllersInfo:
    return ControllersInfo(1, [ControllerState(name, epoch, "ready")], list(others))


def told(roll: Roll) -> list[tuple[str, str, str]]:
    return [(each.controller, each.state, each.address) for each in roll.controllers]


def test_each_is_asked_once_and_those_whom_others_name_too() -> None:
    roll = Roll(A, info("a", 1, A, B, B))
    assert roll.unasked() == [B]
    assert roll.unasked() == []
    roll.answered(B, info("b", 2, A, C))
    assert roll.unasked() == [C]
    roll.answered(C, None)
    assert roll.unasked() == []
    assert told(roll) == [("a", "ready", A), ("b", "ready", B), (C, "unreachable", C)]


def test_one_with_two_addresses_is_one() -> None:
    roll = Roll(A, info("a", 1, B, C))
    assert roll.unasked() == [B, C]
    roll.answered(B, info("a", 1, B, C))
    roll.answered(C, info("c", 3))
    assert told(roll) == [("a", "ready", A), ("c", "ready", C)]


def test_another_answer_is_none_and_an_endless_list_ends() -> None:
    roll = Roll(A, info("a", 1, B, C))
    roll.unasked()
    roll.answered(B, Status(1))
    roll.answered(C, ControllersInfo(1, [], [D]))
    assert [state for _, state, _ in told(roll)] == ["ready", "unreachable", "unreachable"]
    many, asked = Roll(A, info("a", 1, *(f"tcp://h:{i}" for i in range(1, 100)))), 0
    while addresses := many.unasked():
        for address in addresses:
            asked += 1
            named = [f"{address}{i}" for i in range(9)]
            many.answered(address, info(address, hash(address), *named))
    assert asked == MOST - 1


def test_peers_are_the_configured_ones_then_those_most_used() -> None:
    peers = Peers([D])
    peers.use("one", [A, B])
    peers.use("two", [B, B, "garbage", "tcp://x:0", "tcp://a\x00b:1", "tcp://a@b:1"])
    assert peers.addresses == [D, B, A]
    peers.use("two", [C])
    peers.drop("one")
    assert peers.addresses == [D, C]
    peers.drop("two")
    peers.drop("two")
    assert peers.addresses == [D]


def test_who_names_many_does_not_make_the_answer_long() -> None:
    peers = Peers([])
    for i in range(1000):
        peers.use(f"i{i}", [A, f"tcp://host-{i}:7550"])
    assert len(peers.addresses) == TOLD
    assert peers.addresses[0] == A
