"""TP=2 shares with TP=2, in engines that are alone: each of the four workers spins on a core.

Answers must be equal always. Hits are demanded where there is a core for each worker; with fewer,
deadlines may pass, and the test says so when it has seen no hit.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.vllm.cluster import Cluster
from tests.vllm.engine import Engine
from tests.vllm.models import prompt

QUESTIONS = 3  # a deadline that passes costs a question its hit, never its answer
SETTLED_S = 2.0  # stores have ended and are announced, where nothing starves
WORKERS, CORES = 4, len(os.sched_getaffinity(0))
PATIENT = {"locate_deadline": 30.0, "connect_deadline": 30.0, "pull_deadline_max": 30.0}


@pytest.fixture
def cluster(
    zygote: Any, llama: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    with Cluster(zygote, llama, tmp_path_factory.mktemp("ranks")) as cluster:
        yield cluster


def ask(cluster: Cluster, a: Engine, b: Engine, tokens: list[int], transfer: str) -> dict[str, int]:
    """The same of both, a first; b's tokens by cause. Equal answers, hit or not."""
    cold = a.generate(tokens)
    time.sleep(SETTLED_S)
    warm = b.generate(tokens, kv_transfer_params={"lmkv": {"transfer": transfer}})
    assert warm.tokens == cold.tokens
    counts = warm.kv_transfer_params["lmkv"]
    return {**counts["hit_tokens"], **counts["miss_tokens"]}


def test_two_ranks_share(cluster: Cluster) -> None:
    a, b = (cluster.start(n, PATIENT, tensor_parallel_size=2) for n in ("t1", "t2"))
    try:
        cluster.wait_ready(a, b)
    except AssertionError:
        if CORES >= WORKERS:
            raise
        pytest.skip(f"{WORKERS} spinning workers starve the rest on {CORES} cores: not ready")
    for engine in (a, b):  # a first forward may take 20 s
        engine.generate(prompt(150, 40))
    for seed, transfer, cause in ((160, "mapped", "hit_mapped"), (170, "nixl", "hit_peer")):
        asked = [ask(cluster, a, b, prompt(seed, 700), transfer)]
        while asked[-1].get(cause) != 512 and len(asked) < QUESTIONS:
            asked.append(ask(cluster, a, b, prompt(seed + len(asked), 700), transfer))
        if asked[-1].get(cause) != 512 and CORES < WORKERS:
            pytest.skip(f"{WORKERS} spinning workers starve the rest on {CORES} cores: {asked}")
        assert asked[-1].get(cause) == 512, asked
