"""Tiny Gemma-2 and Gemma-3 with real, fixed weights, in fp32: attention over a window and over all.

With vLLM's hybrid manager, layers that alternate (Gemma-2) make two cache groups; two of six that
see all (Gemma-3, as here) make three, of two layers each.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

GEMMA: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 512,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "dtype": "float32",
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
    "hidden_activation": "gelu_pytorch_tanh",
}
WINDOW, ALL = "sliding_attention", "full_attention"
GEMMA_2 = GEMMA | {
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "num_hidden_layers": 4,
    "layer_types": [WINDOW, ALL] * 2,
    "sliding_window": 512,
    "query_pre_attn_scalar": 64,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
}
GEMMA_3 = GEMMA | {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "num_hidden_layers": 6,
    "layer_types": [WINDOW, WINDOW, ALL] * 2,
    "sliding_window": 300,
    "query_pre_attn_scalar": 4,  # queries are normed: so that attention chooses
    "rope_parameters": {
        ALL: {"rope_theta": 1000000.0, "rope_type": "default"},
        WINDOW: {"rope_theta": 10000.0, "rope_type": "default"},
    },
}


def make_gemma(folder: Path, config: dict[str, Any], seed: int = 0) -> Path:
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    random = torch.Generator().manual_seed(seed)

    def draw(rows: int, columns: int, width: float = 1.0) -> torch.Tensor:
        return torch.randn(rows, columns, generator=random) * (width * columns**-0.5)

    hidden, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    query, kv = head * config["num_attention_heads"], head * config["num_key_value_heads"]
    normed = config["model_type"] == "gemma3_text"
    # Small beside what layers add, so that the next token is not the last one again.
    weights = {"model.embed_tokens.weight": draw(config["vocab_size"], hidden, 0.3)}
    weights["model.norm.weight"] = torch.zeros(hidden)  # Gemma's norms multiply by 1 + weight
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        weights |= {
            f"{at}.self_attn.q_proj.weight": draw(query, hidden, 3.0),
            f"{at}.self_attn.k_proj.weight": draw(kv, hidden),
            f"{at}.self_attn.v_proj.weight": draw(kv, hidden),
            f"{at}.self_attn.o_proj.weight": draw(hidden, query),
            f"{at}.mlp.gate_proj.weight": draw(inner, hidden),
            f"{at}.mlp.up_proj.weight": draw(inner, hidden),
            f"{at}.mlp.down_proj.weight": draw(hidden, inner),
        }
        for norm in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            weights[f"{at}.{norm}_layernorm.weight"] = torch.zeros(hidden)
        if normed:
            for norm in ("q", "k"):
                weights[f"{at}.self_attn.{norm}_norm.weight"] = torch.zeros(head)
    save_file(weights, folder / "model.safetensors")
    return folder
