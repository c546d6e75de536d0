"""vLLM's tensors and configuration as Pages and a layout, without vLLM."""

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from lmkv import _native
from lmkv.core import geometry
from lmkv.worker.page_layout import PageLayout, Unsupported, cpu_isa, page_layout

torch = pytest.importorskip("torch", reason="page layouts are read from torch tensors")

KEY = bytes(16)


class FullAttentionSpec(SimpleNamespace):
    """Named as vLLM's: kinds are told apart by their class names."""


class MLAAttentionSpec(FullAttentionSpec):
    pass


class MambaSpec(FullAttentionSpec):
    pass


class SlidingWindowSpec(FullAttentionSpec):
    pass


class Engine:
    """What a CPU worker registers: layers in one allocation, 64 bytes off a page boundary."""

    def __init__(
        self,
        layers: int = 3,
        blocks: int = 6,
        heads: int = 2,
        block_tokens: int = 128,
        head_size: int = 64,
        dtype: Any = torch.bfloat16,
        kernel_blocks: int = 1,
        isa: str | None = "vec",
        tp: int = 1,
    ) -> None:
        self.rank, self.chunk_tokens = 0, 256
        shape = (blocks * kernel_blocks, heads, block_tokens // kernel_blocks, 2 * head_size)
        size = int(np.prod(shape)) * dtype.itemsize
        self.memory = torch.from_numpy(
            np.random.default_rng(1).integers(0, 256, layers * size + 4160, np.uint8)
        )
        start = -self.memory.data_ptr() % 4096 + 64
        names = [f"model.layers.{n}.self_attn.attn" for n in range(layers)]
        self.caches = {
            name: self.memory[start + n * size : start + (n + 1) * size].view(dtype).view(shape)
            for n, name in enumerate(names)
        }
        spec = FullAttentionSpec(block_size=block_tokens, num_kv_heads=heads, head_size=head_size)
        group = SimpleNamespace(layer_names=names, kv_cache_spec=spec, is_eagle_group=False)
        self.cache_config = SimpleNamespace(
            num_blocks=blocks, kv_cache_groups=[group], kv_tp_replicas=1
        )
        self.vllm_config = SimpleNamespace(
            model_config=SimpleNamespace(
                dtype=dtype,
                get_total_num_kv_heads=lambda: heads * tp,
                hf_text_config=SimpleNamespace(num_hidden_layers=layers),
            ),
            parallel_config=SimpleNamespace(tensor_parallel_size=tp),
            compilation_config=SimpleNamespace(
                static_forward_context={name: SimpleNamespace(isa=isa) for name in names}
            ),
            speculative_config=None,
        )

    @property
    def group(self) -> Any:
        return self.cache_config.kv_cache_groups[0]

    def layout(self) -> PageLayout:
        return page_layout(
            self.caches, self.cache_config, self.vllm_config, self.rank, self.chunk_tokens
        )

    def bytes_of(self, layer: str, block: int, head: int) -> bytes:
        """The (block, head) page, kernel blocks in order."""
        cache = self.caches[layer].view(torch.uint8)
        cache = cache.unflatten(0, (self.cache_config.num_blocks, -1))
        return cache[block, :, head].contiguous().numpy().tobytes()


def gathered(layout: PageLayout, blocks: list[int]) -> bytes:
    pool = _native.Pool(layout.slot.granule_bytes, 1, 1)
    pool.add_segment()
    layout.copier().gather(pool.address, KEY, 1, blocks)
    return ctypes.string_at(pool.address + layout.slot.payload_offset, layout.slot.payload_bytes)


@pytest.mark.parametrize("head_size", [64, 128])
def test_gqa_on_a_cpu(head_size: int) -> None:
    engine = Engine(head_size=head_size)
    layout = engine.layout()
    assert geometry.fields(layout.layout) == {
        "chunk_tokens": "256",
        "dtype": "bfloat16",
        "format_version": "1",
        "group": "0",
        "head_size": str(head_size),
        "kv_heads": "2",
        "layers": "model.layers.{0-2}.self_attn.attn",
        "page_format": "cpu:vec:128",
        "rank_heads": "0-1",
        "segment_bytes": str(256 * 2 * head_size * 2),
        "segments": "6",
    }
    assert (layout.blocks_per_chunk, layout.block_tokens) == (2, 128)
    assert layout.slot.page_format == 2
    assert layout.slot.fingerprint == geometry.fingerprint(layout.layout)
    assert gathered(layout, [4, 1]) == b"".join(
        engine.bytes_of(layer, block, head)
        for layer in layout.layers
        for head in (0, 1)
        for block in (4, 1)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8], ids=str)
