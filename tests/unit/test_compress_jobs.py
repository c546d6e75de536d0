"""Compressing as a job: what movers are asked, what becomes readable, and a fault at every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from lmkv.core.messages import (
    Announce,
    Command,
    Compress,
    Compressed,
    Part,
    PullResult,
    Retract,
    Rewrite,
    Rewritten,
    Unsupported,
)
from lmkv.core.messages.jobs import ENDED

from tests.fake_links import CONTROLLER, World

GOOD, GONE = PullResult.GOOD, PullResult.GONE
PLACE, COUNTER, KEY = 8, 4, 16


class Compressing(World):
    """Movers that answer: a compressed chunk takes `sizes[rank]` granules, by its number in the
    question; `results` and `silent` are how they fail."""

    def __init__(self, ranks: int = 1, **settings: Any) -> None:
        super().__init__(ranks=ranks, **settings)
        self.sizes = [[12] * 64] * ranks
        self.results = {Compress: [GOOD] * 64, Rewrite: [GOOD] * 64}
        self.silent: set[int] = set()  # ranks
        self.error = ""
        self.unsupported = False
        self._done: set[tuple[int, int]] = set()

    def questions(self, rank: int) -> list[Any]:
        mine = {f"ipc://mover{rank}", f"ipc://mover9{rank}"}  # and the one after it
        links = [link for link in self.links if link.address in mine]
        return [
            (link, message, frames)
            for link in links
            for message, frames in link.sent
            if isinstance(message, (Compress, Rewrite))
        ]

    def movers(self) -> None:
        for rank in range(self.ranks):
            for link, message, frames in self.questions(rank):
                if rank in self.silent or link.closed or (rank, message.job) in self._done:
                    continue
                self._done.add((rank, message.job))
                self.answer(link, rank, message, len(frames[0]) // KEY)

    def answer(self, link: Any, rank: int, message: Any, n: int) -> None:
        results = bytes(self.results[type(message)][:n])
        if self.unsupported:
            link.say(Unsupported("compress"))
        elif isinstance(message, Compress):
            sizes = bytes(self.sizes[rank][:n])
            link.say(Compressed(rank, message.job, self.error), results, sizes)
        else:
            link.say(Rewritten(rank, message.job), results)

    def ask(self, operation: str, keys: bytes = b"", name: str = "j1", **arguments: str) -> None:
        command = Command(name, operation, "us", arguments, request=7, deadline=30.0)
        self.at(CONTROLLER).say(command, *([keys] if keys else []))

    def step(self) -> None:
        self.turn()
        self.movers()
        self.clock.advance(0.02)

    def part(self, name: str = "j1") -> Part:
        [part] = [m.part for _, m in self.agent.jobs.news(0) if m.part.id == name]  # type: ignore[attr-defined]
        return part

    def do(self, operation: str, keys: bytes = b"", name: str = "j1", **arguments: str) -> Part:
        self.ask(operation, keys, name, **arguments)
        for _ in range(3000):
            self.step()
            if self.part(name).state in ENDED:
                return self.part(name)
        raise AssertionError(self.part(name))

    def rest(self) -> dict[str, int]:
        """What no job may leave behind."""
        self.step()
        slots = self.agent.table.granules()
        own = len(self.agent.rewrites._links)
        return {"reserved": slots["reserved"], "limbo": slots["limbo"], "links": own}


NOTHING = {"reserved": 0, "limbo": 0, "links": 0}


def granules(world: World, keys: bytes) -> list[int]:
    return list(world.agent.table.places(keys)[0][4::PLACE])


def test_chunks_are_compressed_and_give_their_granules_back():
    world = Compressing()
    world.hold(0, 3)
    keys = world.keys(0, 3)
    part = world.do("compress", keys)
    assert (part.state, part.chunks, part.skipped) == ("done", 3, {})
    assert part.bytes == 3 * 4 * 1024 // 16  # 4 of 16 granules each
    assert granules(world, keys) == [12, 12, 12]
    assert world.agent.table.granules()["readable"] == 36
    assert world.agent.table.lookup(keys) == 3
    assert world.rest() == NOTHING
    again = world.do("compress", keys, "j2")
    assert (again.state, again.chunks, again.skipped) == ("done", 3, {"unchanged": 3})
    full = world.do("decompress", keys, "j3")
    assert (full.state, full.chunks, full.bytes) == ("done", 3, part.bytes)
    assert granules(world, keys) == [16, 16, 16]
    assert world.rest() == NOTHING


def test_two_jobs_at_the_same_chunks_compress_each_once():
    world = Compressing()
    world.hold(0, 3)
    keys = world.keys(0, 3)
    for name in ("j1", "j2"):
        world.ask("compress", keys, name)
    for _ in range(200):
        world.step()
    ended = [world.part(name) for name in ("j1", "j2")]
    assert [(part.state, part.skipped) for part in ended] == [
        ("done", {}),
        ("done", {"unchanged": 3}),
    ]
    assert granules(world, keys) == [12, 12, 12]
    assert world.rest() == NOTHING


def test_all_ranks_have_room_for_the_largest_and_one_that_does_not_shrink_counts():
    world = Compressing(ranks=2)
    world.hold(0, 3)
    world.sizes = [[10, 12, 9], [11, 0, 9]]
    part = world.do("compress", world.keys(0, 3))
    assert (part.state, part.chunks, part.skipped) == ("done", 3, {"unchanged": 1})
    assert granules(world, world.keys(0, 3)) == [11, 16, 9]
    asked = [frames for rank in (0, 1) for _, m, frames in world.questions(rank)[1:]]
    assert asked[0] == asked[1]  # the same places
    assert world.rest() == NOTHING


def test_chunks_that_are_read_or_pinned_or_not_here_stay():
    world = Compressing()
    world.hold(0, 3)
    keys = world.keys(0, 4)
    world.do("pin", keys[:KEY], "p", ttl="60")
    world.agent.table.pin(keys[KEY : 2 * KEY])  # as a load does
    part = world.do("compress", keys)
    assert part.state == "done"
    assert (part.chunks, part.skipped) == (4, {"pinned": 2, "absent": 1})
    assert granules(world, keys) == [16, 16, 12]
    none = world.do("compress", world.keys(9, 12), "j2")
    assert (none.state, none.code) == ("failed", "unknown_prefix")


def test_whole_instances():
    world = Compressing()
    world.hold(0, 3)
    world.turn()
    part = world.do("compress", whole="1")
    assert (part.state, part.chunks, part.chunks_total) == ("done", 3, 3)
    assert granules(world, world.keys(0, 3)) == [12, 12, 12]


def test_a_chunk_of_a_whole_instance_is_counted_once():
    """Those that were moved to the pool's other end come by again there."""
    world = Compressing(slots=300)
    for first in range(0, 200, 20):
        world.hold(first, first + 20)
    world.turn()
    part = world.do("compress", whole="1")
    assert (part.state, part.chunks, part.skipped) == ("done", 200, {})
    assert set(granules(world, world.keys(0, 200))) == {12}


