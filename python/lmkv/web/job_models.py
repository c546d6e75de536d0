"""What REST takes and gives of jobs and pins. Answers have the names of `core/messages/jobs.py`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from lmkv.web.models import Answer, Key, Prompt, Text

Operation = Literal["pin", "unpin", "copy", "move", "clear", "compress", "decompress"]
State = Literal["queued", "running", "done", "failed", "cancelled"]
KEYS = 1 << 16
Name = Annotated[str, Field(max_length=256)]


class Submit(Prompt):
    """An operation on a prefix, given once as `tokens`, `text`, `messages` or `keys`; or on a
    `whole` instance."""

    operation: Operation
    instance: Name = Field(
        default="",
        description="where it is done, of copy and move the target; without it at every holder",
    )
    source: Name = Field(default="", description="of copy and move: from there, else from any")
    whole: bool = Field(default=False, description="all that an instance holds; clear: of any")
    keys: list[Key] = Field(default=[], max_length=KEYS, description="of any cache group")
    like: Text = Field(default="", description="the instance whose keys are meant")
    model: Text = Field(default="", description="may be left out where all share alike")
    ttl_s: float = Field(default=0.0, ge=0, le=1e9, description="seconds; pin needs it, or owner")
    owner: Name = Field(default="", description="of a pin; unpin: only those of this one")
    idempotency_key: str = Field(
        default="",
        max_length=128,
        description="again with the same body is answered with the job that there is",
    )


class Part(Answer):
    """One instance's part of a job."""

    id: str
    operation: str
    instance: str
    state: State
    source: str
    chunks: int = Field(description="looked at; a chunk of each cache group counts")
    chunks_total: int = Field(description="0: not known yet")
    bytes: int = Field(description="pulled, freed or written, of all ranks")
    bytes_total: int
    skipped: dict[str, int] = Field(
        description="chunks that needed nothing or could not be had: absent, pinned, present, "
        "unchanged, incompatible, limit"
    )
    code: str = Field(description="why it failed, for programs")
    reason: str = Field(description="and for people")
    attempt: int
    age: float
    seconds: float = Field(description="that it has run")
    ended_age: float = Field(description="since it ended; 0: it has not")
    asked_by: str
    parts: int = Field(description="instances that the job was sent to")
    command: str = Field(description="digest of what was asked")
    owner: str
    ttl: float


class Job(Answer):
    id: str
    operation: str
    state: State
    instances: int = Field(description="that it was sent to; all but the `parts` told nothing yet")
    parts: list[Part] = Field(description="in lists the first 16, those that failed before others")
    source: str
    chunks: int = Field(description="of all parts, like what follows")
    chunks_total: int
    bytes: int
    bytes_total: int
    skipped: dict[str, int]
    rate: float = Field(description="bytes a second")
    eta: float = Field(
        description="seconds until it has ended, if it goes on like this; 0: unknown"
    )
    code: str
    reason: str
    asked_by: str
    attempt: int
    age: float
    ended_age: float


class JobsPage(Answer):
    jobs: list[Job] = Field(description="newest first")
    next: str = Field(description="`after` of the next page; empty on the last one")
    total: int = Field(description="that the filters let through")
    states: dict[str, int] = Field(description="all jobs by state")


class Pin(Answer):
    id: str = Field(description="of the job that made it")
    instance: str
    owner: str
    left_s: float | None = Field(description="until it ends; null: when its owner unpins it")
    chunks: int
    bytes: int
    first: str = Field(description="key of its first chunk, hex")


class PinsPage(Answer):
    pins: list[Pin]
    next: str
    total: int = Field(description="an instance tells of its oldest 256")
