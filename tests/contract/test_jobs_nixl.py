"""Operations between two instances without vLLM: agents, workers, movers and controller are real.

What a job has brought is loaded into the KV of its new instance and compared byte by byte.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable, Iterator

import msgspec
import numpy as np
import pytest
from lmkv.agent.agent import Agent
from lmkv.agent.engine import Engine
from lmkv.agent.engine import Rank as EngineRank
from lmkv.agent.transfers import Geometry
from lmkv.core import config, geometry
from lmkv.core.client import Client
from lmkv.core.messages import (
    Command,
    Done,
    Lookup,
    LookupInfo,
    Part,
    Peer,
    PeerInfo,
)
from lmkv.core.messages.jobs import ENDED
from lmkv.core.steps import Load, LoadChunk, StepPlan

from tests.contract.test_controller import Controller, until
from tests.contract.test_worker import Rank, key
from tests.ports import free_port

CHUNKS = 6
NAMESPACE, SPECS = "model=m\n", ["kind=full\n"]
pytestmark = pytest.mark.nixl


class Instance(Rank):
    """A worker with a real agent beside it, in the place of the test's."""

    def __init__(
        self, name: str, run_dir: str, seed: int, controllers: list[str], **settings: object
    ) -> None:
        super().__init__(name, run_dir, seed, **settings)
        self.agent.close()  # the socket of a test that plays the agent
        hello = self.hello
        fingerprints = [geometry.fingerprint(layout) for layout in hello["layouts"]]
        rank = EngineRank(hello["info"], hello["control"], hello["layouts"], fingerprints)
        engine = Engine(
            name,
            lambda word: NAMESPACE,
            SPECS,
            [Geometry(16, 8, hello["payload_bytes"][0])],
            hello["slots"],
            hello["info"].segment_granules // 16,
            [rank],
        )
        inline = {"controllers": controllers, "run_dir": run_dir, **settings}
        self.real = Agent(config.load(config.InstanceConfig, inline), engine)
        self.real.start()

    def store(self, *names: int) -> None:
        """Chunk n is that of two blocks which are filled with bytes of its own."""
        for n in names:
            self.kv.array[:, [0, 1]] = payload(n)
            [made] = self.real.stores.plan([(key(n), [0, 1])], self.real._clock())
            self.worker.submit_stores(StepPlan(self.real.epoch, [made]))
            until(lambda: self.real.stores.open == 0)
        assert self.has(*names) == list(names)

    def has(self, *names: int) -> list[int]:
        there = self.real.table.contains(b"".join(map(key, names)))
        return [n for n, state in zip(names, there) if state == 1]

    def bytes_of(self, n: int) -> np.ndarray:
        """The chunk as a load brings it to blocks 4 and 5."""
        place, counter, found = self.real.table.places(key(n))
        assert found == 1
        generation = (self.real.epoch & 0xFFFFFFFF) << 32 | int.from_bytes(counter, "little")
        self.kv.array[:, [4, 5]] = 0
        plan = StepPlan(
            self.real.epoch, loads=[Load("r", [LoadChunk(key(n), place, generation, [4, 5])], [])]
        )
        self.worker.handle_preemptions(plan)
        self.worker.submit_loads(plan)
        assert self.finished()["r"].good == 1
        return self.kv.chunk(4, 5)

    def corrupt(self, n: int) -> None:
        """One bit of the chunk, in the pool."""
        place, _, _ = self.real.table.places(key(n))
        at = self.worker.pool.slot_address(place) + self.kv.slot.payload_offset + 5000
        (ctypes.c_uint8).from_address(at).value ^= 1

    @property
    def mover(self) -> int:
        pid = self.worker.supervisor.pid
        assert pid is not None
        return pid

    def left_behind(self) -> list[str]:
        """What jobs may not leave."""
        slots, agent = self.real.table.granules(), self.real
        counts = {
            "pins": agent.table.pins
            - sum(agent.pins.size(p)[0] for p in agent.pins.within(None, "")),
            "reserved": slots["reserved"],
            "limbo": slots["limbo"],
            "pulls": agent.pulls.open,
            "jobs": agent.jobs.open,
            "links": len(agent.fetches._links) + len(agent.fetches.relay._links),
        }
        return [f"{name} {n}" for name, n in counts.items() if n]

    def close(self) -> None:
        self.real.close()
        self.worker.stop()


