"""One zygote and one tiny model for all; engines end with the test that started them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.vllm.cluster import Cluster
from tests.vllm.engine import Engine, Zygote
from tests.vllm.models import make_llama

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = importlib.util.find_spec("vllm") is None
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.vllm)
            if missing:
                item.add_marker(pytest.mark.skip(reason="vllm is not installed"))


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    with Zygote(tmp_path_factory.mktemp("vllm")) as zygote:
        yield zygote


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers, two KV heads of 64, fp32."""
    return make_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def cluster(
    zygote: Zygote, llama: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    with Cluster(zygote, llama, tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def pair(cluster: Cluster) -> tuple[Engine, Engine]:
    a, b = cluster.start("a"), cluster.start("b")
    cluster.wait_ready(a, b)
    return a, b


@pytest.fixture
def start_engine(zygote: Zygote, llama: Path) -> Iterator[Callable[..., Engine]]:
    """start_engine("a", environment={...}, kv_transfer_config={...}); `model` is the llama."""

    def start(name: str, **arguments: object) -> Engine:
        return zygote.engine(name, arguments.pop("model", llama), **arguments)

    yield start
    zygote.stop_engines()
