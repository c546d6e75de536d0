"""Hooks that tests run inside an engine's process (`engine.call("tests.vllm.inside:...")`)."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any


def _connector(llm: Any) -> Any:
    connector = llm.llm_engine.engine_core.engine_core.scheduler.connector
    return getattr(connector, "sub_connectors", [connector])[0]  # of a MultiConnector the first


def _worker(llm: Any) -> Any:
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    return get_kv_transfer_group()._worker


def state(llm: Any) -> dict[str, Any]:
    """What the agent counts; all of `pending` is zero at rest."""
    agent = _connector(llm)._agent
    if agent is None:
        return {"off": _connector(llm)._off}
    return {
        "off": _connector(llm)._off,
        "ready": agent.background.ready,
        "usable": agent.table.usable,
        "movers": agent.pulls.ready,
        "readable": agent.table.sums()[0],
        "locates": agent.locator.sent,
        "pulls": agent.pulls.posted,
        "pending": agent.pending,
        "granules": agent.table.granules(),
        "rates": agent.rates.snapshot(),
        "instance": agent._engine.instance,
    }


def mover_pid(llm: Any) -> int:
    return _worker(llm).supervisor.pid


def flip_all(llm: Any) -> int:
    """Flip one bit in the payload of every readable slot; how many there were."""
    import ctypes

    agent, worker = _connector(llm)._agent, _worker(llm)
    _, places, _ = agent.table.slice(0, agent.table.usable * 16)
    for at in range(0, len(places), 8):
        address = worker.pool.slot_address(places[at : at + 8])
        byte = ctypes.c_ubyte.from_address(address + worker._pages[0].slot.payload_offset + 4097)
        byte.value ^= 0x10
    return len(places) // 8


def retire(llm: Any, tokens: list[int], group: int, first: int, last: int) -> int:
    """Take chunks [first, last) of a prompt out of use in one cache group; how many there were."""
    agent = _connector(llm)._agent
    chain = agent._hasher.chain(b"")
    chain.extend(tokens)
    return int(agent.table.retire(chain.keys(group, first, last), revivable=False))


def windows(llm: Any) -> list[int]:
    """Of each cache group; 0 for attention to all."""
    return [group.window for group in _connector(llm)._agent._engine.groups]


def libraries(llm: Any) -> list[str]:
    """Files mapped into this process whose names say NIXL or UCX."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    names = {line.split(maxsplit=5)[5] for line in lines if len(line.split(maxsplit=5)) == 6}
    return sorted(n for n in names if re.match(r"lib(nixl|ucp|ucs|uct|ucm)", os.path.basename(n)))


def maps_of_peers(llm: Any) -> int:
    return len(_worker(llm)._mapped)


def reset_cache(llm: Any) -> bool:
    return bool(_connector(llm).reset_cache())


def scrape(llm: Any) -> str:
    """vLLM's own `/metrics`."""
    from prometheus_client import generate_latest

    return generate_latest().decode()


def close_agent(llm: Any) -> None:
    _connector(llm)._agent.close()


def told(llm: Any) -> dict[str, int] | None:
    """What is kept for vLLM's KV events; None: nothing."""
    connector = _connector(llm)
    assert (connector._agent.events is None) == (connector._events is None)
    return None if connector._agent.events is None else connector._agent.events.sizes()


def idle(llm: Any) -> int:
    """The steps that an engine of a server makes once it has nothing to do; how many."""
    core, steps = llm.llm_engine.engine_core.engine_core, 0
    while core.scheduler.has_requests():
        core.step_fn()
        time.sleep(0.001)  # as vLLM's busy loop
        steps += 1
    return steps


def press(llm: Any) -> int:
    """Whatever may be retired for room is; so many slots are free then."""
    import secrets

    agent = _connector(llm)._agent
    granules = agent.table.granules()
    room = sum(granules[state] for state in ("free", "readable", "retired")) // 16
    taken = agent.table.reserve(secrets.token_bytes(16 * room), agent._clock())
    agent.table.abort(*taken)
    agent.background.wake()
    return int(room)
