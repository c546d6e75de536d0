"""Engines of several ranks: other tensor-parallel sizes share, pipeline stages, data parallelism.

Each engine answers as one without lmkv; what it takes from another is counted as such. Engines end
with their class.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from lmkv.core.client import Client
from lmkv.core.messages import InstanceState, Status, StatusInfo

from tests.vllm.cluster import MAPPED, NIXL, Cluster, hits
from tests.vllm.engine import Engine
from tests.vllm.models import prompt

pytestmark = pytest.mark.timeout(900)  # a rank is a process that imports vLLM anew
EITHER = pytest.mark.parametrize(
    ("transfer", "cause"), [(MAPPED, "hit_mapped"), (NIXL, "hit_peer")], ids=["mapped", "nixl"]
)


def shared(
    cluster: Cluster, holder: Engine, reader: Engine, tokens: list[int], transfer: Any, cause: str
) -> None:
    """What the holder computed the reader takes, and answers as an engine without lmkv."""
    cold = holder.generate(tokens)
    cluster.settle(holder)
    warm = reader.generate(tokens, kv_transfer_params=transfer)
    assert warm.tokens == cold.tokens == cluster.reference(tokens)
    assert warm.num_cached_tokens == 512
    assert hits(warm) == {cause: 512}
    cluster.settle(reader)
    assert set(reader.call("tests.vllm.inside:state")["pending"].values()) == {0}


@pytest.fixture(scope="class")
def sizes(cluster: Cluster) -> Iterator[dict[int, Engine]]:
    """By tensor-parallel size."""
    engines = {size: cluster.start(f"tp{size}", tensor_parallel_size=size) for size in (1, 2)}
    cluster.wait_ready(*engines.values())
    yield engines
    for engine in engines.values():
        engine.stop()


class TestTensorParallel:
    """The model has two KV heads: one rank has both, or two ranks one each."""

    @pytest.mark.parametrize(("holder", "reader"), [(1, 2), (2, 1)])
    @EITHER
    def test_another_size_shares(
        self, cluster: Cluster, sizes: dict[int, Engine], holder: int, reader: int,
        transfer: Any, cause: str,
    ) -> None:  # fmt: skip
        tokens = prompt(200 + holder if transfer is MAPPED else 210 + holder, 700)
        shared(cluster, sizes[holder], sizes[reader], tokens, transfer, cause)


@pytest.fixture(scope="class")
def staged(cluster: Cluster) -> Iterator[tuple[Engine, Engine]]:
    stages: Any = {"pipeline_parallel_size": 2, "worker_cls": "tests.vllm.stages.StageWorker"}
    a, b = (cluster.start(name, **stages) for name in ("p1", "p2"))
    cluster.wait_ready(a, b)
    yield a, b
    for engine in (a, b):
        engine.stop()


class TestPipelineParallel:
    """Two stages, each with a layer, a pool and a mover of its own."""

    @EITHER
    def test_stages_share(
        self, cluster: Cluster, staged: tuple[Engine, Engine], transfer: Any, cause: str
    ) -> None:
        tokens = prompt(220 if transfer is MAPPED else 221, 700)
        shared(cluster, *staged, tokens, transfer, cause)


@pytest.fixture(scope="class")
def parallel(cluster: Cluster) -> Iterator[Engine]:
    engine = cluster.start("d", data_parallel_size=2)
    engine.wait_ready(600)  # a coordinator, two engines and their workers, one after the other
    yield engine
    engine.stop()


class TestDataParallel:
    """Two engines behind one front end are two instances of one host."""

    def test_the_engines_share(self, cluster: Cluster, parallel: Engine) -> None:
        found: dict[str, InstanceState] = {}

        def instances() -> bool:
            with Client(cluster.address) as client:
                answer, _ = client.ask(Status(1))
            assert isinstance(answer, StatusInfo)
            found.update({one.instance: one for one in answer.instances})
            return all(f"d-dp{rank}" in found for rank in (0, 1))

        def registered() -> bool:
            return instances() and all(found[f"d-dp{rank}"].pullable for rank in (0, 1))

        cluster.wait(registered)
        tokens = prompt(230, 700)
        cold = parallel.generate(tokens, rank=0)
        cluster.wait(lambda: instances() and found["d-dp0"].keys == 2)
        assert found["d-dp1"].keys == 0
        warm = parallel.generate(tokens, rank=1, kv_transfer_params=MAPPED)
        assert warm.tokens == cold.tokens == cluster.reference(tokens)
        assert hits(warm) == {"hit_mapped": 512}
