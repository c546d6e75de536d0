"""Jobs as the instances tell of them: take() in, pages of them out.

Nothing here is kept that is not told again: a job is its parts, one of each instance, and a
controller that has just begun hears of them all. `add` puts in what this controller has sent and
not been told of yet. tick() ends the parts of instances that are gone, or tell no more of them, so
that no job waits for them. Bounded: of more than `KEPT` jobs those that began first, and have
ended, are forgotten. No sockets; the clock is given.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import nlargest
from itertools import chain, islice

from msgspec.structs import replace

from lmkv.controller.events import History
from lmkv.controller.instance import Instance
from lmkv.core.clock import Clock
from lmkv.core.messages import (
    ENDED,
    MOVING,
    OPEN,
    OPERATIONS,
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
SHOWN = ("failed", "running", "queued", "cancelled", "done")  # whose parts come first
SUMMED = ("chunks", "chunks_total", "bytes", "bytes_total")
MOST = (1 << 64) - 1  # of a number that is told
PAGE = 250
UNHEARD = 10.0  # seconds after which a part that nobody tells of has failed,
SILENT = 60.0  # and one of which its instance, which is there, tells no more: it tells each 20 s
LOOK_EVERY = 5.0  # seconds between two looks at those
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
    """A job: its parts, and what is asked of them all, added up as they come: there may be many."""

    id: str
    operation: str
    began: float
    state: str = STATES[0]
    parts: dict[str, Told] = field(default_factory=dict)  # by instance
    by_state: dict[str, dict[str, Told]] = field(default_factory=lambda: {s: {} for s in STATES})
    sums: Counter[str] = field(default_factory=Counter)  # of all parts, by `SUMMED`
    skipped: Counter[str] = field(default_factory=Counter)
    source: str = ""
    asked_by: str = ""
    attempt: int = 1
    sent: int = 0  # instances that it was sent to, as the parts say
    at: float = 0.0  # when anything was heard of it
    ended: float = 0.0  # when the last part did
    rate: float = 0.0  # bytes a second, once it has ended

    @property
    def instances(self) -> int:
        return max(len(self.parts), self.sent)

    @property
    def order(self) -> tuple[float, str]:
        return self.began, self.id

    def keep(self, told: Told) -> None:
        """So a part stands from now on."""
        part, name = told.part, told.part.instance
        old = self.parts.get(name)
        if old is not None:
            del self.by_state[old.part.state][name]
            self._add(old.part, -1)
        self.parts[name] = self.by_state[part.state][name] = told
        self._add(part, 1)
        self.sent, self.attempt = max(self.sent, part.parts), max(self.attempt, part.attempt)
        self.source, self.asked_by = self.source or part.source, self.asked_by or part.asked_by
        if part.state in ENDED:
            self.ended = max(self.ended, told.at - part.ended_age)
        self.at = told.at

    def _add(self, part: Part, sign: int) -> None:
        for word in SUMMED:
            self.sums[word] += sign * getattr(part, word)
        for word, chunks in part.skipped.items():
            self.skipped[word] += sign * chunks

    def first(self, states: Iterable[str], most: int) -> Iterator[Told]:
        """So many of the parts in these states, state by state."""
        return islice(chain.from_iterable(self.by_state[state].values() for state in states), most)


@dataclass
class _Waits:
    """An instance's parts that have not ended, and the life of it in which they were there; 0: some
    are of another one."""

    epoch: int
    records: dict[str, Record] = field(default_factory=dict)  # by id


class JobTable:
    def __init__(self, history: History, clock: Clock) -> None:
        self._history = history
        self._clock = clock
        self._jobs: dict[str, Record] = {}
        self._open: dict[str, Record] = {}  # those that have not ended
        self._ended: list[tuple[float, str]] = []  # the others, in their order
        self._waits: dict[str, _Waits] = {}  # by instance
        self._parts = 0  # of all jobs
        self._ticked = self._hears_since = self._looked = clock()
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
        else:
            before = old.part.bytes if old.part.attempt == part.attempt else 0
            self._moved(part.operation, part.bytes - before)
        self._keep(record, Told(part, epoch, now, heard))
        self._judge(record, silent=first and part.state in ENDED)

    def _moved(self, operation: str, more: int) -> None:
        if operation in OPERATIONS and more > 0:
            self.bytes[operation] = min(self.bytes[operation] + more, MOST)

    def _keep(self, record: Record, told: Told) -> None:
        record.keep(told)
        name = told.part.instance
        if told.part.state in OPEN:
            waits = self._waits.setdefault(name, _Waits(told.epoch))
            waits.records[record.id] = record
            waits.epoch = waits.epoch if waits.epoch == told.epoch else 0
        else:
            self._waits_no_more(record, name)

    def _waits_no_more(self, record: Record, name: str) -> None:
        if name in self._waits:
            records = self._waits[name].records
            records.pop(record.id, None)
            if not records:
                del self._waits[name]

    def _room(self, jobs: int = 0, parts: int = 0, but: Record | None = None) -> bool:
        """For so many more, at the price of those that began first of the ones that have ended."""
        while len(self._jobs) + jobs > KEPT or self._parts + parts > PARTS:
            ended = (name for _, name in self._ended if but is None or name != but.id)
            oldest = next(ended, None)
            if oldest is None:
                return False
            self._forget(self._jobs[oldest])
        return True

    def _forget(self, record: Record) -> None:
        del self._jobs[record.id]
        self._opened(record)
        del self._open[record.id]
        self._parts -= len(record.parts)
        for name in record.parts:
            self._waits_no_more(record, name)

    def _opened(self, record: Record) -> None:
        if record.id not in self._open:
            del self._ended[bisect_left(self._ended, record.order)]
            self._open[record.id] = record

    def _closed(self, record: Record) -> None:
        if self._open.pop(record.id, None) is not None:
            insort(self._ended, record.order)
            record.rate = _rate(record.parts.values(), self._clock())

    def _judge(self, record: Record, silent: bool = False) -> None:
        """Its state now; a change is an event, but not of one that had ended before we heard."""
        state = _state(record, self._clock())
        if state in ENDED:
            self._closed(record)
        else:
            self._opened(record)
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
        all_of_them = now - self._looked > LOOK_EVERY
        self._looked = now if all_of_them else self._looked
        for name, waits in list(self._waits.items()):
            instance = instances.get(name)
            epoch = 0 if instance is None or instance.state == "dead" else instance.epoch
            if all_of_them or not epoch or epoch != waits.epoch:
                for record in list(waits.records.values()):
                    self._look(record, record.parts[name], instance)
                waits.epoch = epoch
        for record in list(self._open.values()):
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
        self._keep(record, Told(part, told.epoch, self._clock(), told.heard, lost=True))

    # ------------------------------------------------------------ out

    def view(self, record: Record, most: int = PARTS) -> JobState:
        """The job as of now, with `most` of its parts."""
        now = self._clock()
        parts = [_aged(told, now) for told in record.first(SHOWN, most)]
        parts.sort(key=lambda part: (part.state != "failed", part.state in ENDED, part.instance))
        running = record.by_state["running"].values()
        code, reason = _reason(record)
        ended = record.state in ENDED
        return JobState(
            record.id,
            record.operation,
            record.state,
            parts,
            record.instances,
            record.source,
            min(record.sums["chunks"], MOST),
            min(record.sums["chunks_total"], MOST),
            min(record.sums["bytes"], MOST),
            min(record.sums["bytes_total"], MOST),
            {word: min(chunks, MOST) for word, chunks in record.skipped.items() if chunks},
            record.rate if ended else _rate(running, now),
            0.0 if ended else _eta(running, now),
            code,
            reason,
            record.asked_by,
            record.attempt,
            max(0.0, now - record.began),
            max(0.0, now - record.ended) if ended else 0.0,
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
        source=printable(part.source),
        skipped={printable(w[:WORD]): n for w, n in islice(part.skipped.items(), WORDS)},
        code=printable(part.code[:WORD]),
        reason=printable(part.reason[:REASON]),
        asked_by=printable(part.asked_by),
        owner=printable(part.owner),
        command=part.command[:WORD],
    )


def _progress(part: Part) -> tuple[int, int, int]:
    """It only grows, whatever a part tells."""
    state = min(STATES.index(part.state), len(OPEN))  # an end is an end
    return part.attempt, state, part.chunks


def _state(record: Record, now: float) -> str:
    states = {state for state, parts in record.by_state.items() if parts}
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
    failed = record.by_state["failed"]
    for told in failed.values():
        part, more = told.part, len(failed) - 1
        text = f"{part.instance}: {part.reason}" if record.instances > 1 else part.reason
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
        seconds=_ran(told, now),
        ended_age=part.ended_age + more if part.state in ENDED else 0.0,
    )


def _ran(told: Told, now: float) -> float:
    """Seconds that it has run by now."""
    more = max(0.0, now - told.at) if told.part.state == "running" else 0.0
    return told.part.seconds + more


def _rate(parts: Iterable[Told], now: float) -> float:
    """Bytes a second, of all these while they ran; 0 where none are moved."""
    moving = (told for told in parts if told.part.operation in MOVING)
    return sum(told.part.bytes / ran for told in moving if (ran := _ran(told, now)) > 0)


def _eta(running: Iterable[Told], now: float) -> float:
    """Seconds until the last of these has ended, if it goes on as so far; 0: not known."""
    found = [0.0]
    for told in running:
        part = told.part
        done, whole = part.bytes, part.bytes_total
        if not whole:
            done, whole = part.chunks, part.chunks_total
        if done and whole > done:
            found.append(_ran(told, now) * (whole - done) / done)
    return min(max(found), 1e9)
