"""More tiny models with real, fixed weights, beside models.make_llama: MLA, images, adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.vllm.models import make_llama

DEEPSEEK: dict[str, Any] = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    # vLLM's CPU decode kernel knows these sizes alone.
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 64,
    "v_head_dim": 64,
    "q_lora_rank": None,
    # All layers are dense.
    "first_k_dense_replace": 2,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "moe_layer_freq": 1,
    "vocab_size": 512,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    # Yarn, as DeepSeek's own: behind vLLM's plain rope on a CPU, a prompt in pieces has other KV
    # than the same one as a whole, and neither is what transformers computes.
    "rope_theta": 10000.0,
    "rope_scaling": {
        "type": "yarn",
        "factor": 4,
        "original_max_position_embeddings": 1024,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
    "dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}


def make_deepseek(folder: Path, seed: int = 0) -> Path:
    """DeepSeek-V2 without experts: MLA, one latent of 512 + 64 a token."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(DEEPSEEK))
    random = torch.Generator().manual_seed(seed)

    def draw(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=random) * columns**-0.5

    hidden, inner, vocab = (DEEPSEEK[n] for n in ("hidden_size", "intermediate_size", "vocab_size"))
    heads, latent, rope = (
        DEEPSEEK[n] for n in ("num_attention_heads", "kv_lora_rank", "qk_rope_head_dim")
    )
    nope, value = DEEPSEEK["qk_nope_head_dim"], DEEPSEEK["v_head_dim"]
    weights = {
        "model.embed_tokens.weight": draw(vocab, hidden) * hidden**0.5,
        "lm_head.weight": draw(vocab, hidden),
        "model.norm.weight": torch.ones(hidden),
    }
    for layer in range(DEEPSEEK["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        weights |= {
            f"{at}.self_attn.q_proj.weight": draw(heads * (nope + rope), hidden) * 3,
            f"{at}.self_attn.kv_a_proj_with_mqa.weight": draw(latent + rope, hidden),
            f"{at}.self_attn.kv_a_layernorm.weight": torch.ones(latent),
            f"{at}.self_attn.kv_b_proj.weight": draw(heads * (nope + value), latent),
            f"{at}.self_attn.o_proj.weight": draw(hidden, heads * value),
            f"{at}.mlp.gate_proj.weight": draw(inner, hidden),
            f"{at}.mlp.up_proj.weight": draw(inner, hidden),
            f"{at}.mlp.down_proj.weight": draw(hidden, inner),
            f"{at}.input_layernorm.weight": torch.ones(hidden),
            f"{at}.post_attention_layernorm.weight": torch.ones(hidden),
        }
    save_file(weights, folder / "model.safetensors")
    return folder


PICTURE_TOKENS = 16  # before the words of a prompt


def make_blip(folder: Path, seed: int = 0) -> Path:
    """BLIP-2: an OPT that sees pictures, with a tokenizer of single letters. (LLaVA, Qwen2-VL and
    most others want torchvision in vLLM.)"""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2Processor,
        BlipImageProcessor,
        PreTrainedTokenizerFast,
    )

    torch.manual_seed(seed)
    small = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = Blip2Config(
        vision_config=small | {"image_size": 56, "patch_size": 14},
        qformer_config=small | {"encoder_hidden_size": 64, "vocab_size": 512},
        text_config={
            "model_type": "opt",
            "hidden_size": 256,
            "word_embed_proj_dim": 256,
            "ffn_dim": 512,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": 512,
            "max_position_embeddings": 2048,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
        num_query_tokens=PICTURE_TOKENS,
        image_token_index=511,
    )
    config.dtype = torch.float32
    model = Blip2ForConditionalGeneration(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:  # wide, as make_llama's
                weight.normal_(std=weight.shape[1] ** -0.5 * (3 if "q_proj" in name else 1))
    model.save_pretrained(folder)
    words = {chr(256 + n): n for n in range(511)} | {"<image>": 511}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token=chr(256))),
        additional_special_tokens=["<image>"],
        pad_token=chr(256),
    )
    pictures = BlipImageProcessor(size={"height": 56, "width": 56})
    Blip2Processor(pictures, tokenizer, num_query_tokens=PICTURE_TOKENS).save_pretrained(folder)
    return folder


def make_adapter(folder: Path, seed: int = 0, layers: int = 2) -> Path:
    """A LoRA for make_llama's usual sizes that changes keys and values."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    config = {
        "peft_type": "LORA",
        "r": 8,
        "lora_alpha": 16,
        "bias": "none",
        "base_model_name_or_path": "",
        "target_modules": ["k_proj", "v_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    random = torch.Generator().manual_seed(seed)
    weights = {}
    for layer in range(layers):
        for name in ("k_proj", "v_proj"):
            at = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            weights[f"{at}.lora_A.weight"] = torch.randn(8, 256, generator=random) / 16
            weights[f"{at}.lora_B.weight"] = torch.randn(128, 8, generator=random) / 3
    save_file(weights, folder / "adapter_model.safetensors")
    return folder


def make_llama_int8(folder: Path, dynamic_kv: bool = False, **changes: Any) -> Path:
    """make_llama's in the compressed-tensors format: int8 weights, and an fp8 KV cache with its
    scales in the checkpoint; with `dynamic_kv` they are to be found as tokens come."""
    import torch
    from safetensors.torch import load_file, save_file

    int8 = {"num_bits": 8, "type": "int", "symmetric": True}
    fp8 = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor"}
    make_llama(
        folder,
        quantization_config={
            "quant_method": "compressed-tensors",
            "format": "int-quantized",
            "quantization_status": "compressed",
            "ignore": ["lm_head"],
            "kv_cache_scheme": fp8 | {"dynamic": dynamic_kv},
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": int8 | {"strategy": "channel", "dynamic": False},
                    "input_activations": int8 | {"strategy": "token", "dynamic": True},
                }
            },
        },
        **changes,
    )
    weights = load_file(folder / "model.safetensors")
    for name in [n for n in weights if "_proj.weight" in n]:
        scale = weights[name].abs().amax(1, keepdim=True) / 127
        weights[name] = (weights[name] / scale).round().to(torch.int8)
        weights[f"{name}_scale"] = scale
        if "k_proj" in name or "v_proj" in name:
            at = name.replace("k_proj.weight", "k_scale").replace("v_proj.weight", "v_scale")
            weights[at] = torch.tensor([0.03])
    save_file(weights, folder / "model.safetensors")
    return folder