def test_other_types_and_sizes(dtype: Any) -> None:
    engine = Engine(dtype=dtype, block_tokens=32)
    layout = engine.layout()
    assert layout.blocks_per_chunk == 8
    assert "page_format=cpu:vec:32\n" in layout.layout
    blocks = [5, 0, 1, 2, 3, 4, 5, 0]
    assert gathered(layout, blocks)[: engine.caches[layout.layers[0]][0, 0].nbytes] == (
        engine.bytes_of(layout.layers[0], 5, 0)
    )


def test_kernel_blocks_are_grouped() -> None:
    """vLLM's blocks of 128 tokens in four kernel blocks: dimension 0 counts the latter."""
    engine = Engine(kernel_blocks=4)
    layout = engine.layout()
    assert "page_format=cpu:vec:32\n" in layout.layout
    assert layout.blocks_per_chunk == 2
    assert layout.pages.blocks == 6
    assert gathered(layout, [4, 1]) == b"".join(
        engine.bytes_of(layer, block, head)
        for layer in layout.layers
        for head in (0, 1)
        for block in (4, 1)
    )


def test_layers_go_by_number() -> None:
    engine = Engine(layers=12)
    engine.group.layer_names = sorted(engine.group.layer_names)  # .10. before .2.
    assert "layers=model.layers.{0-11}.self_attn.attn\n" in engine.layout().layout


def test_draft_layers_are_no_part_of_it() -> None:
    engine = Engine(layers=3)
    draft = "draft_model.model.layers.0.self_attn.attn"
    engine.caches[draft] = engine.caches["model.layers.2.self_attn.attn"].clone()
    engine.group.layer_names = [*engine.group.layer_names, draft]
    assert engine.layout().slot.segments == 6
    engine.vllm_config.speculative_config = object()  # MTP: layers beyond the model's own
    engine.vllm_config.model_config.hf_text_config.num_hidden_layers = 2
    assert engine.layout().slot.segments == 4


def test_layers_that_use_anothers_kv_are_stored_once() -> None:
    engine = Engine(layers=3)
    engine.caches["model.layers.3.self_attn.attn"] = engine.caches["model.layers.1.self_attn.attn"]
    engine.group.layer_names = [*engine.group.layer_names, "model.layers.3.self_attn.attn"]
    assert engine.layout().slot.segments == 6


@pytest.mark.parametrize(
    ("rank", "tp", "replicas", "heads"),
    [(0, 2, 1, "0-1"), (1, 2, 1, "2-3"), (3, 2, 1, "2-3"), (1, 2, 2, "0-1"), (3, 4, 2, "2-3")],
)
def test_a_ranks_heads(rank: int, tp: int, replicas: int, heads: str) -> None:
    engine = Engine(tp=tp)
    engine.rank = rank
    engine.cache_config.kv_tp_replicas = replicas
    assert f"rank_heads={heads}\n" in engine.layout().layout


