"""Real engines and faults: each costs what it must, says so in one sentence, and vLLM serves on.

Prompts as in test_sharing. What a test kills or spoils of the pair it mends before it ends.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lmkv.core.client import Client
from lmkv.core.messages import Status, StatusInfo

from tests.ports import busy_ports, free_port
from tests.vllm.cluster import MAPPED, NIXL, Cluster, hits, misses
from tests.vllm.engine import Engine
from tests.vllm.models import prompt


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        ({"pol_gib": 1}, "pol_gib"),
        ({"pool_gib": 1e4}, "pool_gib"),
        ({"transfer": "carrier pigeon"}, "carrier pigeon"),
        ({"chunk_tokens": 100}, "chunk_tokens"),
        ({"run_dir": f"/tmp/lmkv-{'x' * 90}"}, "at most 100 are allowed"),
    ],
)
def test_bad_settings_are_one_sentence_and_vllm_serves(
    cluster: Cluster, extra: dict[str, Any], sentence: str
) -> None:
    a = cluster.start("bad", extra=extra)
    assert a.generate(prompt(160, 300)).tokens == cluster.reference(prompt(160, 300))
    assert sentence in a.log.read_text()
    assert "lmkv shares nothing here" in a.log.read_text()
    a.stop()


def log_of(engine: Engine) -> str:
    return engine.log.read_text(errors="replace")


def test_an_instance_of_another_cluster_is_refused_by_name(
    cluster: Cluster, pair: tuple[Engine, Engine]
) -> None:
    a, _ = pair
    text = prompt(200, 700)
    cold = a.generate(text)
    cluster.settle(a)
    other = cluster.start("other", extra={"cluster": "other"})
    cluster.wait(lambda: bool(other.call("tests.vllm.inside:state")["usable"]))
    out = other.generate(text)
    assert out.tokens == cold.tokens
    assert misses(out) == {"no_controller": 512, "too_short": 188}
    cluster.settle(other)
    assert hits(other.generate(text)) == {"hit_pool": 512}, "its own pool serves it all the same"
    sentence = f"the controller at {cluster.address} refuses this instance: cluster 'other'"
    cluster.wait(lambda: sentence in log_of(other))
    assert log_of(other).count(sentence) == 1
    other.stop()


def test_a_controller_that_is_not_there_is_said_once(cluster: Cluster) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    lost = cluster.start("lost", extra={"controllers": address})
    cluster.wait(lambda: bool(lost.call("tests.vllm.inside:state")["usable"]))
    out = lost.generate(prompt(205, 700))
    assert out.tokens == cluster.reference(prompt(205, 700))
    assert misses(out) == {"no_controller": 512, "too_short": 188}
    cluster.settle(lost)
    assert hits(lost.generate(prompt(205, 700))) == {"hit_pool": 512}
    sentence = f"the controller at {address} does not answer; nothing new is shared until one does"
    cluster.wait(lambda: sentence in log_of(lost))
    assert log_of(lost).count(sentence) == 1
    lost.stop()


def test_an_instance_of_another_page_format_is_incompatible(
    cluster: Cluster, pair: tuple[Engine, Engine]
) -> None:
    """vLLM's CPU pages depend on the block size. The keys are the same: it is not a cold miss."""
    a, _ = pair
    big = cluster.start("big", block_size=128)
    cluster.wait_ready(big)
    for holder, asker, seed in ((a, big, 210), (a, big, 211), (big, a, 212)):
        cold = holder.generate(prompt(seed, 700))
        cluster.settle(holder)
        out = asker.generate(prompt(seed, 700))
        assert out.tokens == cold.tokens
        assert misses(out) == {"incompatible": 512, "too_short": 188}
    for engine in (a, big):
        assert log_of(engine).count("only instances of another page_format hold a prompt") == 1
    with Client(cluster.address) as client:
        info, _ = client.ask(Status(1))
    assert isinstance(info, StatusInfo)
    differing = {each.instance: each.differs for each in info.instances}
    assert (differing["a"], differing["big"]) == ("", "page_format")
    big.stop()


