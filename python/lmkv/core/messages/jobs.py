"""Jobs: what instances do for operators on their background paths, and tell all controllers of.

A client sends `Submit` to a controller. It makes the keys, chooses the instances, and sends each of
them a `Command` of the job's id (`core/messages/operations.py`); an instance answers `Done` with
its `Part` as soon as it has taken it, and tells `Job` to all its controllers at each change, at
most once a second while it runs, every 20 s until it has ended, and again to each controller that
welcomes it. So a controller keeps nothing that it is not told again, and a job goes on without the
one that took it.
"""

from __future__ import annotations

from typing import Annotated, Union

import msgspec
from msgspec import Meta

from lmkv.core.messages.base import U32, U64, Message, Name, Seconds
from lmkv.core.messages.state import Register

OPERATIONS = ("pin", "unpin", "copy", "move", "clear", "compress", "decompress")
MOVING = ("copy", "move", "compress", "decompress")  # bytes; the others only look at slots
STATES = ("queued", "running", "done", "failed", "cancelled")
OPEN, ENDED = STATES[:2], STATES[2:]
SKIPPED = ("absent", "pinned", "present", "unchanged", "incompatible", "limit")
JOBS_KEPT = 64  # ended ones that an instance remembers
KEYS_A_JOB = 1 << 16  # that a command carries

Words = Annotated[str, Meta(max_length=256)]


class Part(msgspec.Struct, omit_defaults=True):
    """One instance's part of a job. Chunks are counted by cache group: a slot each.

    `skipped` counts those that needed nothing or could not be had, by a word of `SKIPPED`; they
    are in `chunks` too when they have been looked at. `code` and `reason` say why it failed.
    """

    id: Name
    operation: str
    instance: Words
    state: str = "queued"
    source: Words = ""  # of copy and move
    chunks: U64 = 0
    chunks_total: U64 = 0  # 0: not known yet
    bytes: U64 = 0  # pulled, freed or written; of all ranks
    bytes_total: U64 = 0
    skipped: dict[str, U64] = {}
    code: str = ""
    reason: str = ""
    asked_by: Words = ""
    parts: U32 = 1  # instances that the job was sent to
    attempt: U32 = 1
    age: Seconds = 0.0  # since it was taken
    seconds: Seconds = 0.0  # that it has run
    ended_age: Seconds = 0.0  # since it ended
    command: str = ""  # digest of what was asked: the same id with another one is refused
    owner: Words = ""
    ttl: Seconds = 0.0


class Job(Message, tag="job"):
    """Instance -> all controllers."""

    epoch: U64
    part: Part


class PinState(msgspec.Struct, omit_defaults=True):
    """One pin of one instance. It ends `left` seconds from now, or (0) when its owner unpins."""

    id: Name
    instance: Words
    owner: Words = ""
    left: Seconds = 0.0
    chunks: U64 = 0
    bytes: U64 = 0  # of all ranks
    first: str = ""  # key of its first chunk, hex


class PinsHeld(Message, tag="pins_held"):
    """Instance -> all controllers, after every change: all its pins, the oldest 256."""

    epoch: U64
    pins: list[PinState] = []
    total: U32 = 0


# ---------------------------------------------------------------- clients


class Submit(Message, tag="submit"):
    """Client -> controller: do this. Answered by `JobInfo`, or `Refused`. Frames: keys; or no
    frame, and tokens, text or chat messages as in `Lookup`, or `whole`.

    `instance` is where it is done; of `copy` and `move` the target, which must be named. Without it
    `pin` and `clear`, `unpin`, `compress` and `decompress` are done at every holder of one of the
    chunks; `whole` without it is allowed for `clear`, and means the cluster. `source` of a copy or
    move: without it, the other instances that have the chunks.
    """

    request: U64
    operation: Name
    id: str = ""  # idempotency key, up to 128 characters; "": one is made
    instance: str = ""
    source: str = ""
    whole: bool = False  # every readable slot instead of a prefix
    tokens: list[U32] = []
    text: str = ""
    messages: list[dict[str, str]] = []
    salt: str = ""
    lora: str = ""
    like: str = ""
    model: str = ""
    ttl: Seconds = 0.0  # of a pin
    owner: str = ""  # of a pin; unpin: only this owner's
    asked_by: str = ""


class JobState(msgspec.Struct, omit_defaults=True):
    """A job as a controller sees it: its parts together. `rate` is bytes a second (of `MOVING`),
    `eta` seconds (0: not known)."""

    id: str
    operation: str
    state: str
    parts: list[Part] = []
    instances: U32 = 0  # that it was sent to; more than `parts`: not all have reported
    source: str = ""
    chunks: U64 = 0
    chunks_total: U64 = 0
    bytes: U64 = 0
    bytes_total: U64 = 0
    skipped: dict[str, U64] = {}
    rate: float = 0.0
    eta: Seconds = 0.0
    code: str = ""
    reason: str = ""
    asked_by: str = ""
    attempt: U32 = 1
    age: Seconds = 0.0
    ended_age: Seconds = 0.0


class JobInfo(Message, tag="job_info"):
    request: U64
    job: JobState
    new: bool = True  # False: this idempotency key had been used for the same


class AskJob(Message, tag="ask_job"):
    """One job. `action`: "" only looks; `cancel` and `retry` act first, at every part that they
    fit."""

    request: U64
    id: Name
    action: str = ""


class Jobs(Message, tag="jobs"):
    """Jobs, the newest first; `state` and `instance` filter."""

    request: U64 = 0
    after: str = ""  # an id
    limit: U32 = 100
    state: str = ""
    instance: str = ""


class JobsInfo(Message, tag="jobs_info"):
    request: U64
    jobs: list[JobState] = []
    next: str = ""
    total: U32 = 0
    states: dict[str, U32] = {}


class Pins(Message, tag="pins"):
    request: U64 = 0
    instance: str = ""
    after: str = ""  # "instance id" of the last one
    limit: U32 = 100


class PinsInfo(Message, tag="pins_info"):
    request: U64
    pins: list[PinState] = []
    next: str = ""
    total: U32 = 0


# ---------------------------------------------------------------- instance to instance


class SlotsPage(msgspec.Struct, omit_defaults=True):
    """Of the command `slots`: readable slots. Frames: keys, places, counters. Those of the keys in
    the command's frame; or without one (arguments `first`, `limit`) those from granule `first` on,
    in granule order, `next` being the granule to go on from, 0 at the end. `who`: the instance as
    it is registered, where the argument `who` is 1."""

    next: U32 = 0
    who: Union[Register, None] = None


class Retired(msgspec.Struct, omit_defaults=True):
    """Of the command `retire` (frames: keys): chunks that were readable and are found no more, and
    their bytes. Those that are pinned stay."""

    chunks: U32 = 0
    bytes: U64 = 0
    pinned: U32 = 0


JobMessage = Union[Job, PinsHeld, Submit, JobInfo, AskJob, Jobs, JobsInfo, Pins, PinsInfo]
