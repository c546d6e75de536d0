"""Pages of vLLM's CUDA backends: tokens, wherever they lie.

Most backends keep a token's K and then its V of one head together, MLA one latent row a token, b12x
all K of a block apart from its V. Strides tell them all, page format `tokens`: engines with other
backends, orders of [L, B, H, N, C], block sizes and kernel block sizes share. Where K and V have
unlike sizes a token's content is one run, `cuda:k<size>+v<size>`. A block of a state group (Mamba)
is one page, named after what vLLM packs into it.

What a backend keeps where was read in vLLM 0.32's sources (`do_kv_cache_update` of each). Those
that are not named here, and contents with scales of their own, are refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lmkv import _native
from lmkv.core import geometry
from lmkv.worker.kv_group import GroupPages, KvGroup, Unsupported

_BESIDE = """
    FLASH_ATTN FLASHINFER TRITON_ATTN FLEX_ATTENTION TRITON_FLASH_ATTN TRITON_FLASHINFER
    FLASH_ATTN_DIFFKV TRITON_ATTN_DIFFKV
"""
_LATENT = "TRITON_MLA FLASHMLA CUTLASS_MLA FLASHINFER_MLA FLASH_ATTN_MLA TOKENSPEED_MLA"
BESIDE = frozenset(_BESIDE.split())  # C is K, then V
APART = frozenset({"B12X"})  # H is K and V, C all heads of it
LATENT = frozenset(_LATENT.split())  # C is K and V in one
# A byte means the same in every token; fp8's scales are static, or the namespace refuses them.
PLAIN = ("NONE", "FP8_PER_TENSOR")
PIECE = 4  # bytes: what a GPU's copies need runs to be multiples of


def cuda_pages(group: KvGroup) -> GroupPages:
    import torch  # already there: the tensors are its

    if torch.version.hip:  # its devices are named cuda too, its pages are others
        raise Unsupported("KV on ROCm is not shared yet")
    if group.tensors[0].stride()[3] != 1:
        strides = tuple(group.tensors[0].stride())
        raise Unsupported(f"KV pages with strides {strides} are not shared yet")
    if geometry.is_state(group.spec):
        return _states(group)
    mode = getattr(getattr(group.spec, "kv_quant_mode", None), "name", "NONE")
    if mode not in PLAIN:
        raise Unsupported(f"KV quantized as {mode} is not shared yet")
    backends = {_backend(group, layer) for layer in group.layers}
    for names, told in FAMILIES:
        if backends <= names:
            return told(group)
    raise Unsupported(f"KV of the backend {', '.join(sorted(backends))} is not shared yet")


def _backend(group: KvGroup, layer: str) -> str:
    module = group.module(layer)
    if module is None:
        raise Unsupported(f"layer {layer}: vLLM does not say which attention backend it has")
    return str(module.get_attn_backend().get_name())


def _beside(group: KvGroup) -> GroupPages:
    size, size_v = group.spec.head_size, group.spec.head_size_v
    heads, item, strides = _checked(group, group.spec.num_kv_heads, size + size_v)
    if size == size_v:
        return _tokens(group, heads, size * item, strides[1], 2, size * item)
    told = _tokens(group, heads, (size + size_v) * item, strides[1])
    return GroupPages(told.pages, f"cuda:k{size}+v{size_v}", heads, told.kernel_blocks)


def _apart(group: KvGroup) -> GroupPages:
    heads, size = group.spec.num_kv_heads, group.spec.head_size
    _, item, strides = _checked(group, 2, heads * size)
    return _tokens(group, heads, size * item, size * item, 2, strides[1])


def _latent(group: KvGroup) -> GroupPages:
    _, item, strides = _checked(group, 1, group.spec.head_size)
    return _tokens(group, 1, group.spec.head_size * item, strides[1])


FAMILIES: tuple[tuple[frozenset[str], Callable[[KvGroup], GroupPages]], ...] = (
    (BESIDE, _beside),
    (APART, _apart),
    (LATENT, _latent),
)


def _checked(group: KvGroup, heads: int, content: int) -> tuple[int, int, list[int]]:
    """(heads, bytes of an element, strides in bytes) of tensors that are as expected: so many
    [H, C], and a token in each of N."""
    tensor, block_tokens = group.tensors[0], group.spec.block_size
    tokens, uneven = divmod(block_tokens, group.kernel_blocks)
    expected = (group.blocks * group.kernel_blocks, heads, tokens, content)
    if tuple(tensor.shape) != expected or uneven:
        raise Unsupported(
            f"KV of shape {tuple(tensor.shape)} is not shared: blocks of {block_tokens} tokens"
            f" with K and V alone are {expected}"
        )
    item = tensor.element_size()
    return heads, item, [stride * item for stride in tensor.stride()]


def _tokens(
    group: KvGroup, heads: int, run: int, head_stride: int, planes: int = 1, plane_stride: int = 0
) -> GroupPages:
    tensor = group.tensors[0]
    item, strides = tensor.element_size(), tensor.stride()
    _in_pieces(run)
    pages = _native.Pages(
        group.addresses,
        group.blocks * group.kernel_blocks,
        heads,
        tensor.shape[2],
        run,
        strides[0] * item,
        head_stride,
        strides[2] * item,
        planes,
        plane_stride,
    )
    return GroupPages(pages, geometry.TOKENS, heads, group.kernel_blocks)


def _states(group: KvGroup) -> GroupPages:
    """vLLM packs a layer's states one behind the other into a block's first C bytes."""
    spec, tensor = group.spec, group.tensors[0]
    cache_config = getattr(group.vllm_config, "cache_config", None)
    if getattr(cache_config, "use_replayssm", False):  # part of it lies beside the pages
        raise Unsupported("KV of kind MambaSpec with use_replayssm is not shared yet")
    if (tensor.shape[1], tensor.shape[2], group.kernel_blocks) != (1, 1, 1):
        raise Unsupported(f"states of shape {tuple(tensor.shape)} are not shared yet")
    item = tensor.element_size()
    run, stride = tensor.shape[3] * item, tensor.stride()[0] * item
    _in_pieces(run)
    pages = _native.Pages(group.addresses, group.blocks, 1, 1, run, stride, 0)
    packed = ",".join(_state(*each) for each in zip(spec.shapes, spec.dtypes))
    return GroupPages(pages, f"cuda:{spec.mamba_type.name.lower()}:{packed}", 1)


def _state(shape: tuple[int, ...], dtype: Any) -> str:
    return "x".join(map(str, shape)) + "-" + str(dtype).removeprefix("torch.")


def _in_pieces(run: int) -> None:
    if run % PIECE:
        raise Unsupported(f"KV in runs of {run} bytes is not shared, only in multiples of {PIECE}")
