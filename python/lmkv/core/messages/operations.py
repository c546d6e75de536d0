"""Operations, declared and served later."""

from __future__ import annotations

from typing import Union

import msgspec

from lmkv.core.messages.base import U64, Message, Name, Seconds


class Pin(msgspec.Struct, omit_defaults=True):
    id: str
    keys: bytes  # 16 bytes each
    ttl: Seconds
    owner: str = ""


class Command(Message, tag="command"):
    """One operation on one instance. Frames: keys (may be absent).

    `operation`: `pin`, `unpin`, `move`, `copy`, `clear`, `compress`, `decompress`, `drain`,
    `undrain`, `sync`, `verify`, `lookup_text`. `id` makes a repetition harmless.
    """

    id: Name
    operation: Name
    instance: str = ""
    target: str = ""
    ttl: Seconds = 0.0
    arguments: dict[str, str] = {}


class Job(Message, tag="job"):
    """Progress or result of a command, to all controllers."""

    id: Name
    state: str  # queued, running, done, failed, cancelled
    done: U64 = 0
    total: U64 = 0
    error: str = ""


class Jobs(Message, tag="jobs"):
    request: U64 = 0
    after: str = ""


OperationMessage = Union[Command, Job, Jobs]
