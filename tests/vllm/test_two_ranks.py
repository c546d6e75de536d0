"""TP=2 shares with TP=2. Four workers spin on two cores here, so these engines are alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.vllm.cluster import Cluster
from tests.vllm.models import prompt

PATIENT = {"locate_deadline": 30.0, "connect_deadline": 30.0, "pull_deadline_max": 30.0}


@pytest.fixture
def cluster(
    zygote: Any, llama: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    with Cluster(zygote, llama, tmp_path_factory.mktemp("ranks")) as cluster:
        yield cluster


def test_two_ranks_share(cluster: Cluster) -> None:
    a, b = (cluster.start(n, PATIENT, tensor_parallel_size=2) for n in ("t1", "t2"))
    cluster.wait_ready(a, b)
    for engine in (a, b):  # a first forward may take 20 s
        engine.generate(prompt(150, 40))
    for seed, transfer, cause in ((151, "mapped", "hit_mapped"), (152, "nixl", "hit_peer")):
        cold = a.generate(prompt(seed, 700))
        cluster.settle(a)
        warm = b.generate(prompt(seed, 700), kv_transfer_params={"lmkv": {"transfer": transfer}})
        counts = warm.kv_transfer_params["lmkv"]
        assert counts["hit_tokens"].get(cause) == 512, counts
        assert warm.tokens == cold.tokens
    assert set(b.call("tests.vllm.inside:state")["pending"].values()) == {0}
