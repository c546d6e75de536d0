"""A compress job through real sockets: an agent, its worker and that one's mover, without vLLM."""

from __future__ import annotations

import time

import numpy as np
from lmkv import _native
from lmkv.agent.agent import Agent
from lmkv.agent.engine import Engine
from lmkv.agent.engine import Rank as EngineRank
from lmkv.agent.transfers import Geometry
from lmkv.core import config
from lmkv.core.messages import Command, Part, PullResult
from lmkv.core.messages.jobs import ENDED
from lmkv.core.steps import LoadChunk, StepPlan, Store
from test_compressed_loads import fill
from test_worker import DEADLINE, Rank, gpu, start, start_host

__all__ = ["gpu", "start", "start_host"]  # fixtures

KEYS = [bytes([n]) * 16 for n in (1, 2, 3)]


def agent_of(rank: Rank) -> Agent:
    """It speaks to the worker and its mover; no controller is there."""
    slot = rank.kv.slot
    engine = Engine(
        "us",
        lambda word: "model=m\n",
        ["kind=full\n"],
        [Geometry(16, 8, slot.payload_bytes)],
        rank.hello["slots"],
        rank.hello["info"].segment_granules // 16,
        [
            EngineRank(
                rank.hello["info"], rank.hello["control"], [rank.kv.layout], [slot.fingerprint]
            )
        ],
    )
    inline = {"controllers": ["tcp://127.0.0.1:1"]}
    agent = Agent(config.load(config.InstanceConfig, inline), engine)
    agent.background.open()
    return agent


def until(agent: Agent, true) -> None:
    end = time.monotonic() + DEADLINE
    while not true():
        assert time.monotonic() < end, "not in time"
        agent.background.turn()
        time.sleep(0.002)


def store(agent: Agent, rank: Rank, key: bytes, blocks: list[int]) -> None:
    got = agent.table.reserve(key, time.monotonic())
    assert got is not None
    counter = int.from_bytes(got[1], "little")
    rank.worker.submit_stores(StepPlan(agent.epoch, [Store(counter, key, got[0], counter, blocks)]))
    at, name = rank.worker.pool.slot_address(got[0]), generation(agent, counter)
    good = _native.SlotStatus.GOOD
    until(agent, lambda: _native.check_slot(at, rank.kv.slot, key, name) == good)
    assert agent.table.admit(*got) == 1


def generation(agent: Agent, counter: int) -> int:
    return (agent.epoch & 0xFFFFFFFF) << 32 | counter


def job(agent: Agent, operation: str, name: str) -> Part:
    agent.jobs.take(Command(name, operation, "us", {}, request=1), [b"".join(KEYS)], None)

    def part() -> Part:
        [found] = [m.part for _, m in agent.jobs.news(0) if m.part.id == name]
        return found

    until(agent, lambda: part().state in ENDED)
    return part()


def load(agent: Agent, rank: Rank, key: bytes, blocks: list[int]) -> int:
    place, counter, n = agent.table.places(key)
    assert n == 1
    name = generation(agent, int.from_bytes(counter, "little"))
    result = rank.load(LoadChunk(key, place, name, blocks))
    return result.result


def test_chunks_change_their_form_and_are_loaded(start_host) -> None:
    rank = start_host("us")
    fill(rank, 3)
    agent = agent_of(rank)
    try:
        until(agent, lambda: agent.table.usable and agent.pulls.ready)
        was = rank.kv.array.copy()
        for n, key in enumerate(KEYS):
            store(agent, rank, key, [2 * n, 2 * n + 1])
        for operation, granules in (("compress", range(1, 16)), ("decompress", (16,))):
            part = job(agent, operation, operation)
            assert (part.state, part.chunks, part.skipped) == ("done", 3, {}), part
            assert part.bytes > 0
            for n, key in enumerate(KEYS):
                assert agent.table.places(key)[0][4] in granules
                rank.kv.array[:] = 0
                assert load(agent, rank, key, [6, 7]) == PullResult.GOOD
                assert np.array_equal(rank.kv.array[:, 6:8], was[:, 2 * n : 2 * n + 2])
        until(agent, lambda: not any(agent.pending.values()))
        slots = agent.table.granules()
        assert (slots["reserved"], slots["limbo"], slots["readable"]) == (0, 0, 48)
    finally:
        agent.close()
