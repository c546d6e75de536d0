"""Operations on instances: a client asks the controller, which asks the instance."""

from __future__ import annotations

from typing import Union

import msgspec

from lmkv.core.messages.base import U32, U64, Message, Name, Seconds

COMMAND_BYTES = 4 << 20  # of a command with its frames
RESULT_BYTES = 1 << 20  # of an answer with its frames


class Command(Message, tag="command"):
    """One operation on one instance; answered by `Done`, `Refused` or `Unsupported`. Frames: as
    the operation says.

    The controller sends it on under a `request` of its own, and answers itself when the instance
    has not within `deadline` (0: the controller's own choice). `id` makes a repetition harmless: an
    instance that has carried it out answers again as before. `operation`: `sync`, `verify`,
    `lookup_text`, `why`, `slots`, `retire`; those of `core/messages/jobs.py`, which begin a job of
    that id (frames: its keys), and `cancel` and `retry` of one (argument `job`); and, declared,
    `drain`, `undrain`. `arguments` are the operation's own, as text.

    Arguments of a job: `source`, `ttl`, `owner`, `whole` (1: every readable slot), `parts`,
    `asked_by`, `command` (`Part.command`).
    """

    id: Name
    operation: Name
    instance: str = ""
    arguments: dict[str, str] = {}
    request: U64 = 0
    deadline: Seconds = 0.0


class Done(Message, tag="done"):
    """A command was carried out. `result` is the operation's struct, in MessagePack. Frames: as the
    operation says; at most `RESULT_BYTES` in all."""

    request: U64
    id: Name
    result: bytes = b""


class SyncResult(msgspec.Struct, omit_defaults=True):
    """Of `sync`, which the controller carries out: its chunks of the instance before and after, and
    the drift that was mended: chunks that it lacked, had elsewhere, or had and the instance not."""

    instance: str
    keys_before: U64 = 0
    keys_after: U64 = 0
    missing: U64 = 0
    moved: U64 = 0
    gone: U64 = 0
    seconds: Seconds = 0.0


class Differing(msgspec.Struct, omit_defaults=True):
    """`how`: `missing`, `moved`, `gone` (the directory against the slot table, as in `SyncResult`);
    `digest`, `header` (a slot of rank `rank` against itself)."""

    key: str  # hex
    how: str
    rank: U32 = 0


class SlotsResult(msgspec.Struct, omit_defaults=True):
    """Of an instance's part of `verify` (argument `sample`): so many of its readable slots, chosen
    at random, were digested again in every rank."""

    slots: U64 = 0
    sampled: U32 = 0
    wrong: list[Differing] = []


class VerifyResult(msgspec.Struct, omit_defaults=True):
    """Of `verify`: the directory against the instance's slot table at a heartbeat, and slots
    against their digests. Counts are exact; `differing` has the first 256 of each kind."""

    instance: str
    keys: U64 = 0  # in the directory
    slots: U64 = 0  # in the slot table
    missing: U64 = 0
    moved: U64 = 0
    gone: U64 = 0
    sampled: U32 = 0
    wrong: U32 = 0
    differing: list[Differing] = []


class TextResult(msgspec.Struct, omit_defaults=True):
    """Of `lookup_text` (arguments `text` or `messages`, as JSON, and `lora`): how many token ids
    are in the frame, and the LoRA's hash as it is in keys."""

    tokens: U32 = 0
    lora: bytes = b""


class WhyEntry(msgspec.Struct, omit_defaults=True):
    """One request that has ended: `matched` of its prompt's `tokens` were not computed; tokens by
    cause, and by the peer that brought them. `opted_out` says why, for people."""

    request: str
    tokens: U32 = 0
    matched: U32 = 0
    hit_tokens: dict[str, U64] = {}
    miss_tokens: dict[str, U64] = {}
    peers: dict[str, U64] = {}
    pull_ms: float = 0.0  # that it waited for pulls
    age: Seconds = 0.0  # since its end
    differs: str = ""  # the field, where a cause is `incompatible`
    opted_out: str = ""


class WhyResult(msgspec.Struct, omit_defaults=True):
    """Of `why` (arguments `last`, `request`): the newest requests first, of the last
    `kept` ones."""

    requests: list[WhyEntry] = []
    kept: U32 = 0


class Setting(msgspec.Struct, omit_defaults=True):
    """A setting of an instance; `value` None is what lmkv decides itself, `origin` who set it (a
    variable, a file, `inline` for vLLM's own configuration, or `default`), and `used` what a value
    that was left open came to."""

    name: str
    value: Union[bool, int, float, str, list[str], None] = None
    origin: str = "default"
    used: str = ""


class ConfigResult(msgspec.Struct, omit_defaults=True):
    """Of `config`: all settings that the instance runs with."""

    settings: list[Setting] = []


OperationMessage = Union[Command, Done]
