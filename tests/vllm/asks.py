"""Requests beyond plain tokens, made inside an engine: `engine.call("tests.vllm.asks:ask", ..)`."""

from __future__ import annotations

from typing import Any


def ask(llm: Any, tokens: list[int], wish: Any = None, **more: Any) -> dict[str, Any]:
    """Greedy: `tokens` and `logprobs` of 8 new ones, `hits` and `misses` by cause, `cached`.

    `more`: `adapter` (name, id, folder) of a LoRA; `rows` a seed: the prompt is as many random
    embeddings; `picture` a seed.
    """
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt
    from vllm.lora.request import LoRARequest

    prompt: Any = TokensPrompt(prompt_token_ids=tokens)
    if "rows" in more:
        prompt = {"prompt_embeds": _rows(llm, more["rows"], len(tokens))}
    if "picture" in more:
        prompt["multi_modal_data"] = {"image": _picture(more["picture"])}
    params = SamplingParams(
        max_tokens=8,
        temperature=0,
        detokenize=False,
        ignore_eos=True,
        logprobs=1,
        extra_args={"kv_transfer_params": wish} if wish else None,
    )
    adapter = LoRARequest(*more["adapter"]) if "adapter" in more else None
    (output,) = llm.generate([prompt], params, use_tqdm=False, lora_request=adapter)
    made = output.outputs[0]
    told = (output.kv_transfer_params or {}).get("lmkv", {})
    return {
        "tokens": list(made.token_ids),
        "logprobs": [step[t].logprob for t, step in zip(made.token_ids, made.logprobs)],
        "hits": {cause: n for cause, n in told.get("hit_tokens", {}).items() if n},
        "misses": {cause: n for cause, n in told.get("miss_tokens", {}).items() if n},
        "cached": output.num_cached_tokens or 0,
    }


def _rows(llm: Any, seed: int, count: int) -> Any:
    import torch

    model = llm.model_config
    random = torch.Generator().manual_seed(seed)
    return torch.randn(count, model.get_hidden_size(), generator=random).to(model.dtype)


def _picture(seed: int) -> Any:
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 256, (56, 56, 3), np.uint8)
    return Image.fromarray(pixels)