@pytest.fixture(params=["missing", "no free port"])
def without_nixl(
    request: pytest.FixtureRequest, cluster: Cluster, tmp_path: Path
) -> Iterator[tuple[Engine, str]]:
    """An engine whose mover cannot use NIXL, and its sentence."""
    if request.param == "missing":  # a package of that name comes first, with no library
        (tmp_path / "nixl_cu13").mkdir()
        (tmp_path / "nixl_cu13" / "__init__.py").touch()
        (tmp_path / "nixl_cu13-1.5.1.dist-info").mkdir()
        path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
        engine = cluster.start("without", environment={"PYTHONPATH": path})
        yield engine, "has no libnixl_capi.so: pip install 'lmkv[nixl]'"
    else:
        with busy_ports(64) as ports:
            engine = cluster.start("without", extra={"data_ports": ports})
            cluster.wait_ready(engine)
        yield engine, f"data_ports = {ports!r}: at 127.0.0.1 fewer than 2 of these ports are free"
    engine.stop()


def test_without_nixl_mapped_hits_go_on(
    cluster: Cluster, pair: tuple[Engine, Engine], without_nixl: tuple[Engine, str]
) -> None:
    a, _ = pair
    engine, sentence = without_nixl
    cluster.wait_ready(engine)
    seed = 220 + len(sentence)  # other prompts for each reason
    cold = a.generate(prompt(seed, 700))
    cluster.settle(a)
    no_copy = {"lmkv": {"transfer": "nixl", "skip_store": True}}
    pulled = engine.generate(prompt(seed, 700), kv_transfer_params=no_copy)
    assert pulled.tokens == cold.tokens
    assert misses(pulled) == {"mover_down": 512, "too_short": 188}
    mapped = engine.generate(prompt(seed, 700))
    assert mapped.tokens == cold.tokens
    assert hits(mapped) == {"hit_mapped": 512}
    engine.generate(prompt(seed + 1, 700))
    cluster.settle(engine)
    others = a.generate(prompt(seed + 1, 700), kv_transfer_params=no_copy)
    assert misses(others) == {"mover_down": 512, "too_short": 188}
    assert hits(a.generate(prompt(seed + 1, 700))) == {"hit_mapped": 512}
    assert log_of(engine).count(sentence) == 1


@pytest.mark.parametrize("wish", [NIXL, MAPPED])
def test_one_flipped_bit_in_a_peers_slot_is_a_miss(
    cluster: Cluster, pair: tuple[Engine, Engine], wish: Any
) -> None:
    a, b = pair
    text = prompt(90 if wish is NIXL else 91, 700)
    cold = a.generate(text)
    cluster.settle(a)
    assert a.call("tests.vllm.inside:flip_all") >= 2
    warm = b.generate(text, kv_transfer_params=wish)
    a.call("tests.vllm.inside:flip_all")  # as it was
    assert warm.tokens == cold.tokens
    assert hits(warm) == {}
    assert misses(warm)["digest"] == 512


def test_a_killed_mover_costs_pulls_and_nothing_else(
    cluster: Cluster, pair: tuple[Engine, Engine]
) -> None:
    a, b = pair
    text = prompt(110, 700)
    cold = a.generate(text)
    cluster.settle(a)
    os.kill(b.call("tests.vllm.inside:mover_pid"), signal.SIGKILL)
    now = b.generate(text, kv_transfer_params=NIXL)
    assert now.tokens == cold.tokens
    cluster.wait_ready(b)
    other = prompt(111, 700)
    a.generate(other)
    cluster.settle(a)
    assert hits(b.generate(other, kv_transfer_params=NIXL)) == {"hit_peer": 512}


def test_the_controller_dies_and_comes_back(cluster: Cluster, pair: tuple[Engine, Engine]) -> None:
    a, b = pair
    text = prompt(120, 700)
    cold = a.generate(text)
    cluster.settle(a)
    cluster.controller.kill()
    alone = b.generate(text)
    assert alone.tokens == cold.tokens
    assert misses(alone).keys() <= {"no_controller", "locate_timeout", "too_short"}
    cluster.start_controller()
    cluster.wait_ready(a, b)
    other = prompt(121, 700)
    a.generate(other)
    cluster.settle(a)
    assert hits(b.generate(other)) == {"hit_mapped": 512}


@pytest.mark.parametrize("wish", [NIXL, MAPPED])
def test_a_killed_peer_is_a_miss(
    cluster: Cluster, pair: tuple[Engine, Engine], wish: dict[str, Any]
) -> None:
    """A peer of which nothing is mapped or connected yet."""
    _, b = pair
    seed = 140 if wish is NIXL else 141
    peer = cluster.start(f"peer-{seed}")
    cluster.wait_ready(peer)
    cold = peer.generate(prompt(seed, 700))
    cluster.settle(peer)
    peer.kill()
    out = b.generate(prompt(seed, 700), kv_transfer_params=wish)
    assert out.tokens == cold.tokens
    assert misses(out) == {"peer_dead": 512, "too_short": 188}
