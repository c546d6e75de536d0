"""Every layout that vLLM's code makes of a CUDA backend's KV, as Pages and a layout."""

import ctypes
import itertools
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from lmkv import _native
from lmkv.core import geometry
from lmkv.worker import cuda_pages
from lmkv.worker.kv_group import Unsupported
from lmkv.worker.page_layout import PageLayout

from tests.cuda_engines import CudaEngine, OnCuda, backends, host_copier, kernel_blocks, torch

KEY = bytes(16)
SHARED = sorted({*cuda_pages.BESIDE, *cuda_pages.APART, *cuda_pages.LATENT})
ATTENTION_SIZES = [64, 80, 96, 112, 128, 192, 256, 36, 40, 72, 100, 132, 160]
MLA_SIZES = [576, 320, 292]
BLOCKS = [16, 32, 48, 64, 96, 128, 192, 256]
DTYPES = ["bfloat16", "fp8", "float32"]


def orders(backend: str) -> list[str]:
    from vllm.v1.kv_cache_layout import KVCacheLayout

    supported = backends()[backend].supported_kv_cache_layouts()
    return [order.name for order in supported or KVCacheLayout]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The arguments of the Pages that were made."""
    made: list[tuple[Any, ...]] = []
    real = _native.Pages
    monkeypatch.setattr(_native, "Pages", lambda *args: made.append(args) or real(*args))
    return made


def by_strides(engine: CudaEngine, args: tuple[Any, ...], blocks: list[int]) -> np.ndarray:
    """The payload of these kernel blocks by what Pages were told, with no copier."""
    layers, n, heads, tokens, run, of_block, of_head, of_token = args[:8]
    planes, of_plane = args[8:] if len(args) > 8 else (1, 0)
    memory, segments = engine.memory, []
    for address in layers:
        runs = np.lib.stride_tricks.as_strided(
            memory[address - memory.ctypes.data :],
            (heads, planes, n, tokens, run),
            (of_head, of_plane, of_block, of_token, 1),
        )
        assert runs[-1, -1, -1, -1, -1:].ctypes.data < memory.ctypes.data + memory.size
        segments.append(runs[:, :, blocks].reshape(heads, -1))
    return np.concatenate(segments)


def gathered(layout: PageLayout, blocks: list[int]) -> tuple[_native.Pool, np.ndarray]:
    pool = _native.Pool(layout.slot.granule_bytes, 1, 1)
    pool.add_segment()
    host_copier(layout).gather(pool.address, KEY, 1, kernel_blocks(layout, blocks))
    at = pool.address + layout.slot.payload_offset
    payload = np.frombuffer(ctypes.string_at(at, layout.slot.payload_bytes), np.uint8)
    return pool, payload.reshape(layout.slot.segments, -1)


def check(engine: CudaEngine, made: list[tuple[Any, ...]]) -> None:
    layout, args = engine.layout(2 * engine.spec.block_size), made[-1]
    blocks = [*range(engine.config.num_blocks)][::-1][: layout.blocks_per_chunk]
    expected = engine.payload(blocks)
    assert np.array_equal(by_strides(engine, args, kernel_blocks(layout, blocks)), expected)
    assert layout.slot.segments == len(expected)
    assert layout.slot.segment_bytes == -(-expected.shape[1] // 64) * 64
    numbers = [*args[0], *args[4:8], *args[9:]]
    if all(number % 16 == 0 for number in numbers):
        assert np.array_equal(gathered(layout, blocks)[1][:, : expected.shape[1]], expected)


def sizes(backend: str) -> list[dict[str, Any]]:
    if backend in cuda_pages.LATENT:
        return [{"head_size": size} for size in MLA_SIZES]
    if backend.endswith("DIFFKV"):
        return [{"head_size": 192, "head_size_v": 128}, {"head_size": 72, "head_size_v": 36}]
    return [{"head_size": size} for size in ATTENTION_SIZES]


def accepted(backend: str, order: str, block: int) -> bool:
    """Some blocks vLLM cannot split into the backend's kernel blocks, in some orders."""
    try:
        CudaEngine(backend, order, **sizes(backend)[0], layers=1, block_tokens=block)
    except ValueError as refused:
        if not re.search("cannot be split|No common block size", str(refused)):
            raise
        return False
    return True


@pytest.mark.parametrize("backend", SHARED)
def test_every_order_of_every_backend(backend: str, told: list[tuple[Any, ...]]) -> None:
    contents = list(itertools.product(sizes(backend), DTYPES))
    for n, order in enumerate(orders(backend)):
        blocks = itertools.cycle([block for block in BLOCKS if accepted(backend, order, block)])
        for size, dtype in contents[n % 2 :: 2]:  # each size and each type in every order
            more = {"cache_dtype": dtype, "block_tokens": next(blocks), "layers": 2}
            check(CudaEngine(backend, order, **size, **more), told)


