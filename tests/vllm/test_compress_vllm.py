"""Compressed prompts on real engines: they hit in the own pool, in a mapped peer's and by a pull,
with equal output; so does what is decompressed again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from lmkv.core.client import Client
from lmkv.core.messages import Command, Done, VerifyResult

from tests.vllm.cluster import MAPPED, NIXL, Cluster, hits
from tests.vllm.engine import Engine
from tests.vllm.models import prompt
from tests.vllm.test_jobs_vllm import DEADLINE, done


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Client]:
    with Client(cluster.address, DEADLINE) as client:
        yield client


def granules(engine: Engine) -> dict[str, int]:
    found: dict[str, int] = engine.call("tests.vllm.inside:state")["granules"]
    return found


def verified(client: Client, instance: str, name: str) -> VerifyResult:
    """`name` is this command's: a second one of it would be answered like the first."""
    command = Command(name, "verify", instance, {"sample": "1000"}, request=1)
    answer, _ = client.ask(command)
    assert isinstance(answer, Done), answer
    return msgspec.msgpack.decode(answer.result, type=VerifyResult)


@pytest.mark.parametrize(
    ("seed", "wish", "cause"), [(90, NIXL, "hit_peer"), (91, MAPPED, "hit_mapped")]
)
def test_a_compressed_prompt_hits_here_and_at_a_peer(
    cluster: Cluster,
    pair: tuple[Engine, Engine],
    client: Client,
    seed: int,
    wish: Any,
    cause: str,
) -> None:
    a, b = pair
    text = prompt(seed, 700)
    cold = a.generate(text)
    cluster.settle(a)
    before = granules(a)["readable"]
    job = done(client, "compress", text, instance="a")
    assert (job.chunks, job.skipped) == (2, {})
    assert job.bytes > 0
    assert granules(a)["readable"] < before
    again = done(client, "compress", text, instance="a")
    assert (again.chunks, again.skipped) == (2, {"unchanged": 2})
    cluster.settle(a)
    warm = b.generate(text, kv_transfer_params=wish)
    assert hits(warm) == {cause: 512}
    own = a.generate(text)
    assert hits(own) == {"hit_pool": 512}
    assert warm.tokens == own.tokens == cold.tokens
    cluster.settle(a, b)
    if wish is NIXL:  # what was pulled is compressed here too
        pulled = b.generate(text)
        assert hits(pulled) == {"hit_pool": 512}
        assert pulled.tokens == cold.tokens
    good = verified(client, "a", f"verify {seed}")
    assert good.sampled == good.slots > 0
    assert (good.wrong, good.differing) == (0, [])
    full = done(client, "decompress", text, instance="a")
    assert (full.chunks, full.skipped) == (2, {})
    assert granules(a)["readable"] == before
    last = a.generate(text)
    assert hits(last) == {"hit_pool": 512}
    assert last.tokens == cold.tokens
    for engine in pair:
        assert set(engine.call("tests.vllm.inside:state")["pending"].values()) == {0}