def payload(n: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (2, 2, 2, 4096), np.uint8)


class World:
    def __init__(self, run_dir: str, controllers: int = 1, **settings: object) -> None:
        self.controllers = [Controller(free_port()) for _ in range(controllers)]
        addresses = [each.state for each in self.controllers]
        self.a = Instance("a", run_dir, 1, addresses, **settings)
        self.b = Instance("b", run_dir, 2, addresses, **settings)
        self.client = Client(addresses[-1], 20.0)
        for name in "ab":
            until(lambda name=name: self.pullable(name))
        until(lambda: self.a.real.pulls.ready and self.b.real.pulls.ready)

    def pullable(self, name: str) -> bool:
        answer, _ = self.client.ask(Peer(1, name))
        return isinstance(answer, PeerInfo) and all(r.nixl_metadata for r in answer.ranks)

    def movers(self, name: str) -> list[bytes]:
        """Metadata of the instance's mover, as each controller tells it."""
        found = []
        for each in self.controllers:
            with Client(each.state, 20.0) as client:
                answer, _ = client.ask(Peer(1, name))
            assert isinstance(answer, PeerInfo)
            found.append(answer.ranks[0].nixl_metadata)
        return found

    def holders(self, *names: int) -> list[list[str]]:
        """As the directory has them."""
        keys = b"".join(map(key, names))
        answer, _ = self.client.ask(Lookup(1, like="a"), keys)
        assert isinstance(answer, LookupInfo), answer
        return answer.holders

    def take(
        self, operation: str, *names: int, job: str = "j1", to: str = "b", **more: str
    ) -> Part:
        command = Command(job, operation, to, more, request=3, deadline=10.0)
        answer, _ = self.client.ask(command, *([b"".join(map(key, names))] if names else []))
        assert isinstance(answer, Done), answer
        return msgspec.msgpack.decode(answer.result, type=Part)

    def ended(self, job: str = "j1", at: str = "b") -> Part:
        agent = (self.a if at == "a" else self.b).real

        def part() -> Part:
            return next(m.part for _, m in agent.jobs.news(0) if m.part.id == job)  # type: ignore[attr-defined]

        until(lambda: part().state in ENDED)
        return part()

    def do(self, operation: str, *names: int, job: str = "j1", to: str = "b", **more: str) -> Part:
        self.take(operation, *names, job=job, to=to, **more)
        return self.ended(job, to)

    def at_rest(self) -> None:
        until(lambda: not self.a.left_behind() + self.b.left_behind())

    def close(self) -> None:
        self.a.close()
        self.b.close()
        self.client.close()
        for each in self.controllers:
            each.end()


@pytest.fixture
def world(run_dir: str) -> Iterator[World]:
    made = World(run_dir, controllers=2)
    yield made
    made.close()


@pytest.fixture
def slow(run_dir: str) -> Iterator[World]:
    """By TCP, where a holder that is stopped leaves READs under way."""
    made = World(run_dir, nixl_tls="tcp", pull_deadline_max=1.0, limbo_share=0.5)
    yield made
    made.close()


def test_copied_and_moved_chunks_are_there_byte_by_byte(world: World) -> None:
    names = range(CHUNKS)
    world.a.store(*names)
    part = world.do("copy", *range(CHUNKS + 1))
    assert (part.state, part.chunks, part.skipped) == ("done", CHUNKS + 1, {"absent": 1}), part
    assert part.bytes >= CHUNKS * world.b.kv.slot.payload_bytes
    for n in names:
        assert np.array_equal(world.b.bytes_of(n), payload(n)), n
    until(lambda: world.holders(*names) == [["a", "b"]] * CHUNKS)
    # What is there already is digested again before the source gives it up.
    part = world.do("move", *names, job="j2", source="a")
    assert (part.state, part.skipped) == ("done", {"present": CHUNKS}), part
    assert (world.a.has(*names), world.b.has(*names)) == ([], list(names))
    until(lambda: world.holders(*names) == [["b"]] * CHUNKS)
    # And back, as a whole.
    part = world.do("move", job="j3", to="a", source="b", whole="1")
    assert (part.state, part.chunks) == ("done", CHUNKS), part
    until(lambda: world.holders(*names) == [["a"]] * CHUNKS)
    for n in names:
        assert np.array_equal(world.a.bytes_of(n), payload(n)), n
    world.at_rest()