@pytest.mark.parametrize("order", ["LBHNC", "LBNHC"])
@pytest.mark.parametrize("block", [64, 128, 256])
def test_every_kernel_block_size(order: str, block: int, told: list[tuple[Any, ...]]) -> None:
    for kernel in (16, 32, 64, 128):
        if kernel <= block:
            engine = CudaEngine("TRITON_ATTN", order, block_tokens=block, kernel_tokens=kernel)
            assert engine.layout().kernel_blocks == block // kernel
            check(engine, told)


@pytest.mark.parametrize(("heads", "layers"), [(1, 1), (1, 2), (8, 1), (3, 2)])
def test_few_and_many_heads(heads: int, layers: int, told: list[tuple[Any, ...]]) -> None:
    for order in orders("FLASH_ATTN"):
        check(CudaEngine("FLASH_ATTN", order, heads=heads, layers=layers), told)


def test_the_layout_says_tokens() -> None:
    layout = CudaEngine("FLASHINFER", "LBHNC", block_tokens=128, cache_dtype="fp8").layout()
    assert geometry.fields(layout.layout) == {
        "chunk_tokens": "256",
        "dtype": "uint8",
        "format_version": "1",
        "group": "0",
        "head_size": "64",
        "kv_heads": "2",
        "layers": "model.layers.{0-2}.self_attn.attn",
        "page_format": "tokens",
        "rank_heads": "0-1",
        "segment_bytes": str(256 * 2 * 64),
        "segments": "6",
    }
    assert (layout.slot.page_format, layout.device) == (1, "cuda:0")
    assert (layout.blocks_per_chunk, layout.block_tokens, layout.kernel_blocks) == (2, 128, 2)


# Engines that differ in all that they may differ in.
SHARING = [
    ("FLASH_ATTN", "LBNHC", 16, None),
    ("TRITON_ATTN", "LBHNC", 64, 16),
    ("FLASHINFER", "LBHNC", 128, None),
    ("FLASHINFER", "LBNHC", 256, 32),
    ("TRITON_ATTN", "LHBNC", 32, None),
    ("FLASH_ATTN", "BLHNC", 64, None),
    ("TRITON_FLASH_ATTN", "BLNHC", 128, None),
    ("TRITON_ATTN", "BHLNC", 16, None),
    ("B12X", "LBHNC", 64, None),
    ("B12X", "BLHNC", 128, None),
]
MLA_SHARING = [
    ("TRITON_MLA", "LBNHC", 16, None),
    ("FLASHMLA", "LBHNC", 128, None),
    ("CUTLASS_MLA", "BLHNC", 128, None),
    ("FLASHINFER_MLA", "LBNHC", 256, None),
    ("FLASH_ATTN_MLA", "BHLNC", 64, None),
]


