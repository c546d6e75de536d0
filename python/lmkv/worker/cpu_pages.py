"""Pages of vLLM's CPU backend: opaque, one run for each (block, head).

It packs a page by instruction set and block size, page format `cpu:<isa>:<block size>`. Where vLLM
splits its blocks into kernel blocks, a block's page is its kernel blocks' pages in order. MLA has
one latent row a token, alike on every rank: one segment a layer. A block of a state group (Mamba)
is one page: the state after its last token.
"""

from __future__ import annotations

import platform

from lmkv import _native
from lmkv.core import geometry
from lmkv.worker.kv_group import MLA, GroupPages, KvGroup, Unsupported


def cpu_pages(group: KvGroup) -> GroupPages:
    tensor = group.tensors[0]
    _, heads, tokens, content = tensor.shape
    item, strides = tensor.element_size(), tensor.stride()
    if strides[3] != 1 or (strides[2] != content and tokens > 1):
        raise Unsupported(f"KV pages with strides {tuple(strides)} are not shared on a CPU yet")
    pages = _native.Pages(
        group.addresses,
        group.blocks,
        heads,
        group.kernel_blocks,
        tokens * content * item,
        strides[0] * item * group.kernel_blocks,
        strides[1] * item,
        strides[0] * item if group.kernel_blocks > 1 else 0,
    )
    form = "state" if geometry.is_state(group.spec) else tokens
    return GroupPages(pages, f"cpu:{_isa(group, tokens)}:{form}", heads)


def _isa(group: KvGroup, tokens: int) -> str:
    """The packing that vLLM's CPU attention chose: it leaves it on its layers; where it has not
    yet, by the same rule (`_get_attn_isa` in vLLM's v1/attention/backends/cpu_attn.py). MLA's is
    one of its own."""
    if group.kind == MLA:
        return "mla"
    chosen = getattr(group.module(group.layers[0]), "isa", None)
    if chosen:
        return str(chosen)
    import torch  # already there: the tensors are its

    bf16 = group.vllm_config.model_config.dtype == torch.bfloat16
    amx = bool(torch.cpu._is_amx_tile_supported())
    head_size = getattr(group.spec, "head_size", 128)  # a state has none
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
