"""TP=2 shares with TP=2: each rank loads its own heads from the same rank of the holder."""

from __future__ import annotations

import pytest

from tests.vllm.cluster import Cluster, hits
from tests.vllm.engine import Engine
from tests.vllm.models import prompt


@pytest.fixture(scope="module")
def pair(cluster: Cluster) -> tuple[Engine, Engine]:
    """One has ranks as vLLM spawns them, the other forked ones, as all other tests have."""
    a, b = (cluster.start(n, tensor_parallel_size=2, fork=n == "t2") for n in ("t1", "t2"))
    cluster.wait_ready(a, b)
    return a, b


@pytest.mark.parametrize(("transfer", "cause"), [("mapped", "hit_mapped"), ("nixl", "hit_peer")])
def test_two_ranks_share(
    cluster: Cluster, pair: tuple[Engine, Engine], transfer: str, cause: str
) -> None:
    a, b = pair
    tokens = prompt(160 if transfer == "mapped" else 170, 700)
    cold = a.generate(tokens)
    cluster.settle(a)
    warm = b.generate(tokens, kv_transfer_params={"lmkv": {"transfer": transfer}})
    assert warm.tokens == cold.tokens
    assert warm.num_cached_tokens == 512
    assert hits(warm) == {cause: 512}
    cluster.settle(b)
    assert set(b.call("tests.vllm.inside:state")["pending"].values()) == {0}