def test_a_corrupt_chunk_is_not_taken_and_stays_where_it_is(world: World) -> None:
    world.a.store(*range(CHUNKS))
    world.a.corrupt(2)
    part = world.do("move", *range(CHUNKS), source="a")
    assert (part.state, part.code) == ("failed", "digest")
    assert part.reason.startswith("1 chunks did not have their digests")
    assert world.b.has(*range(CHUNKS)) == [0, 1, 3, 4, 5]
    assert world.a.has(*range(CHUNKS)) == [2]
    # One that is wrong at its new place does not cost the source its own.
    world.a.store(0)
    world.b.corrupt(0)
    part = world.do("move", 0, 1, job="j2", source="a")
    assert (part.state, part.code) == ("failed", "digest")
    assert world.a.has(0) == [0]
    world.at_rest()


@pytest.mark.parametrize("whose", ["a", "b"])
def test_a_mover_that_is_killed_fails_the_job_and_a_retry_brings_the_rest(
    world: World, whose: str
) -> None:
    world.a.store(*range(CHUNKS))
    gone = world.a if whose == "a" else world.b
    before = world.movers(whose)
    # It is not noticed before the pull is under way: nothing is sent to a mover that is stopped.
    os.kill(gone.mover, signal.SIGSTOP)
    world.take("copy", *range(CHUNKS))
    until(lambda: world.b.real.pulls.posted == 1)
    os.kill(gone.mover, signal.SIGKILL)
    part = world.ended()
    while part.state == "failed" and part.attempt < 4:  # a mover that has just begun may be late
        assert part.code in ("peer_dead", "mover_down", "pull_timeout"), part
        until(lambda: all(m and m not in before for m in world.movers(whose)))
        until(lambda: world.b.real.pulls.ready and not world.b.left_behind())
        command = Command(f"r{part.attempt}", "retry", "b", {"job": "j1"}, request=4, deadline=10.0)
        answer, _ = world.client.ask(command)
        assert isinstance(answer, Done), answer
        part = world.ended()
    assert part.state == "done", part
    assert world.b.has(*range(CHUNKS)) == list(range(CHUNKS))
    world.at_rest()


def test_a_holder_that_stands_still_leaves_limbo_until_its_reads_have_ended(slow: World) -> None:
    slow.a.store(*range(CHUNKS))
    slow.do("copy", 0)
    os.kill(slow.a.mover, signal.SIGSTOP)
    try:
        part = slow.do("copy", *range(CHUNKS), job="j2", source="a")
        assert (part.state, part.code) == ("failed", "pull_timeout"), part
        assert "limbo 80" in slow.b.left_behind()
    finally:
        os.kill(slow.a.mover, signal.SIGCONT)
    slow.at_rest()
    assert slow.do("copy", *range(CHUNKS), job="j3", source="a").state == "done"


def test_a_controller_that_is_killed_costs_a_move_nothing(world: World) -> None:
    world.a.store(*range(CHUNKS))
    dead = world.controllers[0].process
    nearest: Callable[[], list[str]] = lambda: [c.state for c in world.controllers]  # noqa: E731
    world.b.real.fetches.relay._order = nearest
    world.controllers[0].end(signal.SIGKILL)
    assert dead.returncode == -signal.SIGKILL
    part = world.do("move", *range(CHUNKS), source="a")
    assert part.state == "done", part
    assert world.b.has(*range(CHUNKS)) == list(range(CHUNKS))
    assert world.a.has(*range(CHUNKS)) == []
    world.at_rest()
