"""Questions to several controllers: the nearest first, the next one in time, none twice."""

from __future__ import annotations

import pytest
from lmkv.core.messages import (
    HeartbeatOk,
    Leave,
    Locate,
    Peer,
    PeerInfo,
    RankInfo,
    Refused,
)

from tests.fake_links import PEER_EPOCH, THERE, World

A, B, C = (f"tcp://127.0.0.1:{port}" for port in (7550, 7650, 7750))


def query(address: str) -> str:
    host, _, port = address.rpartition(":")
    return f"{host}:{int(port) + 1}"


def world_of(*controllers: str, deadline: float = 0.02) -> World:
    world = World(controller=False, controllers=list(controllers), locate_deadline=deadline)
    for address in controllers:
        world.welcome(address)
    world.turn()
    return world


def asked(world: World, *controllers: str) -> list[int]:
    """Locates that each controller was sent."""
    return [len(world.at(query(address)).of(Locate)) for address in controllers]


def misses(world: World, name: str = "a") -> dict[str, int]:
    world.agent.allocated(name, [], 0)
    ended = world.agent.finished(name)
    assert ended is not None
    return {c: n for c, n in ended["lmkv"]["miss_tokens"].items() if n and c != "too_short"}


def test_each_controller_has_half_of_what_is_left_of_the_deadline() -> None:
    world = world_of(A, B, C, deadline=20.5 / 1024)
    prompt = world.prompt(2)
    world.begin("a", prompt)
    seen = []
    for _ in range(20):
        assert world.match("a", prompt) is None
        seen.append(asked(world, A, B, C))
        world.clock.advance(1 / 1024)
    assert world.match("a", prompt) is None
    world.clock.advance(1 / 1024)
    assert world.match("a", prompt) == 0
    assert [seen.count(s) for s in ([1, 0, 0], [1, 1, 0], [1, 1, 1])] == [11, 5, 4]
    assert misses(world) == {"locate_timeout": 8}


def test_the_first_answer_counts_whoever_gives_it() -> None:
    for faster, slower in ((A, B), (B, A)):
        world = world_of(A, B)
        prompt = world.prompt(2)
        world.begin("a", prompt)
        world.match("a", prompt)
        world.clock.advance(0.011)
        world.match("a", prompt)
        assert asked(world, A, B) == [1, 1]
        world.located(2, at=query(faster))
        assert world.match("a", prompt) is None  # details
        world.located(0, at=query(slower))
        assert len(world.at(faster, 1).of(Peer)) == 1  # of the one that named the peer
        assert len(world.at(slower, 1).of(Peer)) == 0
        assert world.match("a", prompt) is None


def test_a_busy_engine_that_asks_late_goes_on_at_once() -> None:
    world = world_of(A, B)
    prompt = world.prompt(2)
    world.begin("a", prompt)
    world.clock.advance(0.1)  # of the step before
    assert world.match("a", prompt) is None
    assert asked(world, A, B) == [1, 1]


def test_an_engine_whose_steps_are_longer_than_the_deadline_hears_the_second_one() -> None:
    """It looks once a step; the first controller is gone, and nobody knows it yet."""
    world = world_of(A, B)
    prompt = world.prompt(2)
    world.begin("a", prompt)
    assert world.match("a", prompt) is None
    world.clock.advance(0.030)
    assert world.match("a", prompt) is None  # B is asked now, and has its time
    assert asked(world, A, B) == [1, 1]
    world.located(0, at=query(B))
    world.clock.advance(0.030)
    assert world.match("a", prompt) == 0
    assert misses(world) == {"cold": 8}
    world.clock.advance(1.1)
    world.begin("b", prompt)
    for _ in range(2):
        assert world.match("b", prompt) is None
        world.clock.advance(0.030)
    assert world.match("b", prompt) == 0  # nor does B answer
    assert misses(world, "b") == {"locate_timeout": 8}


def test_a_refusal_goes_on_to_the_next_one_at_once() -> None:
    world = world_of(A, B)
    prompt = world.prompt(2)
    world.begin("a", prompt)
    request = world.at(query(A)).last(Locate)[0].request
    world.at(query(A)).say(Refused("not_registered", "register first", request=request))
    assert world.match("a", prompt) is None
    assert asked(world, A, B) == [1, 1]
    world.at(query(B)).say(Refused("not_registered", "register first", request=request))
    assert world.match("a", prompt) == 0
    assert misses(world) == {"no_controller": 8}


def test_one_that_let_a_deadline_pass_is_asked_after_the_others_for_a_second() -> None:
    world = world_of(A, B)
    prompt = world.prompt(2)
    world.begin("a", prompt)
    world.match("a", prompt)
    world.clock.advance(0.015)
    world.match("a", prompt)
    world.located(0, at=query(B))
    assert world.match("a", prompt) == 0
    assert misses(world) == {"cold": 8}
    world.begin("b", prompt)
    assert asked(world, A, B) == [1, 2]
    world.located(0, at=query(A))  # late, and heard when it is next asked
    world.clock.advance(1.1)
    world.begin("c", prompt)
    assert asked(world, A, B) == [2, 2]
    assert world.match("c", prompt) is None


