"""KV tensors of CUDA engines, made on a CPU by vLLM's own code: specs as the backends want them,
places and strides of every order, kernel blocks, views. Only the name of the device is a lie.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
from lmkv import _native
from lmkv.worker.page_layout import PageLayout, page_layout

torch = pytest.importorskip("torch", reason="page layouts are read from torch tensors")
if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM's own code makes the tensors", allow_module_level=True)

BACKENDS = """
    flash_attn.FlashAttentionBackend triton_attn.TritonAttentionBackend
    flashinfer.FlashInferBackend flex_attention.FlexAttentionBackend
    triton_flash_attn.TritonFlashAttentionBackend triton_flashinfer.TritonFlashInferBackend
    b12x.B12xPagedAttentionBackend
    flash_attn_diffkv.FlashAttentionDiffKVBackend triton_attn_diffkv.TritonAttentionDiffKVBackend
    mla.triton_mla.TritonMLABackend mla.flashmla.FlashMLABackend mla.cutlass_mla.CutlassMLABackend
    mla.flashinfer_mla.FlashInferMLABackend mla.flashattn_mla.FlashAttnMLABackend
    mla.tokenspeed_mla.TokenspeedMLABackend
    turboquant_attn.TurboQuantAttentionBackend hpc_attn.HpcAttentionBackend
    mla.flashmla_sparse.FlashMLASparseBackend mla.indexer.DeepseekV32IndexerBackend
