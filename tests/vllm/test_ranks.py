"""Engines of several ranks: other tensor-parallel sizes share, pipeline stages, data parallelism.

Each engine answers as it does alone; what it takes from another is counted as such.
"""

from __future__ import annotations

import pytest

from tests.vllm.cluster import MAPPED, Cluster, hits
from tests.vllm.engine import Engine
from tests.vllm.models import prompt


@pytest.fixture(scope="module")
def sizes(cluster: Cluster) -> dict[int, Engine]:
    """By tensor-parallel size; the model has two KV heads."""
    engines = {size: cluster.start(f"tp{size}", tensor_parallel_size=size) for size in (1, 2)}
    cluster.wait_ready(*engines.values())
    return engines


@pytest.mark.parametrize(("holder", "reader"), [(1, 2), (2, 1)])
def test_another_tensor_parallel_size_is_mapped(
    cluster: Cluster, sizes: dict[int, Engine], holder: int, reader: int
) -> None:
    tokens = prompt(200 + holder, 700)
    cold = sizes[holder].generate(tokens)
    cluster.settle(sizes[holder])
    warm = sizes[reader].generate(tokens, kv_transfer_params=MAPPED)
    assert warm.tokens == cold.tokens == cluster.reference(tokens)
    assert warm.num_cached_tokens == 512
    assert hits(warm) == {"hit_mapped": 512}
    cluster.settle(sizes[reader])
    assert set(sizes[reader].call("tests.vllm.inside:state")["pending"].values()) == {0}