def exchange(mine: CudaEngine, theirs: CudaEngine) -> None:
    """One chunk of mine is their chunk, in other blocks."""
    a, b = mine.layout(), theirs.layout()
    assert a.layout == b.layout and a.slot.fingerprint == b.slot.fingerprint
    source = [*range(mine.config.num_blocks)][::-1][: a.blocks_per_chunk]
    target = [*range(theirs.config.num_blocks)][:: theirs.config.num_blocks // b.blocks_per_chunk]
    target = target[: b.blocks_per_chunk]
    pool, _ = gathered(a, source)
    expected = theirs.kv.copy()
    expected[:, :, theirs.slots_of(target)] = mine.kv[:, :, mine.slots_of(source)]
    status = host_copier(b).scatter(pool.address, KEY, 1, kernel_blocks(b, target))
    assert status == _native.SlotStatus.GOOD
    assert np.array_equal(theirs.now(), expected), "those tokens, and no other"


def engine_of(case: tuple[str, str, int, int | None], seed: int, **more: Any) -> CudaEngine:
    backend, order, block, kernel = case
    return CudaEngine(backend, order, block_tokens=block, kernel_tokens=kernel, seed=seed, **more)


@pytest.mark.parametrize("case", SHARING, ids=str)
@pytest.mark.parametrize("dtype", ["bfloat16", "fp8"])
def test_engines_with_other_orders_and_blocks_share(case: Any, dtype: str) -> None:
    mine = engine_of(case, 99, cache_dtype=dtype)
    for n, other in enumerate(SHARING):
        exchange(mine, engine_of(other, n, cache_dtype=dtype))


@pytest.mark.parametrize("case", MLA_SHARING, ids=str)
def test_mla_engines_share(case: Any) -> None:
    mine = engine_of(case, 99, head_size=576)
    for n, other in enumerate(MLA_SHARING):
        exchange(mine, engine_of(other, n, head_size=576))


def test_k_and_v_of_unlike_sizes_share_by_their_sizes() -> None:
    sizes = {"head_size": 192, "head_size_v": 128}
    mine = CudaEngine("FLASH_ATTN_DIFFKV", "LBNHC", **sizes, block_tokens=16)
    theirs = CudaEngine("TRITON_ATTN_DIFFKV", "BLHNC", **sizes, block_tokens=64, seed=1)
    assert "page_format=cuda:k192+v128\n" in mine.layout().layout
    assert mine.layout().slot.page_format == 2
    exchange(mine, theirs)


def test_a_rank_of_another_tp_size_has_its_heads() -> None:
    engine = CudaEngine("FLASH_ATTN", heads=2)
    engine.vllm_config.parallel_config.tensor_parallel_size = 4
    engine.vllm_config.model_config.get_total_num_kv_heads = lambda: 8
    assert "rank_heads=4-5\n" in engine.layout(rank=2).layout
    whole = CudaEngine("TRITON_ATTN", "BLHNC", heads=8, block_tokens=64).layout().layout
    parts = [engine.layout(rank=rank).layout for rank in range(4)]
    assert geometry.compatible(parts, [whole]) is None


def test_what_differs_is_named() -> None:
    bf16, fp8, half = (CudaEngine("FLASH_ATTN", cache_dtype=d) for d in ("bfloat16", "fp8", "half"))
    for other, field in ((fp8, "dtype"), (half, "dtype")):
        assert geometry.compatible([bf16.layout().layout], [other.layout().layout]) == field


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("backend", "more", "text"),
    [
        ("TRITON_ATTN", {"cache_dtype": "int8_per_token_head"}, "INT8_PER_TOKEN_HEAD"),
        ("TRITON_ATTN", {"cache_dtype": "fp8_per_token_head"}, "FP8_PER_TOKEN_HEAD"),
        ("TRITON_ATTN", {"cache_dtype": "int4_per_token_head"}, "INT4_PER_TOKEN_HEAD"),
        ("TRITON_MLA", {"cache_dtype": "fp8_per_token_head"}, "FP8_PER_TOKEN_HEAD"),
        ("FLASHINFER", {"cache_dtype": "nvfp4"}, "quantized as NVFP4"),
        ("TURBOQUANT", {"cache_dtype": "turboquant_4bit_nc"}, "TURBOQUANT_4BIT_NC"),
        ("FLASHMLA_SPARSE", {"cache_dtype": "fp8_ds_mla", "state_content_bytes": 656}, "SPARSE"),
        ("FLASHMLA", {"cache_dtype": "fp8_ds_mla", "state_content_bytes": 656}, r"1, 64, 656\)"),
        ("FLASHMLA", {"tokens_per_state": 4}, r"1, 16, 576\) is not shared"),
        ("DEEPSEEK_V32_INDEXER", {"head_size": 132}, "backend DEEPSEEK_V32_INDEXER is not"),
        ("HPC_ATTN", {}, "backend HPC_ATTN is not shared"),
        ("TRITON_ATTN", {"head_size": 33}, "runs of 66 bytes is not shared, only in multiples"),
    ],
)
def test_contents_that_are_not_plain_tokens(backend: str, more: Any, text: str) -> None:
    size = {"head_size": 576} if backends()[backend].is_mla() else {}
    with pytest.raises(Unsupported, match=text):
        bare(backend, **size | more).layout()


def bare(backend: str, **more: Any) -> CudaEngine:
    """An engine whose contents need not be understood."""

    class Bare(CudaEngine):
        def fill(self, random: np.random.Generator) -> None: ...

    return Bare(backend, **{"block_tokens": 64} | more)


def test_layers_with_backends_that_keep_kv_alike_are_one_group() -> None:
    engine = CudaEngine("FLASH_ATTN")
    context = engine.vllm_config.compilation_config.static_forward_context
    layer = engine.layout().layers[1]
    for other, shares in (("TRITON_ATTN", True), ("HPC_ATTN", False)):
        module = SimpleNamespace(get_attn_backend=lambda other=other: backends()[other])
        context[layer] = module
        if shares:
            engine.layout()
        else:
            with pytest.raises(Unsupported, match="FLASH_ATTN, HPC_ATTN is not shared yet"):
                engine.layout()
    del context[layer]
    with pytest.raises(Unsupported, match="does not say which attention backend"):
        engine.layout()


