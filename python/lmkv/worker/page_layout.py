"""vLLM's KV tensors as lmkv copies them: Pages for the copier, and the rank's layout.

A layer's tensor is a logical view [B, H, N, C] (block, head, token, content) whose strides tell the
truth. The CPU backend packs a (block, head) page by instruction set and block size, so a page is
opaque there: one run, page format `cpu:<isa>:<block size>`. Where vLLM splits its blocks into
kernel blocks, dimension 0 counts those, and a block's page is its kernel blocks' pages in order.
MLA has one latent row a token, alike on every rank: one segment a layer. A block of a state group
(Mamba) is one page: the state after its last token.

A group's layers have addresses of their own; layers of different groups lie at the same ones, in
blocks that vLLM gives to one group at a time. So blocks are copied group by group.

Whatever cannot be shared yet raises Unsupported, whose text is for people.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmkv import _native
from lmkv.core import geometry

if TYPE_CHECKING:
    import torch

MLA = "MLAAttentionSpec"
SHARED_KINDS = ("FullAttentionSpec", MLA, "SlidingWindowSpec", "MambaSpec")
# Of Mamba's, what keeps a state at the end of a block, and there alone.
STATES: tuple[tuple[str, object], ...] = (
    ("mamba_cache_mode", "align"),
    ("num_speculative_blocks", 0),
    ("num_prefill_checkpoint_blocks", 0),
)
DRAFT_PREFIX = "draft_model."  # a draft model's layers are no part of the payload


class Unsupported(Exception):
    """This engine's KV is not shared; the text says why."""


@dataclass(frozen=True)
class PageLayout:
    """What a worker needs of its engine's KV in one cache group."""

    pages: _native.Pages
    layout: str  # text
    slot: _native.SlotLayout
    blocks_per_chunk: int
    block_tokens: int
    layers: tuple[str, ...]
    window: int = 0  # tokens that its attention sees, the new one too; 0: all

    def copier(self) -> _native.Copier:
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
    spec = _shared_spec(kv_cache_config, group)
    layers = _layers(kv_cache_config.kv_cache_groups[group].layer_names, kv_caches, vllm_config)
    first = kv_caches[layers[0]]
    for name in layers:
        _same_shape(name, kv_caches[name], layers[0], first)
    blocks, kernel_blocks = _blocks(first, kv_cache_config.num_blocks)
    if chunk_tokens % spec.block_size:
        raise ValueError(
            f"chunk_tokens: {chunk_tokens} is not a multiple of vLLM's block size {spec.block_size}"
        )
    _, heads, tokens, content = first.shape
    item, strides = first.element_size(), first.stride()
    state = geometry.is_state(spec)
    if strides[3] != 1 or (strides[2] != content and tokens > 1):
        raise Unsupported(f"KV pages with strides {tuple(strides)} are not shared on a CPU yet")
    pages = _native.Pages(
        [kv_caches[name].data_ptr() for name in layers],
        blocks,
        heads,
        kernel_blocks,
        tokens * content * item,
        strides[0] * item * kernel_blocks,
        strides[1] * item,
        strides[0] * item if kernel_blocks > 1 else 0,
    )
    blocks_per_chunk = 1 if state else chunk_tokens // spec.block_size
    isa, form = _isa(layers[0], spec, tokens, vllm_config), "state" if state else tokens
    model_heads = geometry.model_kv_heads(vllm_config.model_config)
    text = geometry.Layout(
        chunk_tokens=chunk_tokens,
        dtype=str(first.dtype).removeprefix("torch."),
        page_format=f"cpu:{isa}:{form}",
        group=group,
        layers=layers,
        head_size=getattr(spec, "head_size", 0),
        kv_heads=model_heads,
        first_head=_first_head(rank, model_heads, vllm_config),
        heads=heads,
        segment_bytes=pages.segment_bytes(blocks_per_chunk),
    ).text()
    return PageLayout(
        pages,
        text,
        geometry.slot_layout(text),
        blocks_per_chunk,
        spec.block_size,
        tuple(layers),
        geometry.window(spec),
    )


