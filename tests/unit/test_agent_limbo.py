"""Limbo and the lives of movers and peers, told by an agent whose movers are the test."""

from __future__ import annotations

import pytest
from lmkv.core.messages import Forget, Pulled, PullResult, Replace

from tests.fake_links import PEER_EPOCH, World

GOOD, GONE, TIMEOUT = PullResult.GOOD, PullResult.GONE, PullResult.TIMEOUT
PEER_DEAD = PullResult.PEER_DEAD


def pulling(
    world: World, chunks: int = 2, epoch: int = PEER_EPOCH, peer: str = "peer"
) -> list[int]:
    """Request "a", whose chunks a peer has, and whose Pull is with the mover."""
    prompt = world.prompt(chunks)
    world.begin("a", prompt)
    world.located(chunks, peer, epoch)
    if world.match("a", prompt) is None and not world.agent.pulls.open:
        world.peer_info(peer, epoch=epoch)
        assert world.match("a", prompt) is None
    return prompt


def finish(world: World) -> dict[str, int]:
    """Its misses; it ends without a load."""
    world.match("a", world.prompt(2))
    world.agent.allocated("a", [], 0)
    ended = world.agent.finished("a")
    assert ended is not None
    return {cause: n for cause, n in ended["lmkv"]["miss_tokens"].items() if n}


def replaced(world: World, rank: int = 0) -> list[int]:
    """Generations of the movers that this rank's worker was asked to replace."""
    return [m.mover_generation for m, _ in world.at(f"ipc://worker{rank}").of(Replace)]


def test_a_mover_that_keeps_reads_past_the_limit_is_replaced_by_its_worker() -> None:
    world = World(ranks=2, limbo_seconds=60, limbo_share=0.5, pull_deadline_min=0.25)
    prompt = pulling(world)
    world.pulled([GOOD, GOOD], 1)
    world.clock.advance(0.31)
    assert world.match("a", prompt) == 0  # mover 0 is stopped: it does not replace itself
    finish(world)
    world.clock.advance(64.9)
    world.turn()
    assert replaced(world) == []
    for _ in range(3):  # once a second
        world.clock.advance(0.5)
        world.turn()
    assert replaced(world) == [1, 1]
    assert replaced(world, 1) == []
    world.worker_state(0, "", 1)
    world.worker_state(0, "ipc://another", 2)
    world.turn()
    world.clock.advance(100)
    world.turn()
    assert replaced(world) == [1, 1]
    assert world.at_rest()


def test_too_much_limbo_replaces_the_mover_sooner() -> None:
    world = World(limbo_seconds=60, limbo_share=1 / 16, pull_deadline_min=0.25)  # a slot of 16
    prompt = pulling(world)
    world.clock.advance(0.31)
    assert world.match("a", prompt) == 0
    assert world.granules("limbo") == 2
    world.clock.advance(4.9)
    world.turn()
    assert replaced(world) == []
    world.clock.advance(0.2)
    world.turn()
    assert replaced(world) == [1]


def test_two_movers_in_a_row_end_a_pull_once() -> None:
    """The first dies with the READ under way, the second before the pull has gone on."""
    world = World()
    prompt = pulling(world)
    first = world.at("ipc://mover0")
    job = world.pull()[0].job
    world.worker_state(0, "ipc://second", 2)
    world.worker_state(0, "ipc://third", 3)
    world.turn()
    assert first.closed and world.agent.pulls.ready
    assert world.granules("reserved") + world.granules("limbo") == 0
    world.at("ipc://third").say(Pulled(0, job), bytes([GOOD] * 2))  # of no job
    assert world.match("a", prompt) == 0
    assert finish(world) == {"mover_down": 8, "too_short": 1}
    assert world.at_rest()


def test_limbo_outlives_a_reset_and_ends_with_its_mover_or_read() -> None:
    world = World(slots=4)
    prompt = pulling(world)
    world.pulled([GOOD, TIMEOUT])
    assert world.match("a", prompt) == 4
    finish(world)
    world.agent.reset()
    assert world.granules("limbo") == 1
    fresh = world.keys(0, 4)  # counters begin anew
    assert world.agent.table.reserve(fresh, world.clock()) is None, "the fourth slot is in limbo"
    room = world.agent.table.reserve(fresh[:48], world.clock())
    assert room is not None
    world.limbo_ended()
    world.turn()
    assert world.granules("limbo") == 0
    assert world.agent.table.admit(*room) == 3
    assert world.agent.table.reserve(fresh[48:], world.clock()) is not None


def test_movers_forget_a_life_that_another_has_displaced() -> None:
    world = World()
    for epoch in (PEER_EPOCH, PEER_EPOCH, PEER_EPOCH + 1):
        pulling(world, epoch=epoch)
        world.pulled([GONE, GONE])
        finish(world)
    ((forget, _),) = world.at("ipc://mover0").of(Forget)
    assert forget == Forget("peer", PEER_EPOCH)


def test_movers_forget_a_peer_that_does_not_answer() -> None:
    world = World(ranks=2)
    prompt = pulling(world)
    world.pulled([GOOD, PEER_DEAD], 1)
    assert world.match("a", prompt) is None
    assert world.at("ipc://mover0").of(Forget) == [], "the other rank's READ is under way"
    world.pulled([GOOD, GOOD], 0)
    assert world.match("a", prompt) == 4
    for rank in range(2):
        ((forget, _),) = world.at(f"ipc://mover{rank}").of(Forget)
        assert forget == Forget("peer", PEER_EPOCH)


def test_a_peer_that_another_pull_is_under_way_to_is_not_forgotten() -> None:
    """It may be to the peer's next mover; a mover gives up what it has not read when it forgets."""
    world = World()
    pulling(world)
    other = [7] * 9
    world.begin("b", other)
    world.located(2)
    assert world.match("b", other) is None
    world.pulled([PEER_DEAD] * 2)
    assert world.match("b", other) == 0
    assert world.at("ipc://mover0").of(Forget) == []


def test_movers_forget_the_peers_that_were_not_pulled_from_for_longest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lmkv.agent.pulls.LIVES", 2)
    world = World()
    for peer in ("p1", "p2", "p1", "p3"):
        pulling(world, peer=peer)
        world.pulled([GONE, GONE])
        finish(world)
    ((forget, _),) = world.at("ipc://mover0").of(Forget)
    assert forget == Forget("p2", PEER_EPOCH)
