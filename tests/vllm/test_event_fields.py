"""lmkv's events beside those that vLLM's own block pool makes of the same real request."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vllm is not installed")

import torch
from lmkv.connector import LmkvConnector
from lmkv.connector_events import PoolEvents
from vllm import envs
from vllm.distributed.kv_events import BlockRemoved, BlockStored
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.lora.request import LoRARequest
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
from vllm.sampling_params import SamplingParams
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheGroupSpec,
    MambaSpec,
    SlidingWindowSpec,
)
from vllm.v1.request import Request

CHUNK, TOKENS, HASH = 16, 40, 4


def sha(value: Any) -> bytes:
    return hashlib.sha256(repr(value).encode()).digest()


def full(block: int) -> FullAttentionSpec:
    return FullAttentionSpec(block_size=block, num_kv_heads=1, head_size=8, dtype=torch.float32)


def window(block: int) -> SlidingWindowSpec:
    return SlidingWindowSpec(
        block_size=block, num_kv_heads=1, head_size=8, dtype=torch.float32, sliding_window=32
    )


def state(block: int) -> MambaSpec:
    return MambaSpec(block_size=block, shapes=((4,),), dtypes=(torch.float32,))


def cache_config(*specs: Any) -> Any:
    groups = [KVCacheGroupSpec([f"layer{i}"], spec) for i, spec in enumerate(specs)]
    return SimpleNamespace(kv_cache_groups=groups, hash_block_size=HASH)


def request(**fields: Any) -> Request:
    init_none_hash(sha)
    plain = {
        "prompt_token_ids": list(range(100, 100 + TOKENS)),
        "sampling_params": SamplingParams(),
        "pooling_params": None,
        "block_hasher": get_request_block_hasher(HASH, sha),
    }
    return Request("r", **(plain | fields))


def image(offset: int, length: int) -> MultiModalFeatureSpec:
    return MultiModalFeatureSpec(
        data=None,
        modality="image",
        identifier=f"{offset:064x}",
        mm_position=PlaceholderRange(offset, length),
    )


REQUESTS = {
    "tokens": {},
    "salt": {"cache_salt": "s"},
    "lora": {"lora_request": LoRARequest("adapter", 3, "/somewhere")},
    "pictures": {"mm_features": [image(2, 3), image(6, 20)]},
    "embeddings": {"prompt_token_ids": None, "prompt_embeds": torch.arange(80.0).reshape(40, 2)},
    "session": {"session_id": "chat", "resumable": True},
}


def vllms(one: Request, first: int, last: int, block: int, group: int = 0) -> BlockStored:
    """The event of vLLM's pool for blocks [first, last)."""
    pool = BlockPool(32, True, HASH, enable_kv_cache_events=True)
    blocks = pool.get_new_blocks(last)
    pool.cache_full_blocks(one, blocks, first, last, block, group)
    (event,) = pool.take_events()
    return event


def ours(events: PoolEvents, group: int, chunk: int) -> BlockStored:
    facts = events.describe("r", group, chunk)
    assert facts is not None
    (event,) = events.events([], [facts])
    assert isinstance(event, BlockStored)
    assert (event.medium, event.locality, event.ownership) == ("CPU", "LOCAL", None)
    (gone,) = events.events([facts], [])
    assert isinstance(gone, BlockRemoved)
    assert (gone.block_hashes, gone.medium, gone.group_idx, gone.locality) == (
        (event.block_hashes, "CPU", group, "LOCAL")
    )
    return event


def same(mine: BlockStored, theirs: BlockStored) -> None:
    names = set(BlockStored.__struct_fields__)
    names -= {"medium", "locality", "kv_cache_spec_kind", "kv_cache_spec_sliding_window"}
    for name in names:
        assert getattr(mine, name) == getattr(theirs, name), name


@pytest.mark.parametrize("ints", [True, False])
@pytest.mark.parametrize("kind", REQUESTS)
@pytest.mark.parametrize("block", [4, 8])
def test_an_event_is_vllms_for_the_same_blocks(
    monkeypatch: pytest.MonkeyPatch, kind: str, block: int, ints: bool
) -> None:
    """Also where a group's blocks are larger than what vLLM hashes."""
    monkeypatch.setattr(envs, "VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES", ints)
    one, per = request(**REQUESTS[kind]), CHUNK // block
    events = PoolEvents(cache_config(full(block)), CHUNK, {"r": one})
    for chunk in (0, 1):
        same(ours(events, 0, chunk), vllms(one, per * chunk, per * (chunk + 1), block))


def test_each_group_is_told_with_its_number_and_kind() -> None:
    one = request()
    config = cache_config(full(8), window(4), state(8))
    events = PoolEvents(config, CHUNK, {"r": one})
    kinds = [
        (e.kv_cache_spec_kind, e.kv_cache_spec_sliding_window)
        for e in (ours(events, group, 1) for group in range(3))
    ]
    assert kinds == [("full_attention", None), ("sliding_window", 32), ("mamba", None)]
    same(ours(events, 1, 1), vllms(one, 4, 8, 4, group=1))
    same(ours(events, 2, 1), vllms(one, 3, 4, 8, group=2))  # the state at the chunk's end


def test_what_vllm_has_not_hashed_is_not_described() -> None:
    one = request()
    assert PoolEvents(cache_config(full(4)), CHUNK, {"r": one}).describe("r", 0, 2) is None
    one.append_output_token_ids(list(range(8)))
    last = ours(PoolEvents(cache_config(full(4)), CHUNK, {"r": one}), 0, 2)
    assert last.token_ids[-2:] == [6, 7]
    assert PoolEvents(cache_config(full(6)), 12, {"r": one}).describe("r", 0, 0) is None


class Agent:
    """Its events cannot be taken."""

    events = property(lambda self: 1 // 0)

    def must_step(self) -> bool:
        return True


def test_a_failing_take_costs_vllm_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    transfer = SimpleNamespace(
        kv_connector_extra_config={}, kv_load_failure_policy="fail", engine_id="e"
    )
    config = SimpleNamespace(kv_transfer_config=transfer, parallel_config=SimpleNamespace())
    one: Any = LmkvConnector(config, KVConnectorRole.SCHEDULER, kv_cache_config=None)
    one._off = ""
    assert one._pool_events(CHUNK) is None
    assert one.take_events() == ()
    assert not one.has_pending_push_work()
    one._agent, one._events = Agent(), object()
    assert one.has_pending_push_work()
    assert one.take_events() == []
    assert "internal error" in one._off
    assert not one.has_pending_push_work(), "an engine does not step for ever"


def test_an_engine_of_another_vllm_shares_without_events(monkeypatch: pytest.MonkeyPatch) -> None:
    one: Any = LmkvConnector.__new__(LmkvConnector)
    one._vllm_config = SimpleNamespace(kv_events_config=SimpleNamespace(enable_kv_cache_events=1))
    one._kv_cache_config, one._requests = object(), {}
    assert one._pool_events(CHUNK) is None
