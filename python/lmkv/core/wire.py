"""Messages to frames and back.

`encode(message, *arrays)` gives the frames of one ZMQ message; `decode(frames)` gives the message
and the raw frames behind it, or raises `WireError` with one sentence that names what is wrong. A
truncated or foreign message is always a `WireError`, never another exception.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from lmkv.core import messages
from lmkv.core.messages import MAX_KEYS, AnyMessage, Message
from lmkv.core.text import printable

MOST_CHARACTERS = 300  # of what is said of a message: it may quote the message
KEY_BYTES, PLACE_BYTES, COUNTER_BYTES = 16, 8, 4

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(AnyMessage)
_tags = {
    kind.__struct_config__.tag
    for kind in vars(messages).values()
    if isinstance(kind, type) and issubclass(kind, Message) and kind is not Message
}


class WireError(ValueError):
    """What arrived is no message of ours; `name` is its tag where that could be read."""

    def __init__(self, sentence: str, name: str = "") -> None:
        super().__init__(sentence)
        self.name = name


def encode(message: Message, *arrays: bytes) -> list[bytes]:
    return [_encoder.encode(message), *arrays]


def decode(frames: Sequence[bytes]) -> tuple[AnyMessage, list[bytes]]:
    """`frames` without the routing id. Raises WireError."""
    if not frames:
        raise WireError("an empty message has no frames")
    try:
        return _decoder.decode(frames[0]), list(frames[1:])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        tag = _tag(frames[0])
        if tag and tag not in _tags:
            raise WireError(f"message type {tag!r} is not known", tag) from None
        text = printable(str(error)[:MOST_CHARACTERS])
        raise WireError(f"message {tag or 'of no type'}: {text}", tag) from None


def _tag(frame: bytes) -> str:
    try:
        body = msgspec.msgpack.decode(frame)
    except Exception:  # anything may arrive here
        return ""
    tag = body.get("type", "") if isinstance(body, dict) else ""
    return tag[:64] if isinstance(tag, str) else ""


def counts(frames: Sequence[bytes], *sizes: int, limit: int = MAX_KEYS) -> int:
    """Items in frames of `sizes` bytes each, which must be equal and at most `limit`."""
    if len(frames) != len(sizes):
        raise WireError(f"{len(frames)} frames behind the message, expected {len(sizes)}")
    numbers = set()
    for frame, size in zip(frames, sizes):
        if len(frame) % size:
            raise WireError(f"a frame of {len(frame)} bytes is not a multiple of {size}")
        numbers.add(len(frame) // size)
    if len(numbers) > 1:
        raise WireError(f"frames of unequal counts: {sorted(numbers)}")
    number = numbers.pop() if numbers else 0
    if number > limit:
        raise WireError(f"{number} items in one message, at most {limit} are allowed")
    return number
