"""A cache group's KV as vLLM registered it: the layers that are stored, and their tensors.

A layer's tensor is a logical view [B, H, N, C] (block, head, token, content) whose strides tell the
truth. Where vLLM splits its blocks into kernel blocks, dimension 0 counts those. A group's layers
have addresses of their own; layers of different groups lie at the same ones, in blocks that vLLM
gives to one group at a time. So blocks are copied group by group.

Whatever cannot be shared yet raises Unsupported, whose text is for people.
"""

from __future__ import annotations

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
class KvGroup:
    """Layers of one spec, by number: no draft layers, each tensor once, all alike."""

    spec: Any  # vLLM's
    layers: tuple[str, ...]
    tensors: tuple[torch.Tensor, ...]
    blocks: int  # vLLM's
    kernel_blocks: int  # in each
    vllm_config: Any

    @property
    def kind(self) -> str:
        return type(self.spec).__name__

    @property
    def addresses(self) -> list[int]:
        return [tensor.data_ptr() for tensor in self.tensors]

    def module(self, layer: str) -> Any:
        """vLLM's module of a layer; None where it has registered none."""
        context = getattr(self.vllm_config.compilation_config, "static_forward_context", None)
        return (context or {}).get(layer)


@dataclass(frozen=True)
class GroupPages:
    """What a device's kind of page comes to: see `PageLayout`."""

    pages: _native.Pages
    page_format: str
    heads: int
    kernel_blocks: int = 1


def kv_group(
    kv_caches: Mapping[str, torch.Tensor], kv_cache_config: Any, vllm_config: Any, group: int
) -> KvGroup:
    """`group` is the cache group's number. Unsupported names what is not shared."""
    spec = _shared_spec(kv_cache_config, group)
    layers = _layers(kv_cache_config.kv_cache_groups[group].layer_names, kv_caches, vllm_config)
    first = kv_caches[layers[0]]
    for name in layers:
        _alike(name, kv_caches[name], layers[0], first)
    blocks, kernel_blocks = _blocks(first, kv_cache_config.num_blocks)
    tensors = tuple(kv_caches[name] for name in layers)
    return KvGroup(spec, tuple(layers), tensors, blocks, kernel_blocks, vllm_config)


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
    drafting = getattr(vllm_config, "speculative_config", None) is not None
    depth = getattr(vllm_config.model_config.hf_text_config, "num_hidden_layers", None)
    found: dict[int, str] = {}
    for name in sorted(names, key=_by_number):
        number = _by_number(name)[1]
        draft = drafting and isinstance(depth, int) and number >= depth
        if name not in kv_caches or name.startswith(DRAFT_PREFIX) or draft:
            continue
        found.setdefault(kv_caches[name].data_ptr(), name)  # some layers use another's KV
    if not found:
        raise Unsupported("vLLM registered no KV cache of its own")
    return list(found.values())


def _by_number(name: str) -> tuple[str, int, str]:
    match = re.search(r"^(.*?\.)(\d+)(\..*)?$", name)
    return (match[1], int(match[2]), match[3] or "") if match else (name, -1, "")


def _alike(name: str, tensor: torch.Tensor, other: str, as_this: torch.Tensor) -> None:
    if tensor.dim() != 4:
        raise Unsupported(f"layer {name}: a KV tensor of {tensor.dim()} dimensions is not shared")
    for what in ("shape", "stride", "dtype", "device"):
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