def _shared_spec(kv_cache_config: Any, group: int) -> Any:
    """The spec of this cache group; Unsupported names a kind that is not shared."""
    spec = kv_cache_config.kv_cache_groups[group].kv_cache_spec
    kind = type(spec).__name__
    if kind not in SHARED_KINDS:
        raise Unsupported(f"KV of kind {kind} is not shared yet, only {', '.join(SHARED_KINDS)}")
    if geometry.is_state(spec):
        for name, allowed in STATES:
            if (value := getattr(spec, name, allowed)) != allowed:
                raise Unsupported(f"KV of kind {kind} with {name} = {value} is not shared yet")
    return spec


def _layers(
    names: Sequence[str], kv_caches: Mapping[str, torch.Tensor], vllm_config: Any
) -> list[str]:
    """The layers that are stored, by number: no draft layers, and each tensor once."""
    drafting = getattr(vllm_config, "speculative_config", None) is not None
    depth = getattr(vllm_config.model_config.hf_text_config, "num_hidden_layers", None)
    found: dict[int, str] = {}
    for name in sorted(names, key=_by_number):
        number = _by_number(name)[1]
        draft = drafting and isinstance(depth, int) and number >= depth
        if name not in kv_caches or name.startswith(DRAFT_PREFIX) or draft:
            continue
        if kv_caches[name].device.type != "cpu":
            raise Unsupported(f"KV on {kv_caches[name].device} is not shared yet, only on a CPU")
        found.setdefault(kv_caches[name].data_ptr(), name)  # some layers use another's KV
    if not found:
        raise Unsupported("vLLM registered no KV cache of its own")
    return list(found.values())


def _by_number(name: str) -> tuple[str, int, str]:
    match = re.search(r"^(.*?\.)(\d+)(\..*)?$", name)
    return (match[1], int(match[2]), match[3] or "") if match else (name, -1, "")


def _same_shape(name: str, tensor: torch.Tensor, other: str, as_this: torch.Tensor) -> None:
    if tensor.dim() != 4:
        raise Unsupported(f"layer {name}: a KV tensor of {tensor.dim()} dimensions is not shared")
    for what in ("shape", "stride", "dtype"):
        a, b = getattr(tensor, what), getattr(as_this, what)
        a, b = (a(), b()) if what == "stride" else (a, b)
        if a != b:
            raise Unsupported(f"layers {other} and {name} differ in {what}: {b} and {a}")


def _blocks(tensor: torch.Tensor, num_blocks: int) -> tuple[int, int]:
    """(vLLM's blocks, kernel blocks in each)."""
    found = tensor.shape[0]
    if found % num_blocks:
        raise Unsupported(f"{found} kernel blocks do not make {num_blocks} blocks")
    return num_blocks, found // num_blocks


def _first_head(rank: int, model_heads: int, vllm_config: Any) -> int:
    """The model's number of this rank's first KV head; ranks beyond the heads have replicas."""
    parallel: int = vllm_config.parallel_config.tensor_parallel_size
    return rank % parallel * model_heads // parallel


def _isa(layer: str, spec: Any, tokens: int, vllm_config: Any) -> str:
    """The packing that vLLM's CPU attention chose: it leaves it on its layers; where it has not
    yet, by the same rule (`_get_attn_isa` in vLLM's v1/attention/backends/cpu_attn.py). MLA's is
    one of its own."""
    if type(spec).__name__ == MLA:
        return "mla"
    context = getattr(vllm_config.compilation_config, "static_forward_context", None) or {}
    chosen = getattr(context.get(layer), "isa", None)
    if chosen:
        return str(chosen)
    import torch  # already there: the tensors are its

    bf16 = vllm_config.model_config.dtype == torch.bfloat16
    amx = bool(torch.cpu._is_amx_tile_supported())
    head_size = getattr(spec, "head_size", 128)  # a state has none
    return cpu_isa(head_size, tokens, bf16, amx, platform.machine())


def cpu_isa(head_size: int, block_size: int, bf16: bool, amx: bool, machine: str) -> str:
    """vLLM's rule: how its CPU attention packs a page."""
    if head_size % 32 and head_size % 16 == 0:
        return "vec16"
    if amx and bf16 and block_size % 32 == 0:
        return "amx"
    if machine in ("aarch64", "arm64"):
        return "neon"
    if block_size % 32:
        return "vec16"
    return {"s390x": "vxe", "ppc64le": "vsx", "riscv64": "rvv"}.get(machine, "vec")