def test_what_controllers_hear_is_what_the_table_has():
    world = Compressing()
    world.hold(0, 3)
    world.do("compress", world.keys(0, 3))
    world.step()
    link = world.at(CONTROLLER)
    told = [(type(m), frames[1][4::PLACE]) for m, frames in link.sent if len(frames) == 3]
    assert told[-2:] == [(Retract, b"\x10" * 3), (Announce, b"\x0c" * 3)]
    assert world.agent.table.sums()[0] == 3


def test_a_pool_in_a_gpus_memory_is_refused_by_name():
    world = Compressing(tier=1)
    world.hold(0, 1)
    part = world.do("compress", world.keys(0, 1))
    assert (part.state, part.code) == ("failed", "unavailable")
    assert "GPU's memory" in part.reason


def test_a_link_that_is_not_connected_yet_is_tried_again():
    world = Compressing()
    world.hold(0, 1)
    tries = iter(range(100))

    def connect(address: str, made: Any = world.agent.rewrites._connect) -> Any:
        link = made(address)
        send = link.send
        link.send = lambda *args: next(tries) >= 3 and send(*args)
        return link

    world.agent.rewrites._connect = connect
    assert world.do("compress", world.keys(0, 1)).state == "done"
    assert next(tries) > 3
    assert world.rest() == NOTHING