def test_one_that_cannot_be_sent_to_is_passed_over() -> None:
    world = world_of(A, B)
    world.at(query(A)).up = False
    world.begin("a", world.prompt(2))
    assert asked(world, A, B) == [0, 1]
    world.at(query(B)).up = False
    world.begin("b", world.prompt(2))
    assert world.match("b", world.prompt(2)) == 0
    assert misses(world, "b") == {"no_controller": 8}


def test_a_controller_that_is_silent_is_not_asked() -> None:
    world = world_of(A, B)
    for _ in range(7):
        world.clock.advance(0.5)
        world.at(B).say(HeartbeatOk(77, 0))
        world.turn()
    world.begin("a", world.prompt(2))
    assert asked(world, A, B) == [0, 1]


def test_a_warming_one_is_asked_when_there_is_no_other() -> None:
    world = World(controller=False, controllers=[A, B])
    world.welcome(A, "warming")
    world.turn()
    world.begin("a", world.prompt(2))
    assert asked(world, A) == [1]
    world.welcome(B)
    world.turn()
    world.begin("b", world.prompt(2))
    assert asked(world, A, B) == [1, 1]


def test_a_controller_that_restarts_gets_new_links_and_the_question_goes_elsewhere() -> None:
    world = world_of(A, B)
    old = world.at(query(A))
    prompt = world.prompt(2)
    world.begin("a", prompt)
    world.at(A).say(HeartbeatOk(78, 0))  # another life
    world.turn()
    world.welcome(A)
    world.turn()
    assert not old.closed  # it is the scheduler thread's
    world.begin("b", prompt)
    assert old.closed
    assert asked(world, A, B) == [1, 1]
    world.located(0, at=query(B))
    assert world.match("a", prompt) == 0
    assert misses(world) == {"cold": 8}


def test_links_that_nobody_took_are_closed_when_newer_ones_come() -> None:
    world = world_of(A)
    for epoch in (78, 79, 80):
        world.at(A).say(HeartbeatOk(epoch, 0))
        world.turn()
        world.welcome(A)
        world.turn()
    assert len([link for link in world.links if link.address == query(A) and not link.closed]) == 1


def test_a_deaf_link_is_made_anew() -> None:
    world = World(controller=False)
    old = world.at(A)
    for _ in range(11):
        world.clock.advance(0.5)
        world.turn()
    assert old.closed
    world.welcome(A)
    world.turn()
    assert world.agent.background.ready


def test_an_agent_leaves_every_controller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmkv.agent.controllers.LEAVE_DEADLINE", 0.0)
    world = world_of(A, B)
    links = [world.at(address) for address in (A, B)]
    world.agent._controllers.leave(world.agent.epoch)
    assert [len(link.of(Leave)) for link in links] == [1, 1]
    assert all(link.closed for link in links)


def fetching(*controllers: str) -> tuple[World, list[int]]:
    """A request that awaits details of the peer that the first one has named."""
    world = world_of(*controllers)
    prompt = world.prompt(2)
    world.begin("a", prompt)
    world.located(2, at=query(controllers[0]))
    assert world.match("a", prompt) is None
    return world, prompt


def details_asked(world: World, *controllers: str) -> list[int]:
    return [len(world.at(address, 1).of(Peer)) for address in controllers]


def test_a_peer_s_details_come_from_the_next_controller_when_the_first_is_silent() -> None:
    world, prompt = fetching(A, B, C)
    seen = []
    for _ in range(40):
        assert world.match("a", prompt) is None
        seen.append(details_asked(world, A, B, C))
        world.clock.advance(1 / 1024)
    assert seen[0] == [1, 0, 0] and seen[15] == [1, 1, 0] and seen[-1] == [1, 1, 1]
    request, _ = world.at(B, 1).last(Peer)
    rank = RankInfo(0, THERE, nixl_metadata=b"metadata")
    world.at(B, 1).say(PeerInfo(request.request, "peer", PEER_EPOCH, 0, [rank]))
    assert world.match("a", prompt) is None  # a pull
    assert world.pull()[0].peer.instance == "peer"


def test_a_peer_that_one_controller_does_not_know_is_asked_of_the_next() -> None:
    world, prompt = fetching(A, B)
    for address, sent in ((A, [1, 1]), (B, [1, 1])):
        request, _ = world.at(address, 1).last(Peer)
        refused = Refused("unknown_instance", "not here", "instance", request.request)
        world.at(address, 1).say(refused)
        matched = world.match("a", prompt)
        assert details_asked(world, A, B) == sent
        assert matched == (None if address == A else 0)
    assert misses(world) == {"peer_dead": 8}
