"""Tiny models with real, fixed weights: folders that any engine loads in a moment.

Weights are drawn wide (vLLM's own dummy weights are so small that every prompt gets the same
tokens), in fp32, so that equal KV gives equal tokens.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 512,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}


def make_llama(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A Llama with GQA: config.json and model.safetensors; `changes` go into the config."""
    import torch
    from safetensors.torch import save_file

    config = LLAMA | changes
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    random = torch.Generator().manual_seed(seed)

    def draw(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=random) * columns**-0.5

    hidden, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    query, kv = head * config["num_attention_heads"], head * config["num_key_value_heads"]
    weights = {
        "model.embed_tokens.weight": draw(config["vocab_size"], hidden) * hidden**0.5,
        "lm_head.weight": draw(config["vocab_size"], hidden),
        "model.norm.weight": torch.ones(hidden),
    }
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        weights |= {
            # Wide queries make attention choose, so that far tokens matter.
            f"{at}.self_attn.q_proj.weight": draw(query, hidden) * 3,
            f"{at}.self_attn.k_proj.weight": draw(kv, hidden),
            f"{at}.self_attn.v_proj.weight": draw(kv, hidden),
            f"{at}.self_attn.o_proj.weight": draw(hidden, query),
            f"{at}.mlp.gate_proj.weight": draw(inner, hidden),
            f"{at}.mlp.up_proj.weight": draw(inner, hidden),
            f"{at}.mlp.down_proj.weight": draw(hidden, inner),
            f"{at}.input_layernorm.weight": torch.ones(hidden),
            f"{at}.post_attention_layernorm.weight": torch.ones(hidden),
        }
    save_file(
        {name: tensor.contiguous() for name, tensor in weights.items()},
        folder / "model.safetensors",
    )
    return folder


def prompt(seed: int, tokens: int, vocab: int = 512) -> list[int]:
    """Token ids of no meaning, other for each seed; never 0, 1 or 2."""
    return [3 + (seed * 1_000_003 + i * 7919 + i * i * 31) % (vocab - 3) for i in range(tokens)]
