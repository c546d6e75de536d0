"""A rank of a tensor-parallel engine is killed: vLLM ends the engine, its peers go on."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest
from lmkv.core.client import Client
from lmkv.core.messages import InstanceState, Status, StatusInfo

from tests.vllm.cluster import NIXL, Cluster, hits
from tests.vllm.engine import Engine
from tests.vllm.models import prompt

SERVING = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}  # the scheduler is a process of its own
START_S = 240.0  # four ranks on a core or two
SOCKETS = 2 * 3  # of two ranks: worker, mover, share


@pytest.mark.timeout(900)
def test_a_killed_rank_ends_its_instance_and_leaves_nothing(
    cluster: Cluster,
) -> None:
    b = cluster.start("b", tensor_parallel_size=2)
    victim = cluster.start("victim", tensor_parallel_size=2, environment=SERVING)
    for engine in (b, victim):
        engine.wait_ready(START_S)
    cluster.wait_ready(b)
    cluster.wait(lambda: any(state.pullable for state in _states(cluster, "victim")))
    maps = _pool_maps(b)
    texts = [prompt(180, 700), prompt(181, 700), prompt(182, 700)]
    cold = [victim.generate(text).tokens for text in texts]
    cluster.wait(lambda: [state.keys for state in _states(cluster, "victim")] == [6])
    mapped = b.generate(texts[0])
    assert (mapped.tokens, hits(mapped)) == (cold[0], {"hit_mapped": 512})
    assert _pool_maps(b) > maps

    ranks = [parent for parent, command in _below(victim.pid) if "lmkv.mover" in command]
    assert len(ranks) == 2
    assert len(os.listdir(cluster.run_dir)) == 2 * SOCKETS
    os.kill(ranks[1], signal.SIGKILL)
    assert b.generate(texts[1], kv_transfer_params=NIXL).tokens == cold[1]
    assert b.generate(texts[2]).tokens == cold[2]

    def ended() -> bool:
        alive = any("VLLM::" in c or "lmkv.mover" in c for _, c in _below(victim.pid))
        listed = any(state.state != "dead" for state in _states(cluster, "victim"))
        return not (alive or listed)

    cluster.wait(ended)
    cluster.wait(lambda: _pool_maps(b) == maps)
    cluster.wait(lambda: len(os.listdir(cluster.run_dir)) == SOCKETS)


def _states(cluster: Cluster, name: str) -> list[InstanceState]:
    with Client(cluster.address) as client:
        info, _ = client.ask(Status(1))
    assert isinstance(info, StatusInfo)
    return [state for state in info.instances if state.instance == name]


def _below(pid: int) -> list[tuple[int, str]]:
    """(parent, command line) of every process that descends from `pid`."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        children = ""
        with contextlib.suppress(OSError):  # it has just ended
            children = (task / "children").read_text()
        for child in children.split():
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{child}/cmdline").read_bytes()
                found += [(pid, command.decode(errors="replace")), *_below(int(child))]
    return found


def _pool_maps(engine: Engine) -> int:
    """Of its own and peers' pools, in its ranks; not in its movers."""
    ranks = {parent for parent, command in _below(engine.pid) if "lmkv.mover" in command}
    files = [Path(f"/proc/{rank}/maps").read_text() for rank in ranks]
    return sum(text.count("memfd:lmkv-pool") for text in files)