def test_layers_on_two_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = CudaEngine("FLASH_ATTN")
    devices = iter([torch.device("cuda:0"), torch.device("cuda:1")] * 4)
    monkeypatch.setattr(OnCuda, "device", property(lambda self: next(devices)))
    with pytest.raises(Unsupported, match="differ in device"):
        engine.layout()


def test_rocm_is_not_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "7.0")
    with pytest.raises(Unsupported, match="ROCm"):
        CudaEngine("FLASH_ATTN").layout()


REFUSED = """
    HPC_ATTN TURBOQUANT ULTRAQUANT FLASHMLA_SPARSE FLASHINFER_MLA_SPARSE FLASHINFER_MLA_SPARSE_SM90
    FLASHINFER_MLA_SPARSE_SM120 FLASH_ATTN_MLA_SPARSE FLASHMLA_SPARSE_DSV4 FLASHMLA_SPARSE_DSV41
    FLASHINFER_MLA_SPARSE_DSV4 FLASHINFER_MLA_SPARSE_DSV41 FLASHMLA_MEGA_ATTN_DSV41
    MINIMAX_M3_SPARSE CUTLASS_MSA TRITON_MSA
"""
ELSEWHERE = "ROCM XPU CPU AMX TORCH_SDPA NO_ATTENTION CUSTOM"  # no CUDA, or no KV


def test_every_backend_of_vllm_is_known() -> None:
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    known = {*cuda_pages.BESIDE, *cuda_pages.APART, *cuda_pages.LATENT, *REFUSED.split()}
    found = {
        name
        for name in AttentionBackendEnum.__members__
        if not name.startswith(tuple(ELSEWHERE.split()))
    }
    assert found == known


# ---------------------------------------------------------------- states


class Hybrid(CudaEngine):
    """A group of full attention and one of states, at the same addresses."""

    def __init__(self, shapes: Any = ((3, 64), (2, 64, 32)), **more: Any) -> None:
        from vllm.v1 import kv_cache_interface as kv
        from vllm.v1.attention.backends.registry import MambaAttentionBackendEnum

        self.backend, self.order, self.mla = backends()["FLASH_ATTN"], "LBNHC", False
        attention = kv.FullAttentionSpec(
            block_size=64, num_kv_heads=2, head_size=64, dtype=torch.bfloat16
        )
        states = kv.MambaSpec(
            block_size=64,
            shapes=shapes,
            dtypes=(torch.bfloat16, torch.float32),
            page_size_padded=attention.page_size_bytes,
            mamba_type=MambaAttentionBackendEnum.GDN_ATTN,
            mamba_cache_mode="align",
            **more,
        )
        self.spec = attention
        names = [f"model.layers.{n}.attn" for n in range(4)]
        groups = [
            kv.KVCacheGroupSpec(names[:2], attention),
            kv.KVCacheGroupSpec(names[2:], states),
        ]
        self.setup(groups, 9)


def test_a_slot_of_states_holds_the_last_block_of_its_chunk() -> None:
    engine = Hybrid()
    tokens, states = engine.layout(group=0), engine.layout(group=1)
    fields = geometry.fields(states.layout)
    assert fields["page_format"] == "cuda:gdn_attn:3x64-bfloat16,2x64x32-float32"
    assert (states.blocks_per_chunk, states.window, tokens.blocks_per_chunk) == (1, 2, 4)
    used = 3 * 64 * 2 + 2 * 64 * 32 * 4
    assert fields["segment_bytes"] == str(used)
    engine.memory[:] = np.random.default_rng(2).integers(0, 256, engine.memory.size, np.uint8)
    _, payload = gathered(states, [7])
    for layer, segment in zip(states.layers, payload):
        assert np.array_equal(segment, engine.caches[layer][7, 0, 0].numpy().view(np.uint8))


def test_states_that_are_not_whole_in_their_page() -> None:
    engine = Hybrid()
    engine.vllm_config.cache_config.use_replayssm = True
    with pytest.raises(Unsupported, match="MambaSpec with use_replayssm is not shared"):
        engine.layout(group=1)
    with pytest.raises(Unsupported, match="num_speculative_blocks = 1"):
        Hybrid(num_speculative_blocks=1).layout(group=1)
    with pytest.raises(Unsupported, match="in runs of 16390 bytes"):
        Hybrid(shapes=((3, 1), (2, 64, 32))).layout(group=1)
