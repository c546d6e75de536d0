"""A job's id, and what tells one question from another: the same at every controller."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence

from msgspec.structs import replace

from lmkv.core import wire
from lmkv.core.messages import Submit

DIGEST_BYTES = 16
MOST_KEY = 128  # characters of an idempotency key


def new_id() -> str:
    return "j" + secrets.token_hex(DIGEST_BYTES)


def id_of(key: str) -> str:
    """By an idempotency key."""
    return "j" + hashlib.blake2b(key.encode(), digest_size=DIGEST_BYTES).hexdigest()


def digest(question: Submit, frames: Sequence[bytes]) -> str:
    """Of all that makes it another job, hex."""
    same = replace(question, request=0, id="", asked_by="")
    found = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for frame in wire.encode(same, *frames):
        found.update(len(frame).to_bytes(8, "little") + frame)
    return found.hexdigest()
