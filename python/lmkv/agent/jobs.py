"""Jobs of operators: take() -> queued -> an operation's steps, one a turn -> ended.

All is the background thread's, a turn at a time: an operation is a generator, each `next()` of
which is one short step. It yields between steps, and while it waits the seconds that it can be left
alone at most. `Failed` ends it with its sentence; cancelling closes it, so that its `finally`
clauses give back what it holds. An instance remembers the last ended ones. `news()` is what the
controllers have not heard yet.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from lmkv.agent.commands import Failed, Frames, number
from lmkv.core import jobs, wire
from lmkv.core.clock import Clock, Deadline
from lmkv.core.geometry import GRANULES_A_SLOT
from lmkv.core.messages import Command, Message
from lmkv.core.messages.jobs import ENDED, JOBS_KEPT, KEYS_A_JOB, OPEN, Job, Part

if TYPE_CHECKING:
    from lmkv.agent.agent import Agent

log = logging.getLogger("lmkv.agent")

KEY = wire.KEY_BYTES
STEP = 64  # keys that a step looks at
SOON = 0.001  # seconds until the next step of an operation that does not wait
TELL_EVERY, TELL_AGAIN = 1.0, 20.0  # seconds: what has changed while it runs; all that is open
WAITING = 32  # jobs that are queued
LONGEST = 1e9  # seconds, of a duration that is given
KEYS_KEPT = 4 << 20  # bytes of keys of ended jobs, for a retry
TABLE, BYTES = "table", "bytes"  # what an operation takes time of
AT_ONCE = {TABLE: 1, BYTES: 2}

Steps = Generator[Any, None, None]  # of None or seconds, as said above
Operate = Callable[["Run"], Steps]


def anything(arguments: Mapping[str, str], whole: bool) -> None:
    """The check of an operation that needs no argument."""


@dataclass(frozen=True)
class Operation:
    """`check` raises Failed for arguments that can never do, before the job is taken."""

    steps: Operate
    takes: str = TABLE
    check: Callable[[Mapping[str, str], bool], None] = anything


class Pace:
    """The bandwidth of all jobs together, first come first served: `take(size)` -> when it may
    begin; `give_back(size)` what does not begin after all."""

    def __init__(self, rate: float, clock: Clock) -> None:
        self._rate = rate  # bytes per second; 0: any
        self._clock = clock
        self._free = float("-inf")

    def take(self, size: int) -> float:
        begin = max(self._clock(), self._free)
        if self._rate:
            self._free = begin + size / self._rate
        return begin

    def give_back(self, size: int) -> None:
        if self._rate:
            self._free -= size / self._rate


class Run:
    """One attempt, as its operation sees it. `keys` are in the prompt's order; None: every readable
    slot is meant."""

    def __init__(
        self,
        agent: Agent,
        part: Part,
        keys: list[bytes] | None,
        arguments: Mapping[str, str],
        clock: Clock,
        pace: Pace,
    ) -> None:
        self.agent = agent
        self.part = part
        self.keys = keys
        self.arguments = arguments
        self.clock = clock
        self._pace = pace

    def count(self, chunks: int = 0, bytes: int = 0, skipped: str = "") -> None:  # noqa: A002
        """So many chunks have been looked at; those `skipped` for that word of SKIPPED. Of all that
        is here there may be more by then than there were."""
        self.part.chunks += chunks
        if self.part.chunks_total:
            self.part.chunks_total = max(self.part.chunks_total, self.part.chunks)
        self.part.bytes += bytes
        if skipped and chunks:
            self.skip(skipped, chunks)

    def skip(self, word: str, chunks: int) -> None:
        """Of those that have been counted."""
        known = self.part.skipped
        self.part.skipped = {**known, word: known.get(word, 0) + chunks}

    def batches(self, most: int = STEP) -> Iterator[list[bytes]]:
        """The job's keys, so many at a time, and their number as `chunks_total`. Of all readable
        slots: as they are told, from one end of the pool to the other."""
        if self.keys is not None:
            self.part.chunks_total = len(self.keys)
            for at in range(0, len(self.keys), most):
                yield self.keys[at : at + most]
            return
        table = self.agent.table
        self.part.chunks_total = table.sums()[0]
        step, end = most * GRANULES_A_SLOT, table.usable * GRANULES_A_SLOT
        for first in range(0, end, step):
            keys = split(table.slice(first, min(end, first + step))[0])
            for at in range(0, len(keys), most):
                yield keys[at : at + most]

    def paced(self, size: int) -> Steps:
        """Waits until so many bytes may be moved."""
        begin = self._pace.take(size)
        try:
            while (left := begin - self.clock()) > 0:
                yield left
        except GeneratorExit:
            self._pace.give_back(size)
            raise


@dataclass
class _Job:
    part: Part
    keys: bytes | None  # None: whole, or (when it has ended) not kept
    whole: bool
    arguments: Mapping[str, str]
    epoch: int
    taken: float
    version: int = 0  # of what is told of it
    told: Part | None = None  # as it was then
    told_at: float = 0.0
    steps: Steps | None = None
    began: float = 0.0
    ended: float = 0.0
    soon: float = 0.0  # when its next step is due, at the latest
    acted: str = ""  # id of the last command that cancelled or retried it


class Jobs:
    def __init__(
        self,
        agent: Agent,
        operations: Mapping[str, Operation],
        bytes_per_second: float,
        clock: Clock,
    ) -> None:
        self._agent = agent
        self._operations = operations
        self._clock = clock
        self._pace = Pace(bytes_per_second, clock)
        self._jobs: dict[str, _Job] = {}  # by id, the oldest first
        self._version = 0
        self.handlers = {
            **dict.fromkeys(operations, self.take),
            "cancel": self.cancel,
            "retry": self.retry,
        }

    # ------------------------------------------------------------ commands

    def take(self, command: Command, frames: Frames, until: Deadline) -> tuple[Part, Frames]:
        """Queue it. The same id again is the same job, and is answered as it stands now."""
        asked = jobs.digest(command.operation, command.arguments, frames)
        known = self._jobs.get(command.id)
        if known is not None:
            if known.part.command != asked:
                text = f"id {command.id!r}: another job had it; give each one its own"
                raise Failed("conflict", text, "id")
            return self._now(known), []
        part, keys = self._part(command, frames, asked)
        now = self._clock()
        whole = keys is None
        job = _Job(part, keys, whole, dict(command.arguments), self._agent.epoch, now)
        self._jobs[command.id] = job
        self._tell(job)
        return self._now(job), []

    def _part(self, command: Command, frames: Frames, asked: str) -> tuple[Part, bytes | None]:
        """Raises Failed, or WireError, for what cannot be a job."""
        arguments = command.arguments
        whole = arguments.get("whole") == "1"
        keys = b"" if whole else b"".join(frames)
        if len(keys) > KEYS_A_JOB * KEY or len(keys) % KEY:
            text = f"keys: {len(keys)} bytes, allowed are {KEY} each for at most {KEYS_A_JOB}"
            raise Failed("field", text, "keys")
        if not whole and not keys:
            raise Failed("field", "keys: none is given, and whole is not 1", "keys")
        if sum(job.part.state == "queued" for job in self._jobs.values()) >= WAITING:
            text = f"{WAITING} jobs wait here, which is the most: try again later"
            raise Failed("busy", text)
        self._operations[command.operation].check(arguments, whole)
        part = Part(
            command.id,
            command.operation,
            self._agent.instance,
            source=arguments.get("source", "")[:256],
            chunks_total=len(keys) // KEY,
            asked_by=arguments.get("asked_by", "")[:256],
            parts=number(command, "parts", 1, 1, 1 << 20),
            command=asked,
            owner=arguments.get("owner", "")[:256],
            ttl=seconds(arguments, "ttl"),
        )
        return part, None if whole else keys

    def cancel(self, command: Command, frames: Frames, until: Deadline) -> tuple[Part, Frames]:
        job = self._named(command)
        if job.acted == command.id:
            return self._now(job), []
        if job.part.state in ENDED:
            age = self._clock() - job.ended
            text = f"job {job.part.id} is {job.part.state} since {age:.0f} s"
            raise Failed("ended", text, "job")
        job.acted = command.id
        self._end(job, "cancelled", "cancelled", "cancelled by an operator")
        return self._now(job), []

    def retry(self, command: Command, frames: Frames, until: Deadline) -> tuple[Part, Frames]:
        job = self._named(command)
        part = job.part
        if job.acted == command.id:
            return self._now(job), []
        if part.state == "done":
            raise Failed("ended", f"job {part.id} is done: there is nothing to try again", "job")
        if part.state not in ENDED:
            raise Failed("conflict", f"job {part.id} is {part.state}: it has not ended", "job")
        if job.keys is None and not job.whole:
            text = f"job {part.id}: its keys are not kept any more; submit it again"
            raise Failed("unavailable", text, "job")
        job.part = msgspec.structs.replace(
            part,
            state="queued",
            chunks=0,
            chunks_total=len(job.keys or b"") // KEY,
            bytes=0,
            bytes_total=0,
            skipped={},
            code="",
            reason="",
            attempt=part.attempt + 1,
        )
        job.acted, job.epoch = command.id, self._agent.epoch
        job.began, job.ended = 0.0, 0.0
        self._tell(job)
        return self._now(job), []

    def _named(self, command: Command) -> _Job:
        name = command.arguments.get("job", "")
        if name not in self._jobs:
            raise Failed("unknown_job", f"job {name[:64]!r} is not known here", "job")
        return self._jobs[name]

    # ------------------------------------------------------------ turns

    @property
    def open(self) -> int:
        """Those that have not ended."""
        return sum(job.part.state not in ENDED for job in self._jobs.values())

    @property
    def running(self) -> list[_Job]:
        return [job for job in self._jobs.values() if job.steps is not None]

    def due(self) -> float:
        """Seconds until a step is due at the latest."""
        if not self._jobs:
            return float("inf")
        now = self._clock()
        if self._next() is not None:
            return 0.0
        return min((max(0.0, job.soon - now) for job in self.running), default=float("inf"))

    def turn(self) -> None:
        """A step of each job that runs, and the next ones begin."""
        if not self._jobs:
            return
        for job in list(self._jobs.values()):
            if job.epoch != self._agent.epoch and job.part.state not in ENDED:
                text = "the instance's caches were reset meanwhile"
                self._end(job, "failed", "reset", text)
        while (waiting := self._next()) is not None:
            self._begin(waiting)
        for job in self.running:
            self._step(job)
            old = self._clock() - job.told_at >= TELL_EVERY
            if job.steps is not None and old and job.part != job.told:
                self._tell(job)
        for job in self._jobs.values():
            if job.part.state in OPEN and self._clock() - job.told_at >= TELL_AGAIN:
                self._tell(job)
        if not self.running:
            self._agent.fetches.rest()

    def _next(self) -> _Job | None:
        """The oldest that waits and may begin."""
        takes = [self._operations[job.part.operation].takes for job in self.running]
        for job in self._jobs.values():
            kind = self._operations[job.part.operation].takes
            if job.part.state == "queued" and takes.count(kind) < AT_ONCE[kind]:
                return job
        return None

    def _begin(self, job: _Job) -> None:
        job.began = self._clock()
        job.part.state = "running"
        keys = None if job.keys is None else [*dict.fromkeys(split(job.keys))]
        run = Run(self._agent, job.part, keys, job.arguments, self._clock, self._pace)
        job.steps = self._operations[job.part.operation].steps(run)
        self._tell(job)

    def _step(self, job: _Job) -> None:
        assert job.steps is not None
        try:
            wait = next(job.steps)
        except StopIteration:
            self._end(job, "done")
        except Failed as failed:
            self._end(job, "failed", failed.code, failed.message)
        except Exception:
            log.exception("lmkv: the job %s failed", job.part.operation)
            text = f"{job.part.operation}: a defect of lmkv; the instance's log says more"
            self._end(job, "failed", "failed", text)
        else:
            job.soon = self._clock() + (SOON if wait is None else wait)

    def _end(self, job: _Job, state: str, code: str = "", reason: str = "") -> None:
        steps, job.steps = job.steps, None
        if steps is not None:
            try:
                steps.close()
            except Exception:
                log.exception("lmkv: the job %s did not end as it should", job.part.operation)
        job.ended = self._clock()
        job.part.state, job.part.code, job.part.reason = state, code, reason
        if state == "done" and job.whole:  # some went before their turn came
            job.part.chunks_total = job.part.chunks
        self._agent.stats.count("jobs_ended", state)
        self._tell(job)
        self._forget()

    def _forget(self) -> None:
        """The oldest ended ones go first; before that, their keys."""
        ended = [job for job in self._jobs.values() if job.part.state in ENDED]
        ended.sort(key=lambda job: job.ended)
        for job in ended[: max(0, len(ended) - JOBS_KEPT)]:
            del self._jobs[job.part.id]
        kept = 0
        for job in reversed(ended):
            kept += len(job.keys or b"")
            if job.part.state == "done" or kept > KEYS_KEPT:
                job.keys = None

    def close(self) -> None:
        """The instance ends: what its jobs hold is given back."""
        for job in self.running:
            self._end(job, "failed", "left", "the instance has left")
        self._agent.fetches.rest()

    # ------------------------------------------------------------ what is told

    def _tell(self, job: _Job) -> None:
        self._version += 1
        job.version, job.told_at = self._version, self._clock()
        job.told = msgspec.structs.replace(job.part)

    def _now(self, job: _Job) -> Part:
        now, part = self._clock(), job.part
        until = job.ended if part.state in ENDED else now
        return msgspec.structs.replace(
            part,
            age=now - job.taken,
            seconds=until - job.began if job.began else 0.0,
            ended_age=now - job.ended if part.state in ENDED else 0.0,
        )

    def news(self, since: int) -> list[tuple[int, Message]]:
        """What has changed since that version, each with its own, in their order. Of each job only
        how it stands now."""
        if since == self._version:
            return []
        changed = [job for job in self._jobs.values() if job.version > since]
        changed.sort(key=lambda job: job.version)
        epoch = self._agent.epoch
        return [(job.version, Job(epoch, self._now(job))) for job in changed]

    def states(self) -> dict[str, int]:
        """How many there are in each state that is no end; any thread may ask."""
        states = [job.part.state for job in list(self._jobs.values())]
        return {state: states.count(state) for state in OPEN}


def split(keys: bytes) -> list[bytes]:
    return [keys[at : at + KEY] for at in range(0, len(keys), KEY)]


def seconds(arguments: Mapping[str, str], name: str) -> float:
    """An argument that is a duration; 0.0: it is not given. Raises Failed."""
    text = arguments.get(name, "")
    try:
        value = float(text or "0")
    except ValueError:
        value = -1.0
    if not (0 <= value <= LONGEST and len(text) <= 32):
        said = f"{name} = {text[:20]!r}: allowed are seconds from 0 to {LONGEST:g}"
        raise Failed("field", said, name)
    return value
