"""What a prompt is to this instance: the command `lookup_text`.

Text or chat messages become token ids by the model's tokenizer and chat template, and a LoRA's
name the hash of its files, so that who knows neither can make the keys that a request would have.
It runs in a command's thread; the text is not kept and not logged.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import msgspec

from lmkv.agent.commands import Failed, Frames
from lmkv.core.clock import Deadline
from lmkv.core.messages import Command, TextResult

Tokenise = Callable[..., list[int]]  # of `text`, or of `messages`; ValueError is one sentence
_messages = msgspec.json.Decoder(list[dict[str, str]])


class Texts:
    """`adapter(name)`: the hash of a LoRA by which requests were keyed, None: there was none."""

    def __init__(
        self, tokenise: Tokenise | None = None, adapter: Callable[[str], bytes | None] | None = None
    ) -> None:
        self._tokenise = tokenise
        self._adapter = adapter

    def look(self, command: Command, frames: Frames, until: Deadline) -> tuple[TextResult, Frames]:
        """Frames: token ids, u32 little-endian; none where neither text nor messages are given."""
        text, messages = command.arguments.get("text", ""), command.arguments.get("messages", "")
        lora = self._lora(command.arguments.get("lora", ""))
        if not text and not messages:
            return TextResult(lora=lora), []
        if self._tokenise is None:
            raise Failed("field", "text: this instance tokenises nothing: give token ids", "text")
        field = "messages" if messages else "text"
        try:
            said = _messages.decode(messages) if messages else []
            tokens = self._tokenise(text, said)
        except (ValueError, msgspec.MsgspecError) as error:
            raise Failed("field", str(error), field) from None
        return TextResult(len(tokens), lora), [struct.pack(f"<{len(tokens)}I", *tokens)]

    def _lora(self, name: str) -> bytes:
        found = self._adapter(name) if name and self._adapter is not None else None
        if name and found is None:
            text = f"lora {name!r}: no request with it has been here, so its files are not known"
            raise Failed("field", text, "lora")
        return found or b""
