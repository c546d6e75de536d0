"""A job's id, and what makes two questions the same one: for controllers and instances alike."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from lmkv.core import wire
from lmkv.core.messages import Submit

BYTES = 16  # of an id and of a digest, in hex
MOST_KEY = 128  # characters of an idempotency key
UNLIKE = ("asked_by", "parts")  # arguments that do not make it another job


def new_id() -> str:
    return "j" + secrets.token_hex(BYTES)


def id_of(key: str) -> str:
    """By an idempotency key."""
    return "j" + hashlib.blake2b(key.encode(), digest_size=BYTES).hexdigest()


def digest_of(question: Submit, frames: Sequence[bytes]) -> str:
    """Of all that makes it another job; the argument `command` of its commands."""
    return _hashed(wire.encode(replace(question, request=0, id="", asked_by=""), *frames))


def digest(operation: str, arguments: Mapping[str, str], frames: Sequence[bytes]) -> str:
    """`Part.command`: what the controller says it is, else that of the operation, its arguments and
    its keys."""
    same = [operation.encode()]
    for name in sorted(arguments):
        if name not in UNLIKE:
            same += [name.encode(), arguments[name].encode()]
    return arguments.get("command", "") or _hashed([b"%d" % len(same), *same, *frames])


def _hashed(texts: Sequence[bytes]) -> str:
    found = hashlib.blake2b(digest_size=BYTES)
    for text in texts:
        found.update(len(text).to_bytes(8, "little") + text)
    return found.hexdigest()
