"""Real engines in a cluster with keys: the controller lets in only them, and control sockets are
TCP at another address, as they are where an engine's ranks are on several hosts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lmkv.core import keyfiles
from lmkv.core.client import Client, Unreachable
from lmkv.core.messages import Status, StatusInfo

from tests.contract.test_controller import Controller
from tests.ports import free_port
from tests.vllm.cluster import MAPPED, NIXL, Cluster, hits
from tests.vllm.engine import Engine
from tests.vllm.models import prompt

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("access") / "keys"
    keyfiles.make(folder)
    return folder


@pytest.fixture(scope="module")
def locked(keys: Path) -> Iterator[Controller]:
    running = Controller(free_port(), "--keys", str(keys), "--dead-after-beats", "1000")
    yield running
    running.end()


@pytest.fixture(scope="module")
def engines(cluster: Cluster, locked: Controller, keys: Path) -> Iterator[tuple[Engine, Engine]]:
    extra = {"controllers": locked.state, "keys": str(keys), "control_interface": "127.0.0.2"}
    made = cluster.start("k1", extra), cluster.start("k2", extra, tensor_parallel_size=2)
    cluster.wait_ready(*made)
    yield made
    for engine in made:
        engine.stop()


@pytest.mark.parametrize(
    ("transfer", "cause"), [(MAPPED, "hit_mapped"), (NIXL, "hit_peer")], ids=["mapped", "nixl"]
)
def test_they_share(
    cluster: Cluster, engines: tuple[Engine, Engine], transfer: dict[str, Any], cause: str
) -> None:
    holder, reader = engines
    tokens = prompt(260 if transfer is MAPPED else 261, 700)
    cold = holder.generate(tokens)
    cluster.settle(holder)
    warm = reader.generate(tokens, kv_transfer_params=transfer)
    assert warm.tokens == cold.tokens
    assert hits(warm) == {cause: 512}


def test_nobody_else_is_let_in(
    locked: Controller, engines: tuple[Engine, Engine], keys: Path
) -> None:
    with Client(locked.state, 1.0) as client, pytest.raises(Unreachable):
        client.ask(Status(1))
    with Client(locked.state, 10.0, keyfiles.read_client(keys)) as client:
        info, _ = client.ask(Status(1))
    assert isinstance(info, StatusInfo)
    assert {each.instance for each in info.instances} == {"k1", "k2"}
