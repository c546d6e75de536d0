"""Bytes from peers: counted by an instance, told in its heartbeats, kept by the controller."""

from __future__ import annotations

from lmkv.agent.stats import Stats
from lmkv.controller.flows import PAIRS, PEERS, SLICES, Flows
from lmkv.core.clock import ManualClock
from lmkv.core.messages import Flow, FlowInfo, Heartbeat, PullResult, Status, StatusInfo
from lmkv.core.peer_labels import MOST
from lmkv.core.steps import LoadResult

from tests.fake_links import CONTROLLER, World
from tests.stub_instance import StubInstance
from tests.unit.test_agent_read import load, pulling
from tests.unit.test_registry import Story

GOOD, DIGEST = PullResult.GOOD, PullResult.DIGEST


def pairs(flows: Flows, seconds: float = 300.0, limit: int = 100) -> dict[tuple[str, str], int]:
    answer = flows.answer(Flow(1, seconds, limit))
    return {(pair.source, pair.target): pair.bytes for pair in answer.flows}


# ------------------------------------------------------------------ an instance


def test_a_peer_that_brings_nothing_for_long_makes_room() -> None:
    clock = ManualClock()
    stats = Stats(clock)
    for number in range(MOST + 8):
        stats.pull(f"p{number}", 0.1, 2)
    assert len(stats.peer_bytes()) == MOST + 1
    assert stats.peer_bytes()["other"] == 16
    clock.advance(601)
    stats.pull("new", 0.1, 3)
    assert "p0" not in stats.peer_bytes()
    assert stats.peer_bytes()["new"] == 3
    assert len(stats.peer_bytes()) == MOST + 1


def test_a_heartbeat_tells_what_came_since_the_last_one() -> None:
    world = World()
    pulling(world, chunks=3)
    world.pulled([GOOD, DIGEST, GOOD], seconds=0.25, bytes=2048)
    told = []
    for _ in range(2):
        world.clock.advance(1)
        world.turn()
        told.append(world.at(CONTROLLER).last(Heartbeat)[0].peer_bytes)
    assert told == [{"peer": 2048}, {}]


def test_what_was_read_from_a_mapping_came_too() -> None:
    world = World()
    prompt = world.prompt(3)
    world.begin("a", prompt)
    world.located(3, "peer")
    assert world.match("a", prompt) is None
    world.peer_info(mapped=True)
    matched = world.match("a", prompt)
    assert matched
    load(world, "a", matched, list(range(9)))
    world.agent.loaded("a", LoadResult(2))
    size = world.agent.reader._groups[0].payload_bytes
    assert world.agent.stats.peer_bytes() == {"peer": 2 * size}


# ------------------------------------------------------------------ a controller


def test_the_window_slides() -> None:
    clock = ManualClock()
    flows = Flows(clock)
    flows.add("b", {"a": 5})
    clock.advance(9)
    flows.add("b", {"a": 2, "c": 3})
    flows.add("c", {})
    clock.advance(10)
    flows.add("c", {"a": 1})
    assert pairs(flows) == {("a", "b"): 7, ("c", "b"): 3, ("a", "c"): 1}
    assert pairs(flows, limit=1) == {("a", "b"): 7}
    assert pairs(flows, seconds=10) == {("a", "c"): 1}
    assert pairs(flows, seconds=0) == {("a", "c"): 1}
    assert flows.answer(Flow(3, 300, 1)) == FlowInfo(3, 19, 11, 3, [flows.answer(Flow()).flows[0]])
    clock.advance(300)
    assert (pairs(flows), flows.bytes) == ({}, 11)


def test_whoever_says_much_fills_little() -> None:
    clock = ManualClock()
    flows = Flows(clock)
    flows.add("b", {f"p{i}": 1 for i in range(1000)})
    found = pairs(flows, limit=10_000)
    assert len(found) == PEERS + 1
    assert found["other", "b"] == 1000 - PEERS
    for number in range(2 * PAIRS):
        flows.add(f"t{number}", {"a": 1})
    assert len(pairs(flows, limit=10_000)) == PAIRS + 1
    for _ in range(3 * SLICES):
        clock.advance(10)
        flows.add("b", {"a": (1 << 64) - 1})
    assert len(flows._slices) == SLICES
    assert (flows.bytes, *pairs(flows).values()) == ((1 << 64) - 1,) * 2
    flows.add("b", {"a\nb\x1b" * 100: 4})
    assert ("a?b?" * 32, "b") in pairs(flows)


def test_what_came_to_one_and_was_taken_of_it() -> None:
    clock = ManualClock()
    flows = Flows(clock)
    flows.add("b", {"a": 5, "c": 1, "d": 0})
    clock.advance(200)
    flows.add("b", {"a": 2})
    flows.add("a", {"b": 3})
    assert [flows.of(name) for name in "abcd"] == [(3, 7), (8, 3), (0, 1), (0, 0)]
    clock.advance(100)  # the first slice is over
    assert [flows.of(name) for name in "abc"] == [(3, 2), (2, 3), (0, 0)]
    clock.advance(200)
    assert [flows.of(name) for name in "abc"] == [(0, 0)] * 3
    assert (len(flows._into), len(flows._out_of)) == (0, 0)
    for _ in range(3):
        flows.add("b", {"a": (1 << 64) - 1})
    assert flows.of("b") == ((1 << 64) - 1, 0)


def test_the_registry_takes_them_from_heartbeats() -> None:
    story = Story()
    a, _ = story.join(StubInstance("a")), story.join(StubInstance("b"))
    for size in (4, 6):
        beat = Heartbeat(a.epoch, a.number(), *a.table.sums(), peer_bytes={"b": size})
        story.tell(a, (beat, ()))
    answer = story.ask(Flow(2))
    assert isinstance(answer, FlowInfo)
    assert [(pair.source, pair.target, pair.bytes) for pair in answer.flows] == [("b", "a", 10)]
    status = story.ask(Status())
    assert isinstance(status, StatusInfo)
    assert status.peer_bytes == 10
