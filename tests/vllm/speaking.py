"""A llama with a tokenizer of bytes and a chat template, and what vLLM's own front end makes of
text (`engine.call("tests.vllm.speaking:...")`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.vllm.models import make_llama

TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def make_speaking_llama(folder: Path) -> Path:
    """Its tokenizer puts token 1 before a prompt, as many models' do, and not before a chat."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    make_llama(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {word: n for n, word in enumerate(["<unk>", "<s>", "</s>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template=TEMPLATE,
    )
    made.save_pretrained(folder)
    return folder


def text_tokens(llm: Any, text: str) -> list[int]:
    """As vLLM's server makes them of a completion's prompt."""
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    renderer, request = llm.llm_engine.renderer, CompletionRequest(prompt=text, max_tokens=1)
    params = request.build_tok_params(llm.llm_engine.model_config)
    [found] = renderer.render_cmpl([{"prompt": text}], params)
    return list(found["prompt_token_ids"])


def chat_tokens(llm: Any, messages: list[dict[str, str]]) -> list[int]:
    """As vLLM's server makes them of a chat."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    renderer = llm.llm_engine.renderer
    request = ChatCompletionRequest(messages=messages, max_completion_tokens=1)
    params = request.build_tok_params(llm.llm_engine.model_config)
    _, [found] = renderer.render_chat([messages], request.build_chat_params(None, "auto"), params)
    return list(found["prompt_token_ids"])
