"""vLLM's tensors and configuration as Pages and a layout, without vLLM."""

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from lmkv import _native
from lmkv.core import geometry
from lmkv.worker.cpu_pages import cpu_isa
from lmkv.worker.kv_group import Unsupported
from lmkv.worker.page_layout import PageLayout, page_layout, page_layouts

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


class SlidingWindowMLASpec(FullAttentionSpec):
    pass


class ChunkedLocalAttentionSpec(FullAttentionSpec):
    pass


class SinkFullAttentionSpec(FullAttentionSpec):
    pass


class CrossAttentionSpec(FullAttentionSpec):
    pass


class UniformTypeKVCacheSpecs(FullAttentionSpec):
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
        self.cache_config = SimpleNamespace(num_blocks=blocks, kv_cache_groups=[group])
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
    ("rank", "tp", "model_heads", "heads"),
    [(0, 2, 4, "0-1"), (1, 2, 4, "2-3"), (3, 2, 4, "2-3"), (3, 4, 8, "6-7")],
)
def test_a_ranks_heads(rank: int, tp: int, model_heads: int, heads: str) -> None:
    engine = Engine(tp=tp)
    engine.rank = rank
    assert f"kv_heads={model_heads}\n" in engine.layout().layout
    assert f"rank_heads={heads}\n" in engine.layout().layout


@pytest.mark.parametrize(("rank", "head"), [(0, 0), (1, 0), (2, 1), (3, 1)])
def test_ranks_beyond_the_heads_have_replicas(rank: int, head: int) -> None:
    """Two KV heads over four ranks; vLLM says `kv_tp_replicas` only of MLA."""
    engine = Engine(heads=1, tp=4)
    engine.vllm_config.model_config.get_total_num_kv_heads = lambda: 2
    engine.rank = rank
    assert f"rank_heads={head}-{head}\n" in engine.layout().layout


@pytest.mark.parametrize("rank", [0, 1])
def test_mla_is_one_latent_whole_on_every_rank(rank: int) -> None:
    engine = Engine(heads=1, block_tokens=16, head_size=288, isa=None, tp=2, blocks=20)
    spec = MLAAttentionSpec(**vars(engine.group.kv_cache_spec) | {"head_size": 576})
    engine.group.kv_cache_spec = spec
    engine.vllm_config.model_config.use_mla = True
    engine.vllm_config.model_config.get_total_num_kv_heads = lambda: 128  # of the queries' side
    engine.rank = rank
    # [L, B, N, H, C] as vLLM lays it out: of one head the same bytes, other strides.
    engine.caches = {n: c.view(20, 16, 1, 576).transpose(1, 2) for n, c in engine.caches.items()}
    layout = engine.layout()
    found = geometry.fields(layout.layout)
    assert {name: found[name] for name in ("kv_heads", "rank_heads", "segments", "head_size")} == {
        "kv_heads": "1",
        "rank_heads": "0-0",
        "segments": "3",
        "head_size": "576",
    }
    assert (found["page_format"], layout.blocks_per_chunk) == ("cpu:mla:16", 16)
    blocks = [*range(19, 3, -1)]
    assert gathered(layout, blocks) == b"".join(
        engine.bytes_of(layer, block, 0) for layer in layout.layers for block in blocks
    )


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
        (ChunkedLocalAttentionSpec, "KV of kind ChunkedLocalAttentionSpec"),
        (SinkFullAttentionSpec, "KV of kind SinkFullAttentionSpec"),
        (SlidingWindowMLASpec, "KV of kind SlidingWindowMLASpec"),
        (CrossAttentionSpec, "KV of kind CrossAttentionSpec"),
        (UniformTypeKVCacheSpecs, "KV of kind UniformTypeKVCacheSpecs"),
    ],
)
def test_kinds_that_are_not_shared_yet(kind: type, text: str) -> None:
    engine = Engine()
    engine.group.kv_cache_spec = kind(**vars(engine.group.kv_cache_spec))
    with pytest.raises(Unsupported, match=text):
        engine.layout()


def in_groups(engine: Engine, kind: type, **more: Any) -> None:
    """Layers 0, 2 .. see all and 1, 3 .. are of another kind: two groups of equal addresses."""
    names = list(engine.caches)
    for all_, window in zip(names[::2], names[1::2]):
        engine.caches[window] = engine.caches[all_]
    spec = vars(engine.group.kv_cache_spec)
    groups = [
        SimpleNamespace(layer_names=names[::2], kv_cache_spec=FullAttentionSpec(**spec)),
        SimpleNamespace(layer_names=names[1::2], kv_cache_spec=kind(**spec, **more)),
    ]
    engine.cache_config.kv_cache_groups = groups


