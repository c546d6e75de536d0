"""Writes of real engines under pressure: what they stored is what another engine computes afresh.

Each engine has a cache so small that requests are preempted, and prefills in small pieces. When its
stories are told, a clean engine takes what it holds (its answers are those of an engine without
lmkv), then computes the same tokens itself, one request at a time: every slot's floats agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.vllm.cluster import MAPPED, Cluster, hits
from tests.vllm.engine import Engine
from tests.vllm.models import prompt

CHUNK = 128
SETTINGS = {"chunk_tokens": CHUNK, "min_tokens": CHUNK, "on_reset": "keep"}
PRESSED: dict[str, Any] = {
    "num_gpu_blocks_override": 24,  # of 64 tokens: three requests of a few hundred
    "max_num_batched_tokens": 160,
    "max_num_seqs": 6,
    "max_model_len": 1024,
    "enable_prefix_caching": True,
}
INSIDE = "tests.vllm.writes_inside:"
CLOSE = 1e-3  # fp32, another batch: the last bits differ


@pytest.fixture(scope="module")
def clean(cluster: Cluster) -> Engine:
    engine = cluster.start("clean", SETTINGS, max_model_len=1024)
    cluster.wait_ready(engine)
    return engine


@pytest.fixture
def pressed(cluster: Cluster, clean: Engine) -> Iterator[Callable[..., Engine]]:
    started: list[Engine] = []

    def start(name: str, **more: Any) -> Engine:
        engine = cluster.start(name, SETTINGS, **PRESSED, **more)
        started.append(engine)
        cluster.wait_ready(engine, clean)
        engine.call(INSIDE + "watch")
        return engine

    yield start
    for engine in started:
        engine.stop()


def check(cluster: Cluster, engine: Engine, clean: Engine, folder: Path) -> int:
    """How many slots the engine holds, each of which is right."""
    cluster.settle(engine)
    state = engine.call("tests.vllm.inside:state")
    assert not state["off"]
    assert not any(state["pending"].values())
    assert not state["granules"]["reserved"]
    lists = engine.call(INSIDE + "dump", str(folder / "held.npz"))
    longest = max(lists, key=len)
    taken = clean.generate([*longest, 5], kv_transfer_params=MAPPED)
    assert hits(taken) == {"hit_mapped": len(longest)}
    assert taken.tokens == cluster.reference([*longest, 5])
    for tokens in lists:
        clean.generate([*tokens, 5], 1, kv_transfer_params={"lmkv": {"skip_load": True}})
    cluster.settle(clean)
    clean.call(INSIDE + "dump", str(folder / "right.npz"))
    held, right = np.load(folder / "held.npz"), np.load(folder / "right.npz")
    for key in held.files:
        assert np.abs(held[key] - right[key]).max() < CLOSE
    return len(held.files)


def pressure(engine: Engine) -> None:
    """More than fits, at once, twice: the second time loads meet stores and preemptions."""
    prompts = [prompt(seed, 300 + 20 * seed) for seed in range(1, 6)]
    before = engine.call(INSIDE + "preemptions")
    for _ in range(2):
        answers = engine.call(INSIDE + "together", prompts, 90)
        assert all(len(answer) == 90 for (answer,) in answers)
    assert engine.call(INSIDE + "preemptions") > before
    assert engine.call(INSIDE + "aborted", prompts, 40, 3) > 1


def test_preempted_aborted_sampled_paused_and_reset(
    cluster: Cluster, clean: Engine, pressed: Callable[..., Engine], tmp_path: Path
) -> None:
    engine = pressed("pressed")
    pressure(engine)
    assert engine.call(INSIDE + "sampled", prompt(9, 200), 70, 4) == 4
    engine.reset_prefix_cache()
    assert engine.call(INSIDE + "aborted", [prompt(s, 400) for s in range(1, 6)], 40, 1) > 1
    assert check(cluster, engine, clean, tmp_path) > 5
    for how in ("pause", "reset"):  # each begins an epoch, in which what ran before stores nothing
        engine.call(INSIDE + "interrupted", [prompt(30 + s, 300) for s in range(3)], 40, how)
    engine.call(INSIDE + "together", [prompt(40, 300)], 20)
    assert check(cluster, engine, clean, tmp_path) == 2


def test_a_sessions_turns_are_stored_as_what_they_are(
    cluster: Cluster, clean: Engine, pressed: Callable[..., Engine], tmp_path: Path
) -> None:
    engine = pressed("session")
    turns = [prompt(50, 200), prompt(51, 10), prompt(52, 150)]
    tokens = engine.call(INSIDE + "session", turns, 60)
    assert len(tokens) > 500
    assert check(cluster, engine, clean, tmp_path) == (len(tokens) - 1) // CHUNK


@pytest.mark.parametrize("method", ["ngram", "draft_model"])
def test_drafts_are_not_stored(
    cluster: Cluster,
    clean: Engine,
    pressed: Callable[..., Engine],
    llama: Path,
    tmp_path: Path,
    method: str,
) -> None:
    speculative: dict[str, Any] = {"method": method, "num_speculative_tokens": 4}
    if method == "ngram":
        speculative |= {"prompt_lookup_max": 3, "prompt_lookup_min": 1}
    else:
        speculative |= {"model": str(llama)}
    engine = pressed(method, speculative_config=speculative)
    first = {"ngram": 60, "draft_model": 70}[method]  # prompts that nobody here has seen
    engine.call(INSIDE + "together", [prompt(first + i, 380) for i in range(3)], 60)
    assert engine.call(INSIDE + "sampled", prompt(first + 9, 200), 60, 2) == 2
    drafted, accepted = engine.call(INSIDE + "drafts")
    assert 0 < accepted < drafted
    assert check(cluster, engine, clean, tmp_path) > 5
