"""What of vLLM's configuration both sides of the connector need, and what is refused of it."""

from __future__ import annotations

import math
from typing import Any

import vllm

from lmkv.core import identity
from lmkv.core.config import InstanceConfig

CHUNK_TOKENS = 256


def refuse_unshared(vllm_config: Any, kv_cache_config: Any) -> None:
    """ValueError with one sentence for a deployment that is not shared yet."""
    parallel = vllm_config.parallel_config
    for name in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        if getattr(parallel, name, 1) > 1:
            raise ValueError(f"{name} = {getattr(parallel, name)} is not shared yet, only 1")
    kind = vllm.platforms.current_platform.device_type
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"opted_out: KV on {kind} is not shared yet, only on a CPU or by CUDA")
    if kind == "cuda":
        _refuse_unshared_on_cuda(vllm_config, kv_cache_config)


def _refuse_unshared_on_cuda(vllm_config: Any, kv_cache_config: Any) -> None:
    if vllm_config.model_config.enable_sleep_mode:
        # Asleep, vLLM gives its KV's memory back: a copy under way would fault there.
        raise ValueError("opted_out: an engine with enable_sleep_mode is not shared on CUDA yet")
    if kv_cache_config.needs_kv_cache_zeroing:
        # A block may be zeroed before its gather is waited for: zeros would be stored.
        raise ValueError(
            "opted_out: KV whose blocks vLLM zeroes (Mamba, KV of several precisions) is not"
            " shared on CUDA yet"
        )


def chunk_tokens(kv_cache_config: Any, asked: int | None) -> int:
    """256, or the smallest multiple of all block sizes above it. ValueError where `asked` is no
    such multiple."""
    groups = kv_cache_config.kv_cache_groups
    block = math.lcm(*(group.kv_cache_spec.block_size for group in groups))
    if asked is None:
        return -(-CHUNK_TOKENS // block) * block
    if asked % block:
        raise ValueError(
            f"chunk_tokens = {asked}: allowed is a multiple of vLLM's block size {block}"
        )
    return asked


def instance_of(vllm_config: Any, config: InstanceConfig) -> tuple[str, str]:
    """(instance id, engine id)"""
    engine_id = str(vllm_config.kv_transfer_config.engine_id)
    return identity.instance_id(config.instance_id, engine_id), engine_id


def ranks_on_host(parallel: Any) -> int:
    """Of all data-parallel engines; a dense model's are told only their own number."""
    engines = max(parallel.data_parallel_size_local, parallel.data_parallel_index + 1)
    return int(parallel.world_size * engines)
