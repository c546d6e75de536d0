"""Namespaces of real vLLM configurations, and extras of real requests."""

import json
import shutil
from pathlib import Path

import pytest

pytestmark = pytest.mark.vllm
pytest.importorskip("vllm", reason="vllm is not installed")

from lmkv.agent.namespace import group_spec, namespace  # noqa: E402
from lmkv.core import extras  # noqa: E402
from lmkv.core.extras import AdapterHashes, RequestExtras  # noqa: E402

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 512,
    "max_position_embeddings": 4096,
    "torch_dtype": "bfloat16",
}


def folder_with(path, weight=0.5):
    import torch
    from safetensors.torch import save_file

    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    save_file({"model.norm.weight": torch.full((128,), weight)}, path / "model.safetensors")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return folder_with(tmp_path_factory.mktemp("models") / "one")


def text_of(folder, **arguments):
    from vllm.engine.arg_utils import EngineArgs

    plain = {"model": str(folder), "skip_tokenizer_init": True, "max_model_len": 2048}
    config = EngineArgs(**(plain | arguments)).create_engine_config()
    return namespace(config, 256)


def test_a_copy_shares(folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert text_of(folder) == text_of(copy)
    assert text_of(folder) == text_of(copy, max_model_len=1024, block_size=128)


def test_a_weight_a_dtype_and_a_rope_scaling_set_apart(folder, tmp_path):
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    texts = [
        text_of(folder),
        text_of(folder_with(tmp_path / "other", weight=0.25)),
        text_of(folder, dtype="float32"),
        text_of(folder, hf_overrides={"rope_parameters": rope}),
        text_of(folder, kv_cache_dtype="fp8"),
        text_of(folder, load_format="dummy"),
        text_of(folder, load_format="dummy", seed=1),
    ]
    assert len(set(texts)) == len(texts)


def test_a_real_group(folder):
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheGroupSpec

    spec = FullAttentionSpec(block_size=128, num_kv_heads=1, head_size=32, dtype=torch.bfloat16)
    group = KVCacheGroupSpec([f"model.layers.{n}.self_attn.attn" for n in (0, 1)], spec)
    assert group_spec(group, kv_heads=2) == (
        "head_size=32\nkind=full\nkv_heads=2\nlayers=0-1\nwindow=0\n"
    )


def request_extras(request, chunk_tokens):
    return extras.request_extras(request, chunk_tokens, AdapterHashes(), content_ids=True)


def real_request(**fields):
    from vllm.sampling_params import SamplingParams
    from vllm.v1.request import Request

    plain = {
        "prompt_token_ids": [1, 2, 3],
        "sampling_params": SamplingParams(),
        "pooling_params": None,
    }
    return Request("r", **(plain | fields))


def test_a_real_request_is_known_to_the_last_field():
    for request in (real_request(), real_request(resumable=True, session_id="s", priority=3)):
        assert request_extras(request, 256) == RequestExtras()
    salted = request_extras(real_request(cache_salt="a"), 256)
    assert salted.common == b"\x01\x01\0\0\0a"


def test_real_embeddings_and_a_real_image():
    import torch
    from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange

    rows = torch.arange(12, dtype=torch.bfloat16).reshape(6, 2)
    embedded = real_request(prompt_token_ids=None, prompt_embeds=rows)
    again = real_request(prompt_token_ids=None, prompt_embeds=rows.clone())
    other = real_request(prompt_token_ids=None, prompt_embeds=rows + 1)
    read = [request_extras(r, 4).chunks for r in (embedded, again, other)]
    assert read[0] == read[1]
    assert set(read[0]) == {0, 1}
    assert read[0][0] != read[2][0]
    assert read[0][1] != read[2][1]

    image = MultiModalFeatureSpec(
        data=None, modality="image", identifier="c" * 64, mm_position=PlaceholderRange(1, 2)
    )
    assert set(request_extras(real_request(mm_features=[image]), 4).chunks) == {0}