"""
ABSENT = "flashinfer flashinfer.decode flashinfer.prefill flashinfer.utils"


@functools.cache
def backends() -> dict[str, Any]:
    """vLLM's classes by name. They say what they want of a cache without the libraries and the
    device that they compute with, for which there are stand-ins while they are imported."""
    from vllm.v1.attention.backends import fa_utils

    importlib.import_module("vllm.v1.worker.utils")  # whole, before the stand-ins
    found = {}
    with ExitStack() as stack:
        stack.enter_context(
            mock.patch.dict(sys.modules, {n: mock.MagicMock() for n in ABSENT.split()})
        )
        for name in ("flash_attn_varlen_func", "get_scheduler_metadata"):
            stack.enter_context(mock.patch.object(fa_utils, name, create=True))
        stack.enter_context(mock.patch.object(torch, "empty"))  # workspaces on the device
        for path in BACKENDS.split():
            module, _, name = path.rpartition(".")
            backend = getattr(importlib.import_module(f"vllm.v1.attention.backends.{module}"), name)
            found[backend.get_name()] = backend
    return found


class OnCuda:
    """A tensor that says it is on a GPU."""

    device = torch.device("cuda:0")

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tensor, name)


class CudaEngine:
    """One cache group, each token's K and V of random bytes: `kv` is [layer, plane, slot, head,
    byte], where a plane is what lies together and a slot is a token's place in vLLM's blocks."""

    def __init__(
        self,
        backend: str,
        order: str = "LBNHC",
        head_size: int = 64,
        head_size_v: int | None = None,
        cache_dtype: str = "bfloat16",
        heads: int = 2,
        layers: int = 3,
        block_tokens: int = 16,
        kernel_tokens: int | None = None,  # None: what vLLM chooses
        seed: int = 0,
        **spec: Any,
    ) -> None:
        from vllm.utils.torch_utils import STR_DTYPE_TO_TORCH_DTYPE
        from vllm.v1 import kv_cache_interface as kv
        from vllm.v1.worker import utils

        self.backend, self.order = backends()[backend], order
        self.mla = self.backend.is_mla()
        spec |= {
            "block_size": block_tokens,
            "num_kv_heads": 1 if self.mla else heads,
            "head_size": head_size,
            "dtype": STR_DTYPE_TO_TORCH_DTYPE[cache_dtype],
            "kv_quant_mode": kv.get_kv_quant_mode(cache_dtype),
        }
        spec |= {"cache_dtype_str": cache_dtype} if self.mla else {"head_size_v": head_size_v}
        kind = kv.MLAAttentionSpec if self.mla else kv.FullAttentionSpec
        self.spec = utils.customize_attention_spec(self.backend, kind(**spec))
        names = [f"model.layers.{n}.self_attn.attn" for n in range(layers)]
        blocks = max(384 // block_tokens, 4)
        self.setup([kv.KVCacheGroupSpec(names, self.spec)], blocks, kernel_tokens)
        self.fill(np.random.default_rng(seed))

    def setup(self, groups: list[Any], blocks: int, kernel_tokens: int | None = None) -> None:
        from vllm.v1.core.kv_cache_utils import get_kv_cache_config_from_groups
        from vllm.v1.kv_cache_layout import KVCacheLayout
        from vllm.v1.worker import utils

        names = [name for group in groups for name in group.layer_names]
        module = SimpleNamespace(get_attn_backend=lambda: self.backend)
        self.vllm_config: Any = SimpleNamespace(
            model_config=SimpleNamespace(
                use_mla=self.mla,
                get_total_num_kv_heads=lambda: self.spec.num_kv_heads,
                hf_text_config=SimpleNamespace(num_hidden_layers=len(names)),
            ),
            parallel_config=SimpleNamespace(tensor_parallel_size=1),
            compilation_config=SimpleNamespace(
                static_forward_context=dict.fromkeys(names, module),
            ),
            cache_config=SimpleNamespace(
                get_resolved_kv_cache_layout=lambda: KVCacheLayout[self.order],
                num_gpu_blocks_override=blocks,
                prefix_cache_retention_interval=None,
                use_replayssm=False,
            ),
            attention_config=SimpleNamespace(hisparse_config=None),
            speculative_config=None,
        )
        self.config = get_kv_cache_config_from_groups(self.vllm_config, groups, 1 << 30)
        assert self.config.num_blocks == blocks
        kernel_sizes = utils.prepare_kernel_block_sizes(
            self.config,
            [
                [utils.AttentionGroup(self.backend, group.layer_names, group.kv_cache_spec, n)]
                for n, group in enumerate(groups)
            ],
        )
        if kernel_tokens is not None:
            kernel_sizes[0] = kernel_tokens
        self.caches = utils.allocate_kv_cache(
            self.config, torch.device("cpu"), KVCacheLayout[self.order], kernel_sizes
        )

    def fill(self, random: np.random.Generator) -> None:
        spec = self.spec
        item, slots = spec.dtype.itemsize, spec.block_size * self.config.num_blocks
        # Of unlike sizes, K and V are one run.
        size = spec.head_size + (0 if spec.head_size_v == spec.head_size else spec.head_size_v)
        planes = 2 if spec.head_size_v == spec.head_size else 1
        shape = (len(self.caches), planes, slots, spec.num_kv_heads, size * item)
        self.kv = np.frombuffer(random.bytes(int(np.prod(shape))), np.uint8).reshape(shape)
        self.memory[:] = 0xEE
        for layer, tensor in zip(self.kv, self.caches.values()):
            for values, plane in zip(layer, self.planes(tensor)):
                plane[self.places()] = values

    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """(kernel block, token in it) of each slot, as vLLM's kernels find them."""
        tokens = next(iter(self.caches.values())).shape[2]
        slots = np.arange(self.spec.block_size * self.config.num_blocks)
        return slots // tokens, slots % tokens

    def planes(self, tensor: Any) -> list[np.ndarray]:
        """K and V, or what lies together, as [kernel block, token, head, byte]; taken apart as the
        backend's own `do_kv_cache_update` does."""
        by_bytes, spec = tensor.view(torch.uint8), self.spec
        if self.backend.get_name() == "B12X":
            parts = [part.unflatten(-1, (spec.num_kv_heads, -1)) for part in by_bytes.unbind(1)]
        elif self.mla:
            parts = [by_bytes.squeeze(1).unsqueeze(2)]
        elif spec.head_size_v != spec.head_size:
            parts = [by_bytes.transpose(1, 2)]
        else:
            size = spec.head_size * spec.dtype.itemsize
            parts = list(by_bytes.transpose(1, 2).split(size, dim=-1))
        return [part.numpy() for part in parts]

    def now(self) -> np.ndarray:
        """What the tensors hold, as `kv`."""
        planes = [[p[self.places()] for p in self.planes(t)] for t in self.caches.values()]
        return np.array(planes)

    @property
    def memory(self) -> np.ndarray:
        storage = next(iter(self.caches.values())).untyped_storage()
        return torch.empty(0, dtype=torch.uint8).set_(storage).numpy()

    def layout(self, chunk_tokens: int = 256, rank: int = 0, group: int = 0) -> PageLayout:
        caches = {name: OnCuda(tensor) for name, tensor in self.caches.items()}
        return page_layout(caches, self.config, self.vllm_config, rank, chunk_tokens, group)  # type: ignore[arg-type]

    def slots_of(self, blocks: list[int]) -> np.ndarray:
        size = self.spec.block_size
        return (np.array(blocks)[:, None] * size + np.arange(size)).ravel()

    def payload(self, blocks: list[int]) -> np.ndarray:
        """Of a chunk in these blocks, by segment: K of all tokens, then V of all tokens."""
        chunk = self.kv[:, :, self.slots_of(blocks)].transpose(0, 3, 1, 2, 4)
        return chunk.reshape(chunk.shape[0] * chunk.shape[1], -1)


def kernel_blocks(layout: PageLayout, blocks: list[int]) -> list[int]:
    k = layout.kernel_blocks
    return [block * k + n for block in blocks for n in range(k)]


def host_copier(layout: PageLayout) -> _native.Copier:
    """The host's copies of tensors that only say that they are on a GPU."""
    per_chunk = layout.blocks_per_chunk * layout.kernel_blocks
    return _native.Copier(layout.slot, layout.pages, per_chunk)