def test_engines_with_other_packings_are_incompatible_by_name() -> None:
    vec, amx, small = Engine(), Engine(isa="amx"), Engine(block_tokens=32)
    for other in (amx, small):
        a, b = vec.layout(), other.layout()
        assert geometry.compatible([a.layout], [b.layout]) == "page_format"
        pool = _native.Pool(a.slot.granule_bytes, 1, 1)
        pool.add_segment()
        a.copier().gather(pool.address, KEY, 1, [0, 1])
        before = other.memory.clone()
        blocks = list(range(b.blocks_per_chunk)) if b.blocks_per_chunk < 7 else [0] * 8
        status = b.copier().scatter(pool.address, KEY, 1, blocks)
        assert status == _native.SlotStatus.INCOMPATIBLE  # never wrong, even if it is tried
        assert torch.equal(other.memory, before)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (MLAAttentionSpec, "KV of kind MLAAttentionSpec is not shared yet"),
        (MambaSpec, "KV of kind MambaSpec"),
        (SlidingWindowSpec, "KV of kind SlidingWindowSpec"),
    ],
)
def test_kinds_that_are_not_shared_yet(kind: type, text: str) -> None:
    engine = Engine()
    engine.group.kv_cache_spec = kind(**vars(engine.group.kv_cache_spec))
    with pytest.raises(Unsupported, match=text):
        engine.layout()


def test_several_groups_are_not_shared_yet() -> None:
    engine = Engine()
    window = SimpleNamespace(kv_cache_spec=SlidingWindowSpec())
    engine.cache_config.kv_cache_groups.append(window)
    with pytest.raises(Unsupported, match=r"2 KV cache groups \(FullAttentionSpec, SlidingWindow"):
        engine.layout()


def test_device_tensors_are_not_shared_yet() -> None:
    engine = Engine()
    engine.caches = {name: cache.to("meta") for name, cache in engine.caches.items()}
    with pytest.raises(Unsupported, match="KV on meta is not shared yet, only on a CPU"):
        engine.layout()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda cache: cache[:, :, :64], "differ in shape"),
        (lambda cache: cache.view(torch.float16), "differ in dtype"),
        (lambda cache: cache.flatten(2), "3 dimensions"),
    ],
)
def test_layers_that_differ(change: Any, text: str) -> None:
    engine = Engine()
    name = "model.layers.1.self_attn.attn"
    engine.caches[name] = change(engine.caches[name])
    with pytest.raises(Unsupported, match=text):
        engine.layout()


def test_pages_that_are_not_whole() -> None:
    engine = Engine()
    engine.caches = {name: cache.transpose(2, 3) for name, cache in engine.caches.items()}
    with pytest.raises(Unsupported, match="strides"):
        engine.layout()


def test_kernel_blocks_that_make_no_blocks() -> None:
    engine = Engine()
    engine.cache_config.num_blocks = 4
    with pytest.raises(Unsupported, match="6 kernel blocks do not make 4 blocks"):
        engine.layout()


def test_nothing_registered() -> None:
    engine = Engine()
    engine.caches = {}
    with pytest.raises(Unsupported, match="vLLM registered no KV cache"):
        engine.layout()


def test_a_chunk_is_whole_blocks() -> None:
    engine = Engine()
    engine.chunk_tokens = 192
    with pytest.raises(ValueError, match=r"chunk_tokens: 192 is not a multiple of .* 128"):
        engine.layout()


def test_the_isa_is_computed_where_vllm_has_not_left_it() -> None:
    engine = Engine(isa=None, head_size=80)
    assert "page_format=cpu:vec16:128\n" in engine.layout().layout


@pytest.mark.parametrize("head_size", [64, 80, 112, 128])
@pytest.mark.parametrize("block_size", [16, 32, 128, 256])
@pytest.mark.parametrize("amx", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_vllms_rule(
    head_size: int, block_size: int, amx: bool, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu_attn = pytest.importorskip(
        "vllm.v1.attention.backends.cpu_attn", reason="compares with vLLM's own rule"
    )
    import platform

    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    theirs = cpu_attn._get_attn_isa(dtype, block_size, head_size, "auto")
    ours = cpu_isa(head_size, block_size, dtype == torch.bfloat16, amx, platform.machine())
    assert ours == theirs
