"""Two that are at the same chunks at once: a job and the scheduler's thread, or two jobs.

What happens in between is put there by a table that does it, or at every offset.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from lmkv.agent.jobs import split
from lmkv.agent.slots import retire
from lmkv.agent.stream import Stream
from lmkv.core import wire
from lmkv.core.messages import Command, HeartbeatOk, ProbeOk
from lmkv.sim.worker import _slots

from tests.fake_links import World
from tests.job_cluster import Cluster

CHUNKS = 4


class Meanwhile:
    """A slot table; behind the next call of `method` comes what another thread does then."""

    def __init__(self, table: Any, method: str, then: Callable[[], object]) -> None:
        self._table, self._method, self._then = table, method, [then]

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._table, name)

        def call(*arguments: Any) -> Any:
            answer = real(*arguments)
            if name == self._method and self._then:
                self._then.pop()()
            return answer

        return call if callable(real) else real


# ---------------------------------------------------------------- beside the scheduler's thread


def test_a_clear_between_a_lookup_and_its_load_costs_nobody_anything():
    world = World()
    world.hold(0, 3)
    world.begin("r", world.prompt(3))
    keys = split(world.keys(0, 3))
    table = world.agent.table
    world.agent.reader._table = Meanwhile(table, "pin", lambda: retire(world.agent, keys))  # type: ignore[assignment]
    assert world.match("r", world.prompt(3)) == 12
    assert table.pins == 3
    world.agent.allocated("r", [[*range(7)]], 12)
    assert [chunk.key for chunk in world.agent.step([], []).loads[0].chunks] == keys
    world.agent.finished("r")
    assert table.lookup(world.keys(0, 3)) == 0
    assert table.granules()["pinned"] == 48  # the load still reads them


def test_a_chunk_that_goes_as_it_is_pinned_leaves_no_pin_behind():
    world = World()
    world.hold(0, 1)
    pins, table = world.agent.pins, world.agent.table
    pins._table = Meanwhile(table, "pin", lambda: table.retire(world.keys(0, 1), False))  # type: ignore[assignment]
    pins.begin("p", "team", 0.0)
    assert pins.add("p", [world.keys(0, 1)]) == 1
    assert pins.release("p") == 1
    assert (table.pins, pins.granules, table.granules()["pinned"]) == (0, 0, 0)


def test_what_a_pin_takes_back_is_no_chunk_that_is_just_being_stored():
    world = World()
    tokens = world.prompt(1)
    world.begin("r", tokens)
    world.agent.allocated("r", [], 0)
    world.hold(0, 1)
    key = world.keys(0, 1)
    assert world.agent.table.retire(key) == 1  # for room: it may be revived
    world.agent.pins.begin("p", "team", 0.0)
    pinning = threading.Thread(target=lambda: world.agent.pins.add("p", [key]), daemon=True)

    def pin() -> None:
        pinning.start()
        pinning.join(0.2)  # it waits for the reservation, or has the chunk by now

    table = world.agent.table
    world.agent.table = Meanwhile(table, "contains", pin)  # type: ignore[assignment]
    stores = world.agent.step([("r", *world.agent.plan("r", tokens, 4), [range(9)])], []).stores
    pinning.join()
    assert [store.key for store in stores] == [key]
    assert table.contains(key) == b"\2"
    assert table.pins == 0


@pytest.mark.parametrize("comes", [True, False])
def test_a_chunk_that_a_request_brings_meanwhile_is_moved_like_the_others(comes: bool):
    cluster = Cluster("a", "b")
    a, b = cluster["a"], cluster["b"]
    keys, table = a.hold(0, 3), b.agent.table
    room: list[Any] = []

    def asked() -> None:
        room.append(table.reserve(b.keys(1, 2), cluster.times.clock()))

    b.agent.table = Meanwhile(table, "contains", asked)  # type: ignore[assignment]
    cluster.take("move", "b", keys, source="a")
    while not room or b.part().chunks < 2:
        cluster.tick()
    b.agent.table = table
    cluster.run(50)
    assert b.part().state == "running"  # it waits for that one
    if comes:
        b.worker.holds |= dict(_slots(*room[0]))
        table.admit(*room[0])
    else:
        table.abort(*room[0])
    part = cluster.ended("b")
    assert (part.state, part.chunks) == ("done", 3)
    assert part.skipped == {"present" if comes else "absent": 1}
    assert (a.has(0, 3), b.has(0, 3)) == (([], [0, 1, 2]) if comes else ([1], [0, 2]))
    assert list(cluster.at_rest()) == []


# ---------------------------------------------------------------- two moves


@pytest.mark.parametrize("whole", [False, True])
def test_what_two_move_to_each_other_is_at_one_of_them_at_least(whole: bool):
    for delay in range(25):
        cluster = Cluster("a", "b")
        a, b = cluster["a"], cluster["b"]
        keys = a.hold(0, CHUNKS)
        b.hold(0, CHUNKS)
        frames, more = ((), {"whole": "1"}) if whole else ((keys,), {})
        cluster.run(3)
        cluster.take("move", "b", *frames, name="j1", source="a", **more)
        cluster.run(delay)
        cluster.take("move", "a", *frames, name="j2", source="b", **more)
        for name, job in (("b", "j1"), ("a", "j2")):
            part = cluster.ended(name, job)
            assert part.state == "done", (delay, part)
        cluster.run(5)
        assert {*a.has(0, CHUNKS), *b.has(0, CHUNKS)} == set(range(CHUNKS)), delay
        assert list(cluster.at_rest()) == [], delay


def test_a_command_to_give_up_slots_that_comes_late_is_no_command_for_newer_ones():
    cluster = Cluster("a", "b", controllers=2)
    a, b = cluster["a"], cluster["b"]
    keys = a.hold(0, 2)
    late: list[Any] = []
    for controller in cluster.controllers:  # the first that is asked keeps it for a while
        hear = controller.commands.hear

        def held(link: bytes, message: Any, frames: list[bytes], hear: Any = hear) -> Any:
            if isinstance(message, Command) and message.operation == "retire" and not late:
                late.append(lambda: hear(link, message, frames))
                return []
            return hear(link, message, frames)

        controller.commands.hear = held  # type: ignore[method-assign]
    assert cluster.do("move", "b", keys, source="a").state == "done"
    assert (a.has(0, 2), b.has(0, 2)) == ([], [0, 1])
    cluster.do("clear", "b", keys, name="j2")
    a.hold(0, 2)
    [command] = late
    for controller in cluster.controllers:
        controller._send(command())
    cluster.run(5)
    assert a.has(0, 2) == [0, 1]


def test_a_chunk_that_was_compressed_meanwhile_is_given_up_too():
    cluster = Cluster("a", "b")
    a, b = cluster["a"], cluster["b"]
    keys = a.hold(0, 2)
    table = a.agent.table
    given_up = a.agent.commands._prompt["retire"]

    def compressed_first(*command: Any) -> Any:
        key = a.keys(1, 2)
        place, counter, there = table.places(key)
        if there and place[4] == 16:
            short = table.reserve_again(key, cluster.times.clock(), b"\5")
            assert short is not None and table.replace(*short, place, counter) == b"\1"
        return given_up(*command)

    a.agent.commands._prompt["retire"] = compressed_first
    part = cluster.do("move", "b", keys, source="a")
    assert (part.state, part.skipped) == ("done", {})
    assert (a.has(0, 2), b.has(0, 2)) == ([], [0, 1])
    assert list(cluster.at_rest()) == []


# ---------------------------------------------------------------- a move and what it announces


def slow_link(cluster: Cluster, name: str) -> Callable[[], None]:
    """Nothing more leaves for the first controller, which goes on to be heard; an end to that."""
    controller, agent = cluster.controllers[0], cluster[name].agent
    link = agent._controllers._links[controller.address]
    link.up = False  # type: ignore[attr-defined]
    tick = cluster.tick

    def ticked() -> None:
        link.say(HeartbeatOk(controller.registry.epoch, 0))  # type: ignore[attr-defined]
        tick()

    def over() -> None:
        cluster.tick = tick  # type: ignore[method-assign]
        link.up = True  # type: ignore[attr-defined]

    cluster.tick = ticked  # type: ignore[method-assign]
    return over


def test_a_source_keeps_what_its_new_place_could_not_announce_and_a_retry_moves_it():
    cluster = Cluster("a", "b", controllers=2)
    a, b = cluster["a"], cluster["b"]
    keys = a.hold(0, 2)
    cluster.run(3)
    over = slow_link(cluster, "b")
    cluster.controllers.reverse()  # the other one takes the job
    part = cluster.do("move", "b", keys, source="a")
    assert (part.state, part.code, "announced in 5 s" in part.reason) == ("failed", "timeout", True)
    assert (a.has(0, 2), b.has(0, 2)) == ([0, 1], [0, 1])
    over()
    cluster.run(30)
    cluster.ask("retry", "b", name="r1", job="j1")
    assert cluster.ended("b").state == "done"
    assert (a.has(0, 2), b.has(0, 2)) == ([], [0, 1])
    assert list(cluster.at_rest()) == []


def test_a_move_waits_for_its_own_announcements_and_not_for_all_that_ever_comes_behind_them():
    cluster = Cluster("a", "b")
    a, b = cluster["a"], cluster["b"]
    keys = a.hold(0, 2)
    cluster.run(3)
    stream, pump = b.agent.streams["tcp://127.0.0.1:7000"], Stream.pump

    def more(changes: Any) -> None:
        pump(stream, changes)
        stream._put(wire.encode(ProbeOk(b.agent.epoch)))

    def one_less(send: Callable[[list[bytes]], bool]) -> None:
        while len(stream.outbox) > 1:
            assert send(stream.outbox.popleft())

    stream.pump, stream.flush = more, one_less  # type: ignore[method-assign]
    assert cluster.do("move", "b", keys, source="a").seconds < 1
    assert a.has(0, 2) == []