def test_movers_that_cannot_say_why():
    world = Compressing()
    world.hold(0, 1)
    world.error = "no zstd library is found"
    part = world.do("compress", world.keys(0, 1))
    assert (part.state, part.code, part.reason) == ("failed", "unavailable", world.error)
    world.unsupported = True
    older = world.do("compress", world.keys(0, 1), "j2")
    assert (older.state, older.code) == ("failed", "failed")
    assert "knows no compress" in older.reason
    assert world.rest() == NOTHING


@pytest.mark.parametrize("kind", [Compress, Rewrite])
def test_results_are_counted(kind: type):
    world = Compressing()
    world.hold(0, 3)
    world.results[kind] = [GOOD, GONE, PullResult.INCOMPATIBLE]
    part = world.do("compress", world.keys(0, 3))
    assert (part.state, part.chunks) == ("done", 3)
    assert part.skipped == {"absent": 1, "incompatible": 1}
    assert granules(world, world.keys(0, 3)) == [12, 16, 16]
    assert world.rest() == NOTHING


def test_a_slot_that_was_evicted_meanwhile_is_not_replaced():
    world = Compressing()
    world.hold(0, 2)
    keys = world.keys(0, 2)
    world.ask("compress", keys)
    while not any(isinstance(m, Rewrite) for _, m, _ in world.questions(0)):
        world.step()
    world.agent.table.retire(keys[:KEY], revivable=False)
    while world.part().state not in ENDED:
        world.step()
    assert (world.part().state, world.part().skipped) == ("done", {"absent": 1})
    assert world.agent.table.contains(keys) == b"\0\1"
    assert world.rest() == NOTHING


def test_no_room():
    world = Compressing(slots=2)
    world.hold(0, 2)
    world.agent.table.pin(world.keys(0, 1))
    others = world.agent.table.reserve(world.keys(5, 6), 0.0)  # in the place of the other one
    assert others is not None
    world.agent.table.admit(*others)
    world.agent.table.pin(world.keys(5, 6))
    part = world.do("compress", world.keys(5, 6), "j0")
    assert part.skipped == {"pinned": 1} or part.code == "no_room"
    assert world.rest() == NOTHING


# ---------------------------------------------------------------- faults


def mover_gone(world: Compressing) -> None:
    world.worker_state(0, "")


def mover_replaced(world: Compressing) -> None:
    world.worker_state(0, "ipc://mover90", 2)


def reset(world: Compressing) -> None:
    world.agent.reset()


def cancel(world: Compressing) -> None:
    world.ask("cancel", name="c1", job="j1")


FAULTS = [mover_gone, mover_replaced, reset, cancel]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("silent", [False, True])
def test_a_fault_at_every_step(fault: Callable[[Compressing], None], silent: bool):
    """`silent`: the mover does not answer what it has been asked when the fault comes; what it was
    told to write to is in limbo until it answers, or is another one."""
    states = set()
    for at in range(40):
        world = Compressing()
        world.hold(0, 3)
        world.turn()
        world.ask("compress", world.keys(0, 3))
        for _ in range(at):
            world.step()
        ended = world.agent.jobs._jobs.get("j1")
        if ended is not None and ended.part.state in ENDED:
            break
        if silent:
            world.silent = {0}
        fault(world)
        for _ in range(2000):
            world.step()
            job = world.agent.jobs._jobs.get("j1")
            if job is not None and job.part.state in ENDED:
                break
        part = world.part()
        assert part.state in ENDED, (at, part)
        assert part.state == "done" or part.reason, (at, part)
        states.add(part.state)
        if silent and fault in (reset, cancel):
            asked = [m for _, m, _ in world.questions(0) if isinstance(m, Rewrite)]
            open_ones = [m for m in asked if (0, m.job) not in world._done]
            assert world.rest()["limbo"] == 36 * len(open_ones), at
            states |= {"limbo"} if open_ones else set()
        world.silent = set()
        world.step()
        assert world.rest() == NOTHING, at
        assert world.agent.table.granules()["reserved"] == 0
    else:
        pytest.fail("the job did not end without the fault")
    assert "failed" in states or "cancelled" in states
    assert ("limbo" in states) == (silent and fault is cancel)
