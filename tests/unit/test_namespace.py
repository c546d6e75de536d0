"""Namespace and group spec: what keeps two engines together, what sets them apart."""

import shutil
from types import SimpleNamespace

import pytest
from lmkv.agent.namespace import (
    Unshareable,
    config_hash,
    content_ids,
    group_spec,
    layer_numbers,
    namespace,
)
from test_identity import write_shard


class Config:
    """A transformers config, as far as the namespace asks."""

    def __init__(self, **fields):
        plain = {
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": 64,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            "_name_or_path": "/models/one",
            "transformers_version": "5.0",
            "dtype": "bfloat16",
        }
        self.__dict__.update(plain | fields)

    def to_dict(self):
        return dict(self.__dict__)


@pytest.fixture
def folder(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    write_shard(model / "model.safetensors", {"w": bytes(1000)})
    return model


def engine(
    folder, load="auto", dtype="torch.bfloat16", kv="auto", tp=1, seed=0, config=None, **model
):
    plain = {
        "model": str(folder),
        "dtype": dtype,
        "hf_config": config or Config(),
        "quantization": None,
        "revision": None,
        "max_model_len": 2048,
        "seed": seed,
    }
    return SimpleNamespace(
        model_config=SimpleNamespace(**(plain | model)),
        cache_config=SimpleNamespace(cache_dtype=kv),
        load_config=SimpleNamespace(load_format=load, download_dir=None),
        parallel_config=SimpleNamespace(tensor_parallel_size=tp),
        device_config=SimpleNamespace(device_type="cpu"),
    )


def test_the_text_is_lines(folder):
    text = namespace(engine(folder), 256)
    fields = dict(line.split("=", 1) for line in text.splitlines())
    assert sorted(fields) == [
        *("architecture", "chunk_tokens", "config", "dtype", "format"),
        *("kv_dtype", "quantization", "weights"),
    ]
    assert fields["architecture"] == "LlamaForCausalLM"
    assert fields["kv_dtype"] == "bfloat16"
    assert text.splitlines() == sorted(text.splitlines())
    assert text.endswith("\n")


def test_the_same_model_in_another_folder_and_another_tp_size_share(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    moved = Config(_name_or_path="/elsewhere", transformers_version="5.1")
    assert namespace(engine(folder), 256) == namespace(engine(copy, config=moved, tp=2), 256)


def test_what_changes_kv_sets_apart(folder):
    scaled = Config(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0})
    texts = [
        namespace(engine(folder), 256),
        namespace(engine(folder), 512),
        namespace(engine(folder, dtype="torch.float16"), 256),
        namespace(engine(folder, kv="fp8"), 256),
        namespace(engine(folder, config=scaled), 256),
        namespace(engine(folder, config=Config(hidden_size=65)), 256),
        namespace(engine(folder, config=Config(text_config=Config(layers=3))), 256),
        namespace(engine(folder, config=Config(text_config=Config(layers=4))), 256),
        namespace(engine(folder, quantization="fp8"), 256),
        namespace(engine(folder, model_impl="transformers"), 256),
        namespace(engine(folder), 256, weights_version="step 7"),
        namespace(engine(folder), 256, isolation_word="8f00"),
    ]
    write_shard(folder / "model.safetensors", {"w": bytes(999) + b"\x01"})
    texts.append(namespace(engine(folder), 256))
    assert len(set(texts)) == len(texts)


def test_the_longest_prompt_counts_only_where_the_rope_depends_on_it(folder):
    long = Config(rope_parameters={"rope_type": "longrope"})
    short, longer = (namespace(engine(folder, max_model_len=n), 256) for n in (2048, 8192))
    assert short == longer
    short, longer = (
        namespace(engine(folder, config=long, max_model_len=n), 256) for n in (2048, 8192)
    )
    assert short != longer


def test_dummy_weights_are_their_seed_and_their_cut(folder):
    texts = {
        namespace(engine("no/folder", load="dummy", seed=seed, tp=tp), 256)
        for seed, tp in [(0, 1), (1, 1), (0, 2)]
    }
    assert len(texts) == 3


@pytest.mark.parametrize("kv", ["fp8_per_token_head", "nvfp4", "turboquant_4bit_nc"])
def test_dynamic_scales_are_not_shared(folder, kv):
    with pytest.raises(Unshareable, match=f"'{kv}' has scales that depend on the tokens"):
        namespace(engine(folder, kv=kv), 256)


def test_a_checkpoints_own_kv_scheme_is_told_from_the_models_dtype(folder):
    static = Config(quantization_config={"kv_cache_scheme": {"num_bits": 8, "dynamic": False}})
    assert "kv_dtype=checkpoint\n" in namespace(engine(folder, config=static), 256)
    dynamic = Config(quantization_config={"kv_cache_scheme": {"dynamic": True}})
    with pytest.raises(Unshareable, match="dynamic scales"):
        namespace(engine(folder, config=dynamic), 256)


def test_weights_that_cannot_be_read_want_a_name(folder, tmp_path):
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "pytorch_model.bin").write_bytes(b"x")
    for config in (engine(pickled), engine(folder, load="tensorizer"), engine("/no/such.gguf")):
        with pytest.raises(Unshareable, match="name them with weights_version"):
            namespace(config, 256)
        text = namespace(config, 256, weights_version="v1")
        assert "weights=named\n" in text
        assert "weights_version=v1\n" in text


