"""Jobs as the instances tell of them: take() in, pages of them out.

Nothing here is kept that is not told again: a job is its parts, one of each instance, and a
controller that has just begun hears of them all. `add` puts in what this controller has sent and
not been told of yet. tick() ends the parts of instances that are gone, or tell no more of them, so
that no job waits for them. Bounded: of more than `KEPT` jobs those that began first, and have
ended, are forgotten. No sockets; the clock is given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from heapq import nlargest

from msgspec.structs import replace

from lmkv.controller.events import History
from lmkv.controller.instance import Instance
from lmkv.core.clock import Clock
from lmkv.core.messages import (
    ENDED,
    MOVING,
    OPEN,
    STATES,
    Jobs,
    JobsInfo,
    JobState,
    Part,
    Refused,
)
from lmkv.core.text import printable

KEPT = 1024  # jobs
PARTS = 1 << 16  # of all of them
LISTED = 16  # parts of each job of a page, those that failed first
PAGE = 250
UNHEARD = 10.0  # seconds after which a part that nobody tells of has failed,
SILENT = 60.0  # and one of which its instance, which is there, tells no more: it tells each 20 s
STILL = 5.0  # between two ticks: this process was stopped, and nobody could be heard
REASON, WORD, WORDS = 512, 64, 16  # characters of a reason and of a word; kinds of skipped chunks


@dataclass
class Told:
    """A part, of which life of its instance, and when that was so. `heard`: the instance said it
    itself; `lost`: until it seemed to be gone."""

    part: Part
    epoch: int
    at: float
    heard: bool
    lost: bool = False

    def outruns(self, epoch: int, part: Part) -> bool:
        """Whether this was said after that, which has only been longer on its way."""
        same = self.heard and not self.lost and self.epoch == epoch
        return same and _progress(self.part) > _progress(part)


@dataclass
class Record:
    id: str
    operation: str
    began: float
    state: str = STATES[0]
    parts: dict[str, Told] = field(default_factory=dict)  # by instance
    at: float = 0.0  # when anything was heard of it

    @property
    def instances(self) -> int:
        return max([len(self.parts), *(told.part.parts for told in self.parts.values())])

    @property
    def order(self) -> tuple[float, str]:
        return self.began, self.id


class JobTable:
    def __init__(self, history: History, clock: Clock) -> None:
        self._history = history
        self._clock = clock
        self._jobs: dict[str, Record] = {}
        self._open: dict[str, Record] = {}  # those that have not ended
        self._parts = 0  # of all jobs
        self._ticked = self._hears_since = clock()
        self.ended: Counter[str] = Counter()  # that ended here, by state
        self.bytes: Counter[str] = Counter()  # by operation

    def __len__(self) -> int:
        return len(self._jobs)

    def full(self, parts: int = 1) -> bool:
        """Whether so many more would be too many, even if all that has ended were forgotten."""
        taken = sum(len(record.parts) for record in self._open.values())
        return len(self._open) >= KEPT or taken + parts > PARTS

    @property
    def states(self) -> dict[str, int]:
        return dict(Counter(record.state for record in self._jobs.values()))

    def find(self, name: str) -> Record | None:
        return self._jobs.get(name)

    # ------------------------------------------------------------ in

    def take(self, instance: Instance, part: Part) -> None:
        """An instance tells of its part. Raises ValueError for one that is none of its own."""
        if part.instance != instance.name:
            raise ValueError(f"part: {instance.name!r} tells of one of {part.instance!r}")
        if part.state not in STATES:
            raise ValueError(f"state {part.state[:WORD]!r}: allowed is one of {', '.join(STATES)}")
        self._put(instance.epoch, _bounded(part), heard=True)

    def add(self, instance: Instance, part: Part) -> None:
        """What is sent there, or has not come there: unless it has been told of since."""
        record = self._jobs.get(part.id)
        told = record.parts.get(part.instance) if record is not None else None
        if told is None or not told.heard:
            self._put(instance.epoch, _bounded(part), heard=False)

    def drop(self, name: str) -> None:
        """A job that nobody has taken, unless somebody tells of it all the same."""
        record = self._jobs.get(name)
        if record is not None and not any(told.heard for told in record.parts.values()):
            self._forget(record)

    def _put(self, epoch: int, part: Part, heard: bool) -> None:
        now = self._clock()
        record = self._jobs.get(part.id)
        first = record is None
        if record is None:
            if not self._room(jobs=1):
                return
            record = Record(part.id, part.operation, now - part.age)
            self._jobs[part.id] = self._open[part.id] = record
        old = record.parts.get(part.instance)
        if old is not None and heard and old.outruns(epoch, part):
            return
        if old is None:
            if not self._room(parts=1, but=record):
                return
            self._parts += 1
        elif old.part.attempt == part.attempt:
            self.bytes[part.operation] += max(0, part.bytes - old.part.bytes)
        record.parts[part.instance] = Told(part, epoch, now, heard)
        record.at = now
        self._judge(record, silent=first and part.state in ENDED)

    def _room(self, jobs: int = 0, parts: int = 0, but: Record | None = None) -> bool:
        """For so many more, at the price of those that began first of the ones that have ended."""
        while len(self._jobs) + jobs > KEPT or self._parts + parts > PARTS:
            ended = [
                record
                for name, record in self._jobs.items()
                if name not in self._open and record is not but
            ]
            if not ended:
                return False
            self._forget(min(ended, key=lambda record: record.order))
        return True

    def _forget(self, record: Record) -> None:
        del self._jobs[record.id]
        self._open.pop(record.id, None)
        self._parts -= len(record.parts)

    def _judge(self, record: Record, silent: bool = False) -> None:
        """Its state now; a change is an event, but not of one that had ended before we heard."""
        state = _state(record, self._clock())
        if state in ENDED:
            self._open.pop(record.id, None)
        else:
            self._open[record.id] = record
        if state == record.state:
            return
        record.state = state
        if silent:
            return
        if state in ENDED:
            self.ended[state] += 1
        names = list(record.parts)
        where = names[0] if record.instances == 1 else ""
        _, reason = _reason(record)
        text = f"{record.operation} {_SAID[state]}" + (f": {reason}" if reason else "")
        self._history.add("job", where, text, record.id)

    # ------------------------------------------------------------ who is gone

    def tick(self, instances: Mapping[str, Instance]) -> None:
        now = self._clock()
        if now - self._ticked > STILL:
            self._hears_since = now
        self._ticked = now
        for record in list(self._open.values()):
            for name, told in list(record.parts.items()):
                if told.part.state not in ENDED:
                    self._look(record, told, instances.get(name))
            self._judge(record)

    def _look(self, record: Record, told: Told, instance: Instance | None) -> None:
        name = told.part.instance
        if instance is None:
            why = f"instance {name!r} left before it had ended"
        elif instance.epoch != told.epoch:
            why = f"instance {name!r} was started anew, and does not remember it"
        elif instance.state == "dead":
            why = f"instance {name!r} died before it had ended"
        elif told.heard and self._clock() - max(told.at, self._hears_since) > SILENT:
            why = f"instance {name!r} tells nothing more of it; what became of it is not known here"
        else:
            return
        part = replace(told.part, state="failed", code="instance_gone", reason=why)
        part.age += self._clock() - told.at
        record.parts[name] = Told(part, told.epoch, self._clock(), told.heard, lost=True)
        record.at = self._clock()

    # ------------------------------------------------------------ out

    def view(self, record: Record, most: int = PARTS) -> JobState:
        """The job as of now, with `most` of its parts."""
        now = self._clock()
        parts = [_aged(told, now) for told in record.parts.values()]
        parts.sort(key=lambda part: (part.state != "failed", part.state in ENDED, part.instance))
        code, reason = _reason(record)
        skipped: Counter[str] = Counter()
        for part in parts:
            skipped.update(part.skipped)
        ended = record.state in ENDED
        return JobState(
            record.id,
            record.operation,
            record.state,
            parts[:most],
            record.instances,
            next((part.source for part in parts if part.source), ""),
            _sum(part.chunks for part in parts),
            _sum(part.chunks_total for part in parts),
            _sum(part.bytes for part in parts),
            _sum(part.bytes_total for part in parts),
            dict(skipped),
            _rate(parts),
            0.0 if ended else _eta(parts),
            code,
            reason,
            next((part.asked_by for part in parts if part.asked_by), ""),
            max(part.attempt for part in parts),
            max(0.0, now - record.began),
            min(part.ended_age for part in parts) if ended else 0.0,
        )

    def page(self, question: Jobs) -> JobsInfo | Refused:
        if question.state and question.state not in STATES:
            text = f"state {question.state[:WORD]!r}: allowed is one of {', '.join(STATES)}"
            return Refused("field", text, "state", question.request)
        found = [
            record
            for record in self._jobs.values()
            if question.state in ("", record.state)
            and (not question.instance or question.instance in record.parts)
        ]
        total = len(found)
        if question.after:
            last = self._jobs.get(question.after)
            if last is None:
                return replace(unknown_job(question.after, question.request), field="after")
            found = [record for record in found if record.order < last.order]
        limit = min(max(1, question.limit), PAGE)
        page = nlargest(limit, found, key=lambda record: record.order)
        following = page[-1].id if len(found) > limit else ""
        shown = [self.view(record, LISTED) for record in page]
        return JobsInfo(question.request, shown, following, total, self.states)


_SAID = {
    "queued": "waits", "running": "runs", "done": "is done", "failed": "failed",
    "cancelled": "was cancelled",
}  # fmt: skip


def unknown_job(name: str, request: int) -> Refused:
    text = f"job {name[:WORD]!r} is not known here: the last {KEPT} are remembered"
    return Refused("unknown_job", text, "id", request)


def _bounded(part: Part) -> Part:
    """With texts that can be kept and shown."""
    return replace(
        part,
        operation=printable(part.operation[:WORD]),
        skipped=dict(list(part.skipped.items())[:WORDS]),
        code=printable(part.code[:WORD]),
        reason=printable(part.reason[:REASON]),
        command=part.command[:WORD],
    )


def _progress(part: Part) -> tuple[int, int, int]:
    """It only grows, whatever a part tells."""
    state = min(STATES.index(part.state), len(OPEN))  # an end is an end
    return part.attempt, state, part.chunks


def _state(record: Record, now: float) -> str:
    states = {told.part.state for told in record.parts.values()}
    missing = len(record.parts) < record.instances
    if states == {"queued"}:
        return "queued"
    if states - set(ENDED) or (missing and now - record.at < UNHEARD):
        return "running"
    if missing or "failed" in states:
        return "failed"
    return "cancelled" if "cancelled" in states else "done"


def _reason(record: Record) -> tuple[str, str]:
    """Code and sentence of a job that failed, of the first part that did."""
    failed = [told.part for told in record.parts.values() if told.part.state == "failed"]
    several = record.instances > 1
    for part in failed:
        text = f"{part.instance}: {part.reason}" if several else part.reason
        more = len(failed) - 1
        return part.code, text + (f" (and {more} more)" if more else "")
    if record.state == "failed":
        missing = record.instances - len(record.parts)
        text = f"{missing} of {record.instances} instances told nothing of it in {UNHEARD:g} s"
        return "instance_gone", text
    return "", ""


def _aged(told: Told, now: float) -> Part:
    part, more = told.part, max(0.0, now - told.at)
    return replace(
        part,
        age=part.age + more,
        seconds=part.seconds + (more if part.state == "running" else 0.0),
        ended_age=part.ended_age + more if part.state in ENDED else 0.0,
    )


def _rate(parts: Iterable[Part]) -> float:
    """Bytes a second, of all parts while they ran; 0 where none are moved."""
    moving = (part for part in parts if part.operation in MOVING and part.seconds > 0)
    return sum(part.bytes / part.seconds for part in moving)


def _eta(parts: Iterable[Part]) -> float:
    """Seconds until the last part that runs has ended, if it goes on as so far; 0: not known."""
    found = [0.0]
    for part in parts:
        if part.state != "running":
            continue
        done, whole = part.bytes, part.bytes_total
        if not whole:
            done, whole = part.chunks, part.chunks_total
        if done and whole > done:
            found.append(part.seconds * (whole - done) / done)
    return min(max(found), 1e9)


def _sum(numbers: Iterable[int]) -> int:
    return min(sum(numbers), (1 << 64) - 1)
