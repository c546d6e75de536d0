"""Mooncake's traces: a JSON object a line, with what a prompt consists of instead of its text.

`timestamp` is in milliseconds and never goes back, `input_length` in tokens, and `hash_ids` name
the prompt's blocks of 512 tokens, the last one perhaps not whole: equal ids are equal blocks.
`read(path)` gives requests; tokens(request) makes token ids that are equal exactly where the blocks
are. What a request generates (`output_length`) has no ids and is not looked up by anyone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

BLOCK = 512  # tokens that an id stands for
FIELDS = {  # name: least, most
    "timestamp": (0, 10**12),
    "input_length": (1, 1 << 24),
    "output_length": (0, 1 << 24),
}
MOST_ID = (1 << 63) - 1
_REST = [0] * (BLOCK - 2)


class TraceError(ValueError):
    """What cannot be read; the text is one sentence."""


@dataclass(frozen=True)
class Asked:
    """One request of a trace."""

    at: float  # seconds since its begin
    tokens: int
    blocks: tuple[int, ...]


def read(path: str) -> list[Asked]:
    """All requests, in their order. Raises TraceError."""
    try:
        with open(path, "rb") as lines:
            found = list(_requests(path, lines))
    except OSError as error:
        raise TraceError(f"trace {path}: {error.strerror}") from None
    if not found:
        raise TraceError(f"trace {path}: it has no requests")
    return found


def _requests(path: str, lines: Any) -> Iterator[Asked]:
    before = 0.0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            body = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise TraceError(f"trace {path}, line {number}: it is no JSON") from None
        try:
            asked = _request(body, before)
        except TraceError as error:
            raise TraceError(f"trace {path}, line {number}: {error}") from None
        before = asked.at * 1000
        yield asked


def _request(body: Any, before: float) -> Asked:
    if not isinstance(body, dict):
        raise TraceError("it is no JSON object")
    for name in (*FIELDS, "hash_ids"):
        if name not in body:
            raise TraceError(f"it has no {name}")
    for name, (least, most) in FIELDS.items():
        if not _whole(body[name], least, most):
            allowed = f"a whole number from {least} to {most}"
            raise TraceError(f"{name} = {str(body[name])[:40]}: allowed is {allowed}")
    at, tokens, blocks = body["timestamp"], body["input_length"], body["hash_ids"]
    if at < before:
        raise TraceError(
            f"timestamp = {at}: allowed is {before:g}, that of the line before, or more"
        )
    if not isinstance(blocks, list) or not all(_whole(one, 0, MOST_ID) for one in blocks):
        raise TraceError(f"hash_ids: allowed is a list of whole numbers from 0 to {MOST_ID}")
    if len(blocks) != -(-tokens // BLOCK):
        needs = f"input_length = {tokens} needs {-(-tokens // BLOCK)}, one for {BLOCK} tokens"
        raise TraceError(f"hash_ids: there are {len(blocks)}, and {needs}")
    return Asked(at / 1000, tokens, tuple(blocks))


def _whole(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def tokens(asked: Asked) -> list[int]:
    """Token ids of the prompt: the same for the same blocks."""
    made: list[int] = []
    for block in asked.blocks:
        made += [block & 0xFFFFFFFF, block >> 32]
        made += _REST
    return made[: asked.tokens]