def test_a_hub_name_is_looked_up_in_the_local_cache_only(folder, tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    config = engine("some/model")
    config.load_config.download_dir = str(tmp_path / "cache")
    with pytest.raises(Unshareable, match="some/model: not in the hub's local cache"):
        namespace(config, 256)
    commit = "0" * 40
    cached = tmp_path / "cache" / "models--some--model"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(commit)
    shutil.copytree(folder, cached / "snapshots" / commit)
    assert namespace(config, 256) == namespace(engine(folder), 256)


def test_a_config_that_has_no_plain_text_is_refused():
    with pytest.raises(Unshareable, match=r"config\.hook is a object, which has no plain text"):
        config_hash(Config(hook=object()))
    assert config_hash(Config(a={"x": 1, "y": 2})) == config_hash(Config(a={"y": 2, "x": 1}))


@pytest.mark.parametrize(
    ("prefix_caching", "processor_cache", "content"),
    [(True, 0, True), (False, 4, True), (False, 0, False), (False, None, True)],
)
def test_multimodal_names_are_content_only_where_vllm_hashes(
    prefix_caching, processor_cache, content
):
    config = engine("folder")
    config.cache_config.enable_prefix_caching = prefix_caching
    if processor_cache is not None:  # a multimodal model
        cache = SimpleNamespace(mm_processor_cache_gb=processor_cache)
        config.model_config.multimodal_config = cache
    assert content_ids(config) == content


class FullAttentionSpec(SimpleNamespace):
    pass


class SlidingWindowSpec(SimpleNamespace):
    pass


def names(*numbers):
    return [f"model.layers.{n}.self_attn.attn" for n in numbers]


def test_a_group_is_its_kind_layers_heads_and_window():
    full = FullAttentionSpec(head_size=64, head_size_v=64, num_kv_heads=2, sliding_window=None)
    group = SimpleNamespace(kv_cache_spec=full, layer_names=names(0, 1, 2, 5))
    assert group_spec(group, kv_heads=4) == (
        "head_size=64\nkind=full\nkv_heads=4\nlayers=0-2,5\nwindow=0\n"
    )
    window = SlidingWindowSpec(head_size=64, head_size_v=32, sliding_window=512)
    group = SimpleNamespace(kv_cache_spec=window, layer_names=names(3, 4))
    assert group_spec(group, kv_heads=4) == (
        "head_size=64/32\nkind=window\nkv_heads=4\nlayers=3-4\nwindow=512\n"
    )
    both = SimpleNamespace(kv_cache_specs={"a": full, "b": full})
    group = SimpleNamespace(kv_cache_spec=both, layer_names=names(0, 1))
    assert "kind=full\n" in group_spec(group, kv_heads=4)
    assert "layers=0\n" in group_spec(group, kv_heads=4, layers=names(0))


def test_layers_that_numbers_do_not_tell_apart_keep_their_names():
    same = ["decoder.layers.0.self_attn", "decoder.layers.0.cross_attn"]
    assert layer_numbers(same) == "decoder.layers.0.cross_attn,decoder.layers.0.self_attn"
