"""Text and chat messages to token ids, as vLLM's own server makes them of a request's.

`Tokeniser(vllm_config)(text)` or `(messages=...)`. vLLM's scheduler process has its model's
tokenizer loaded already (structured output needs it), and a renderer takes it from there; copies of
it, which servers make, would hold the interpreter lock for tenths of a second. What only the server
was told (`--chat-template`, default arguments of it) is not known here: the model's own template is
used.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError
from vllm.exceptions import VLLMClientError
from vllm.renderers import ChatParams, TokenizeParams
from vllm.renderers.base import BaseRenderer
from vllm.renderers.hf import HfRenderer
from vllm.renderers.registry import RENDERER_REGISTRY
from vllm.tokenizers.registry import cached_tokenizer_from_config, tokenizer_args_from_config

SENTENCE = 300  # characters of vLLM's own that are passed on


class _Shared(HfRenderer):  # type: ignore[misc]
    """With the tokenizer that there is, for one thread at a time, instead of a pool of copies."""

    def __init__(self, config: Any, tokenizer: Any) -> None:
        BaseRenderer.__init__(self, config, tokenizer)
        self.use_unified_vision_chunk = False


class Tokeniser:
    """For one thread at a time: others wait. ValueError: one sentence."""

    def __init__(self, vllm_config: Any) -> None:
        self._config = vllm_config
        self._lock = threading.Lock()
        self._made: BaseRenderer[Any] | None = None

    def __call__(self, text: str = "", messages: Sequence[dict[str, str]] = ()) -> list[int]:
        try:
            with self._lock:
                renderer = self._renderer()
                if messages:
                    return self._chat(renderer, list(messages))
                return self._tokens(renderer, {"prompt": text}, add_special_tokens=True)
        except (ValueError, TypeError, TemplateError, VLLMClientError) as error:
            field = "messages" if messages else "text"
            sentence = str(error.args[0] if error.args else error).partition("\n")[0]
            raise ValueError(f"{field}: {sentence[:SENTENCE]}") from None

    def _renderer(self) -> BaseRenderer[Any]:
        model = self._config.model_config
        if model.skip_tokenizer_init:
            raise ValueError("this instance has no tokenizer (skip_tokenizer_init): give token ids")
        if self._made is None:
            # Pictures are not looked up: without them a model that takes them is one for text.
            config = copy.copy(self._config)
            config.model_config = copy.copy(model)
            config.model_config.multimodal_config = None
            mode = tokenizer_args_from_config(model)[0]
            kind = RENDERER_REGISTRY.load_renderer_cls(mode)
            kind = _Shared if kind is HfRenderer else kind
            self._made = kind(config, cached_tokenizer_from_config(model))
        return self._made

    def _chat(self, renderer: BaseRenderer[Any], messages: list[Any]) -> list[int]:
        # As the server's defaults are for a request without tools.
        arguments = {"add_generation_prompt": True, "continue_final_message": False}
        params = ChatParams(chat_template_kwargs=arguments)
        _, prompt = renderer.render_messages(messages, params)
        return self._tokens(renderer, prompt, add_special_tokens=False)

    def _tokens(self, renderer: BaseRenderer[Any], prompt: Any, **how: bool) -> list[int]:
        params = TokenizeParams(max_total_tokens=self._config.model_config.max_model_len, **how)
        [found] = renderer.tokenize_prompts([prompt], params)
        return list(found["prompt_token_ids"])