def layouts(engine: Engine) -> list[PageLayout]:
    return page_layouts(
        engine.caches, engine.cache_config, engine.vllm_config, engine.rank, engine.chunk_tokens
    )


def test_groups_share_addresses_and_are_laid_out_each_for_itself() -> None:
    engine = Engine(layers=4)
    in_groups(engine, SlidingWindowSpec, sliding_window=300)
    full, window = layouts(engine)
    assert (full.window, window.window) == (0, 300)
    assert full.slot.segments == window.slot.segments == 4, "two layers of two heads"
    fields = [geometry.fields(each.layout) for each in (full, window)]
    assert [each["group"] for each in fields] == ["0", "1"]
    assert fields[1]["layers"] == "model.layers.1.self_attn.attn,model.layers.3.self_attn.attn"
    blocks = [4, 1]
    for each, layer in ((full, 0), (window, 1)):
        name = f"model.layers.{layer}.self_attn.attn"
        first = b"".join(engine.bytes_of(name, block, 0) for block in blocks)
        assert gathered(each, blocks).startswith(first)


def test_what_speculative_decoding_keeps_beside_the_window_is_loaded_too() -> None:
    engine = Engine(layers=2)
    in_groups(engine, SlidingWindowSpec, sliding_window=300, extra_retained_tokens=2)
    assert layouts(engine)[1].window == 302


@pytest.mark.parametrize("kind", [ChunkedLocalAttentionSpec, SinkFullAttentionSpec])
def test_one_group_that_is_not_shared_opts_the_engine_out(kind: type) -> None:
    engine = Engine(layers=2)
    in_groups(engine, kind)
    with pytest.raises(Unsupported, match=f"KV of kind {kind.__name__} is not shared yet"):
        layouts(engine)


def state_engine(**spec: Any) -> Engine:
    """Two layers of states: a page of 192 bytes in the first part of each block."""
    engine = Engine(layers=2, blocks=6, block_tokens=128)
    for name, cache in engine.caches.items():
        bytes_of_block = cache.view(torch.uint8).flatten(1)
        engine.caches[name] = bytes_of_block[:, :192].view(torch.int8).unflatten(1, (1, 1, 192))
    aligned = {"mamba_cache_mode": "align", "num_speculative_blocks": 0}
    engine.group.kv_cache_spec = MambaSpec(block_size=128, **aligned | spec)
    return engine


def test_a_slot_of_states_holds_the_last_block_of_its_chunk() -> None:
    engine = state_engine()
    layout = engine.layout()
    assert (layout.blocks_per_chunk, layout.window) == (1, 2)
    fields = geometry.fields(layout.layout)
    assert (fields["page_format"], fields["segment_bytes"]) == ("cpu:vec:state", "192")
    first = engine.caches["model.layers.0.self_attn.attn"][4].numpy().tobytes()
    assert gathered(layout, [4])[:192] == first


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({"mamba_cache_mode": "none"}, "MambaSpec with mamba_cache_mode = none is not shared"),
        ({"mamba_cache_mode": "all"}, "MambaSpec with mamba_cache_mode = all is not shared"),
        ({"num_speculative_blocks": 1}, "MambaSpec with num_speculative_blocks = 1"),
        ({"num_prefill_checkpoint_blocks": 1}, "MambaSpec with num_prefill_checkpoint_blocks = 1"),
    ],
)
def test_states_that_are_not_at_the_end_of_blocks(spec: dict[str, Any], text: str) -> None:
    with pytest.raises(Unsupported, match=text):
        state_engine(**spec).layout()


def test_where_vllm_keeps_all_of_a_window_it_is_no_window() -> None:
    """Its hybrid manager is off: one group of full attention, with a window's size."""
    engine = Engine()
    engine.group.kv_cache_spec.sliding_window = 300
    assert engine.layout().window == 0


def test_tensors_elsewhere_are_not_shared() -> None:
    engine = Engine()
    engine.caches = {name: cache.to("meta") for name, cache in engine.caches.items()}
    with pytest.raises(Unsupported, match="KV on meta is not shared, only on a CPU or by CUDA"):
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
