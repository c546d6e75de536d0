"""A hook for engines: a request whose client has a trace."""

from __future__ import annotations

from typing import Any


def generate(llm: Any, name: str, tokens: list[int], headers: dict[str, str]) -> dict[str, Any]:
    """The request's `kv_transfer_params`, when it has ended."""
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    params = SamplingParams(
        temperature=0.0, max_tokens=2, ignore_eos=True, detokenize=False,
        extra_args={"kv_transfer_params": {"lmkv": {"transfer": "nixl"}}},
    )  # fmt: skip
    engine = llm.llm_engine
    engine.add_request(name, TokensPrompt(prompt_token_ids=tokens), params, trace_headers=headers)
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                return dict(output.kv_transfer_params)
    raise AssertionError("no output")
