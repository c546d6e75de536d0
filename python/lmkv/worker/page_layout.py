"""vLLM's KV tensors as lmkv copies them: Pages for the copier, and the rank's layout.

What a page is, the device's kind decides: cpu_pages, cuda_pages. Whatever cannot be shared yet
raises Unsupported, whose text is for people.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmkv import _native
from lmkv.core import geometry
from lmkv.worker.cpu_pages import cpu_pages
from lmkv.worker.cuda_pages import cuda_pages
from lmkv.worker.kv_group import Unsupported, kv_group

if TYPE_CHECKING:
    import torch

PAGES = {"cpu": cpu_pages, "cuda": cuda_pages}  # by torch's kind of device


@dataclass(frozen=True)
class PageLayout:
    """What a worker needs of its engine's KV in one cache group.

    Where `kernel_blocks` is above 1, `pages` tells of kernel blocks: vLLM's block b is those from
    b * kernel_blocks on. Else it tells of vLLM's blocks."""

    pages: _native.Pages
    layout: str  # text
    slot: _native.SlotLayout
    blocks_per_chunk: int  # vLLM's
    block_tokens: int
    layers: tuple[str, ...]
    window: int = 0  # tokens that its attention sees, the new one too; 0: all
    device: str = "cpu"  # torch's name: `cpu`, `cuda:0`
    kernel_blocks: int = 1  # of one of vLLM's

    def copier(self) -> _native.Copier:
        """Of KV on a CPU; gpu_copiers.py has a GPU's."""
        return _native.Copier(self.slot, self.pages, self.blocks_per_chunk)


def page_layouts(
    kv_caches: Mapping[str, torch.Tensor],
    kv_cache_config: Any,
    vllm_config: Any,
    rank: int,
    chunk_tokens: int,
) -> list[PageLayout]:
    """`page_layout` of each cache group."""
    groups = range(len(kv_cache_config.kv_cache_groups))
    return [
        page_layout(kv_caches, kv_cache_config, vllm_config, rank, chunk_tokens, group)
        for group in groups
    ]


def page_layout(
    kv_caches: Mapping[str, torch.Tensor],
    kv_cache_config: Any,
    vllm_config: Any,
    rank: int,
    chunk_tokens: int,
    group: int = 0,
) -> PageLayout:
    """Read the layout of what vLLM registered; `rank` is the worker's rank in its engine, `group`
    the cache group's number.

    Raises Unsupported for a kind of KV that is not shared, and ValueError for a chunk that is not
    whole blocks.
    """
    found = kv_group(kv_caches, kv_cache_config, vllm_config, group)
    spec, tensor = found.spec, found.tensors[0]
    if tensor.device.type not in PAGES:
        raise Unsupported(f"KV on {tensor.device} is not shared, only on a CPU or by CUDA")
    if chunk_tokens % spec.block_size:
        raise ValueError(
            f"chunk_tokens: {chunk_tokens} is not a multiple of vLLM's block size {spec.block_size}"
        )
    told = PAGES[tensor.device.type](found)
    blocks_per_chunk = 1 if geometry.is_state(spec) else chunk_tokens // spec.block_size
    model_heads = geometry.model_kv_heads(vllm_config.model_config)
    text = geometry.Layout(
        chunk_tokens=chunk_tokens,
        dtype=str(tensor.dtype).removeprefix("torch."),
        page_format=told.page_format,
        group=group,
        layers=found.layers,
        head_size=getattr(spec, "head_size", 0),
        kv_heads=model_heads,
        first_head=_first_head(rank, model_heads, vllm_config),
        heads=told.heads,
        segment_bytes=told.pages.segment_bytes(blocks_per_chunk * told.kernel_blocks),
    ).text()
    return PageLayout(
        told.pages,
        text,
        geometry.slot_layout(text),
        blocks_per_chunk,
        spec.block_size,
        found.layers,
        geometry.window(spec),
        str(tensor.device),
        told.kernel_blocks,
    )


def _first_head(rank: int, model_heads: int, vllm_config: Any) -> int:
    """The model's number of this rank's first KV head; ranks beyond the heads have replicas."""
    parallel: int = vllm_config.parallel_config.tensor_parallel_size
    return rank % parallel * model_heads // parallel
