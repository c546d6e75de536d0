"""The simulator: real agents of 50 instances in one process, against real controllers."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from lmkv.core import keyfiles
from lmkv.core.client import Client
from lmkv.core.messages import ENDED, AskJob, JobInfo, Jobs, JobsInfo, JobState, Submit
from lmkv.sim.controllers import ControllerProcess
from lmkv.sim.instance import CHUNK, Instance, Shape
from lmkv.sim.simulation import Plan, Simulation
from lmkv.sim.trace import Asked, read
from lmkv.sim.worker import Rates

from tests import traces
from tests.contract.test_controller import DEADLINE, until

FAST = {"heartbeat": "0.2", "warming_least": "0.1"}
# Waits of a request are long here, so that a busy machine does not decide what hits.
SETTINGS = {"locate_deadline": DEADLINE, "connect_deadline": DEADLINE, "pull": "always"}


@pytest.fixture
def controllers() -> Iterator[list[ControllerProcess]]:
    running = [ControllerProcess(FAST) for _ in range(2)]
    yield running
    for each in running:
        each.end()


def simulation(controllers: list[ControllerProcess], instances: int, slots: int) -> Simulation:
    shape = Shape(slots, 1 << 20, Rates(1e12, 1e12), 1e9)
    addresses = [each.address for each in controllers]
    plan = Plan(instances, shape, addresses, [each.pid for each in controllers], settings=SETTINGS)
    made = Simulation(plan)
    made.open()
    return made


def test_a_prompt_is_computed_once_and_comes_from_peers_to_all_others(
    controllers: list[ControllerProcess],
) -> None:
    world = simulation(controllers, 50, 64)
    prompt = Asked(0.0, 5 * CHUNK + 1, (1, 2, 3))
    world.ask(prompt)
    world.settle()
    until(lambda: world.run_for(0.05) or world.whole(5))
    for _ in range(49):
        world.ask(prompt)
    world.settle()
    found = world.report()
    assert (found.requests, found.unfinished) == (50, 0)
    assert found.hit_tokens == {"hit_peer": 49 * 5 * CHUNK}
    assert found.miss_tokens == {"cold": 5 * CHUNK, "too_short": 50}
    assert found.pulled_chunks == {"good": 49 * 5}
    assert found.locates >= 50
    assert [(use.keys, use.instances, use.drifts) for use in found.controllers] == [(5, 50, 0)] * 2
    assert all(use.rss_mib and use.cpu_percent is not None for use in found.controllers)
    assert not any(n for each in world.instances for n in each.agent.pending.values())
    world.close()


def test_simulated_instances_do_jobs(controllers: list[ControllerProcess]) -> None:
    world = simulation(controllers, 3, 64)
    prompt = Asked(0.0, 5 * CHUNK + 1, (1, 2, 3))
    world.ask(prompt)
    world.settle()
    until(lambda: world.run_for(0.05) or world.whole(5))
    [holder] = [each for each in world.instances if each.agent.table.sums()[0]]
    target = next(each for each in world.instances if each is not holder)
    keys, _, _ = holder.agent.table.slice(0, 64 * 16)
    with Client(controllers[1].address, DEADLINE) as client:
        wish = Submit(1, "move", instance=target.name, source=holder.name)
        client.send(wish, keys)
        until(lambda: world.run_for(0.05) or not holder.agent.table.sums()[0])
        client.receive()
        until(lambda: world.run_for(0.05) or not target.agent.jobs.open)
        client.send(Jobs(2))
        told, _ = client.receive()
    assert isinstance(told, JobsInfo)
    assert [(job.state, job.chunks) for job in told.jobs] == [("done", 5)]
    assert target.agent.table.lookup(keys) == 5
    assert not any(n for each in world.instances for n in each.agent.pending.values())
    world.close()


def test_simulated_instances_compress(controllers: list[ControllerProcess]) -> None:
    """Compressed, pulled compressed, and full again."""
    world = simulation(controllers, 2, 64)
    world.ask(Asked(0.0, 5 * CHUNK + 1, (1, 2, 3)))
    world.settle()
    until(lambda: world.run_for(0.05) or world.whole(5))
    holder, target = sorted(world.instances, key=lambda each: -each.agent.table.sums()[0])
    keys, _, _ = holder.agent.table.slice(0, 64 * 16)

    def job(operation: str, **more: Any) -> JobState:
        """From its submission to its end."""
        with Client(controllers[0].address, DEADLINE) as client:
            told, _ = client.ask(Submit(1, operation, **more), keys)
            while isinstance(told, JobInfo) and told.job.state not in ENDED:
                told, _ = client.ask(AskJob(2, told.job.id))
                time.sleep(0.01)
        assert isinstance(told, JobInfo), told
        return told.job

    def do(operation: str, **more: Any) -> tuple[str, int, int]:
        with ThreadPoolExecutor(1) as others:
            answer = others.submit(job, operation, **more)
            until(lambda: world.run_for(0.05) or answer.done())
        found = answer.result()
        return found.state, found.chunks, found.bytes

    def granules(instance: Instance) -> list[int]:
        return list(instance.agent.table.places(keys)[0][4::8])

    assert do("compress", instance=holder.name) == ("done", 5, 5 * 4 << 16)
    assert granules(holder) == [12] * 5
    assert do("copy", instance=target.name) == ("done", 5, 5 * 12 << 16)
    assert granules(target) == [12] * 5
    assert do("decompress", instance=target.name) == ("done", 5, 5 * 4 << 16)
    assert (granules(holder), granules(target)) == ([12] * 5, [16] * 5)
    assert [each.agent.table.lookup(keys) for each in world.instances] == [5, 5]
    assert not any(n for each in world.instances for n in each.agent.pending.values())
    world.close()


def test_a_pool_that_is_too_small_retires_and_every_token_is_accounted(
    controllers: list[ControllerProcess], tmp_path: Path
) -> None:
    path = tmp_path / "trace.jsonl"
    total = traces.write(path, 60, conversations=4, every_ms=1)
    world = simulation(controllers, 3, 32)
    world.feed(read(str(path)), rate=1.0, seconds=60.0)
    world.settle()
    found = world.report()
    world.close()
    assert (found.requests, found.unfinished) == (60, 0)
    assert sum(found.hit_tokens.values()) + sum(found.miss_tokens.values()) == total
    assert found.retracted_chunks > 0
    assert 0 < found.hit_rate < 1
    held = {use.keys for use in found.controllers}
    assert len(held) == 1 and held.pop() <= 3 * 32


def lmkv(*words: str, before: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lmkv.cli.main", *before, "sim", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_command_runs_each_pool_size_with_controllers_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    traces.write(path, 20)
    options = ["--instances", "4", "--trace", str(path), "--controllers", "2", "--seconds", "5"]
    fast = ["--prefill-rate", "1e9", "--pool-chunks", "64,1k"]
    ran = lmkv(*options, *fast, "-o", "json")
    assert ran.returncode == 0, ran.stderr
    runs: list[dict[str, Any]] = json.loads(ran.stdout)["runs"]
    assert [(run["pool_chunks"], run["requests"]) for run in runs] == [(64, 20), (1024, 20)]
    assert [len(run["controllers"]) for run in runs] == [2, 2]
    assert all(run["visible"]["count"] + run["never_visible"] for run in runs)


def test_the_command_at_a_controller_that_runs_already(
    controllers: list[ControllerProcess], tmp_path: Path
) -> None:
    path = tmp_path / "trace.jsonl"
    traces.write(path, 5)
    options = ["--instances", "2", "--trace", str(path), "--prefill-rate", "1e9"]
    ran = lmkv(*options, "--controllers", controllers[0].address)
    assert ran.returncode == 0, ran.stderr
    for word in ("hit rate", "pool chunks", controllers[0].address, "ready"):
        assert word in ran.stdout


def test_the_command_at_a_controller_that_asks_for_keys(tmp_path: Path) -> None:
    path, keys = tmp_path / "trace.jsonl", tmp_path / "keys"
    traces.write(path, 5)
    keyfiles.make(keys)
    controller = ControllerProcess({**FAST, "keys": str(keys)})
    words = ["--instances", "2", "--trace", str(path), "--prefill-rate", "1e9"]
    words += ["--controllers", controller.address]
    try:
        ran = lmkv(*words, before=["--keys", str(keys)])
        assert ran.returncode == 0, ran.stderr
        assert controller.address in ran.stdout
        without = lmkv(*words)
        assert (without.returncode, without.stdout) == (3, "")
        assert "it asks for keys (LMKV_KEYS)" in without.stderr
        wrong = lmkv(*words, before=["--keys", str(tmp_path)])
        assert wrong.returncode == 2
        assert wrong.stderr.startswith("lmkv: --keys or LMKV_KEYS: ")
    finally:
        controller.end()


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        (
            ["--controllers", "tcp://127.0.0.1:1"],
            3,
            "no controller listens at tcp://127.0.0.1:1",
        ),
        (["--instances", "0"], 2, "--instances 0: allowed is 1 to 10000"),
        (["-o", "xml"], 2, "--output 'xml': allowed is table or json"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    tmp_path: Path, words: list[str], status: int, sentence: str
) -> None:
    path = tmp_path / "trace.jsonl"
    traces.write(path, 1)
    ran = lmkv("--trace", str(path), *words)
    assert (ran.returncode, ran.stdout) == (status, "")
    assert ran.stderr.splitlines()[-1] == f"lmkv: {sentence}"
