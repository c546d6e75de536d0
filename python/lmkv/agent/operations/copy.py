"""copy: chunks are pulled from other instances; move: and then taken out of use there.

A batch at a time: find -> pull -> (move) wait until it is announced -> retire at the source. What
is counted as copied has been checked against its digests by every rank; a move has what was here
already digested again before the source gives its own up, and holds a batch until that has.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from lmkv.agent.checks import BATCH, Slot
from lmkv.agent.commands import Failed
from lmkv.agent.fetches import Found, arrays_of, sources_of
from lmkv.agent.jobs import SOON, STEP, Run, Steps
from lmkv.agent.relay import POLL
from lmkv.agent.request import Source
from lmkv.core import wire
from lmkv.core.clock import Deadline
from lmkv.core.geometry import GRANULES_A_SLOT
from lmkv.core.messages import PullResult, Retired

BATCH_BYTES = 32 << 20  # of all ranks, in one pull: a request's may wait for it
HOLDERS = 3  # of one batch that are tried, where none is named
STORED = 10.0  # seconds that a chunk which is being stored here is waited for
CHECKED = 10.0  # seconds that ranks have to digest a batch
NAMED = 4  # times that a source is told which slots to give up: it may have compressed them
ANNOUNCED = 5.0  # seconds that announcements have to leave
RESERVED = 2  # as the table says it


def needs_a_source(arguments: Mapping[str, str], whole: bool) -> None:
    """The check of both: a whole instance is copied from one that is named."""
    if whole and not arguments.get("source"):
        text = "source: must be named to copy or move a whole instance"
        raise Failed("field", text, "source")


def copy(run: Run) -> Steps:
    yield from _Copy(run, move=False).steps()


def move(run: Run) -> Steps:
    yield from _Copy(run, move=True).steps()


@dataclass
class _Copy:
    run: Run
    move: bool
    room: int = 0  # slots that it may still take
    wrong: int = 0  # chunks without their digests at the source,
    wrong_here: int = 0  # and here
    came: int = 0  # chunks that were copied, or were here
    differs: str = ""  # where only instances that differ have a chunk
    others: list[bytes] = field(default_factory=list)  # the batch's that somebody else brings here
    sources: dict[bytes, Source] = field(default_factory=dict)  # of the batch's chunks
    epochs: dict[str, int] = field(default_factory=dict)  # of those who have them

    def steps(self) -> Steps:
        run, source = self.run, self.run.part.source
        if source == run.agent.instance:
            raise Failed("field", f"source = {source!r}: that is this instance", "source")
        slots = run.agent.table.granules()
        taken = slots["pinned"] + slots["reserved"] + slots["limbo"]
        self.room = run.agent.table.usable - taken // GRANULES_A_SLOT
        if self.room <= 0:
            text = f"all {run.agent.table.usable} slots of the pool are pinned or taken"
            raise Failed("no_room", text)
        if run.keys is None:
            yield from self._pages(source)
        else:
            for keys in run.batches():
                yield from self._batch(keys, None)
            for at in range(len(run.keys) // STEP * STEP, -1, -STEP):  # so its tail ages first
                run.agent.lookup(b"".join(run.keys[at : at + STEP]))
                yield SOON
        self._judge()

    def _pages(self, source: str) -> Steps:
        """All that is readable at the source."""
        first, more = 0, True
        while more:
            found = yield from self.run.agent.fetches.named(source, None, first, STEP)
            if not first:
                self.run.part.chunks_total = found.slots
            if found.sources:
                yield from self._batch(list(found.sources), found)
            first, more = found.next, found.next > first

    def _judge(self) -> None:
        source = f"instance {self.run.part.source!r}" if self.run.part.source else "no instance"
        if self.wrong:
            text = f"{self.wrong} chunks did not have their digests at the source: not taken"
            raise Failed("digest", text)
        if self.wrong_here:
            text = f"{self.wrong_here} chunks that were here did not have their digests: they are "
            raise Failed("digest", text + "given up, and their source keeps its own; try again")
        if not self.came and self.differs:
            text = f"only instances of another {self.differs} have these chunks"
            raise Failed("incompatible", text)
        if not self.came and self.run.keys and self.run.part.skipped.get("absent"):
            has = "has none" if self.run.part.source else "has any"
            raise Failed("unknown_prefix", f"{source} {has} of these chunks")

    # ------------------------------------------------------------ a batch

    def _batch(self, keys: Sequence[bytes], known: Found | None) -> Steps:
        """`known`: where they are, if it is."""
        run, table = self.run, self.run.agent.table
        self.sources, self.others = {}, []
        left = yield from self._not_here(keys)
        present = [key for key in keys if key not in left]
        run.count(len(present), skipped="present")
        good: list[bytes] = []
        failure: _PeerFailed | None = None
        run.agent.fetches.forgive()
        for attempt in range(HOLDERS):
            if not left:
                break
            found = known if known and not attempt else (yield from self._find(left))
            if failure is not None and not all(key in found.sources for key in left):
                raise Failed(failure.code, failure.sentence)  # nobody else has them
            try:
                good += yield from self._bring(left, found)
                left = []
            except _PeerFailed as failed:
                left = [key for key in failed.left if not table.contains(key)[0]]
                self.others += [key for key in failed.left if key not in left]
                good += failed.good
                failure = failed
                if run.part.source or attempt == HOLDERS - 1:
                    raise Failed(failed.code, failed.sentence) from None
                run.agent.fetches.failed(failed.peer)
        present += yield from self._brought()
        self.came += len(present) + len(good)
        if self.move:
            yield from self._give_up(good, present, known)

    def _not_here(self, keys: Sequence[bytes]) -> Generator[float, None, list[bytes]]:
        """Those that are not readable here, once what is being stored has been."""
        table, until = self.run.agent.table, Deadline(STORED, self.run.clock)
        while RESERVED in table.contains(b"".join(keys)) and not until.over:
            yield POLL
        return [key for key in keys if not self.run.agent.lookup(key)]

    def _brought(self) -> Generator[float, None, list[bytes]]:
        """Those that somebody else has brought, or computed."""
        missing = yield from self._not_here(self.others)
        self.run.count(len(missing), skipped="absent")
        self.run.count(len(self.others) - len(missing), skipped="present")
        return [key for key in self.others if key not in missing]

    def _find(self, keys: Sequence[bytes]) -> Generator[float, None, Found]:
        fetches, source = self.run.agent.fetches, self.run.part.source
        if source:
            found = yield from fetches.named(source, keys)
        else:
            found = yield from fetches.find(keys)
            self.differs = self.differs or found.differs
        return found

    def _bring(self, keys: Sequence[bytes], found: Found) -> Generator[float, None, list[bytes]]:
        """The chunks that came, one pull after the other. Raises _PeerFailed."""
        run, good = self.run, list[bytes]()
        there = [key for key in keys if key in found.sources]
        run.count(len(keys) - len(there), skipped="absent")
        run.count(len(there[self.room :]), skipped="limit")
        left = there[: self.room]
        most = max(1, BATCH_BYTES // run.agent.slot_bytes)
        while left:
            peer = found.sources[left[0]].peer
            chunks = [key for key in left if found.sources[key].peer == peer][:most]
            yield from run.paced(len(chunks) * run.agent.slot_bytes)
            results, size = yield from run.agent.fetches.pull(
                found.peers[peer], {key: found.sources[key] for key in chunks}
            )
            came = [key for key in chunks if results.get(key) == PullResult.GOOD]
            good += came
            self._has_them(found, came)
            self.room -= len(came)
            run.count(len(came), size)
            left = [key for key in left if key not in chunks]
            again = self._results(results, chunks)
            if failed := _failure(peer, results):
                raise _PeerFailed(peer, *failed, good, again + left)
            yield SOON
        return good

    def _results(self, results: Mapping[bytes, int], chunks: Sequence[bytes]) -> list[bytes]:
        """Counts what did not come; those of a peer that failed, which others may have."""
        run, again = self.run, []
        for key in chunks:
            result = results.get(key)
            if result is None:  # a request had begun to bring it
                self.others.append(key)
            elif result == PullResult.GONE:
                run.count(1, skipped="absent")
            elif result == PullResult.DIGEST:
                self.wrong += 1
                run.count(1, skipped="absent")
            elif result == PullResult.INCOMPATIBLE:
                self.differs = self.differs or "layout"
                run.count(1, skipped="incompatible")
            elif result != PullResult.GOOD:
                again.append(key)
        return again

    # ------------------------------------------------------------ move

    def _give_up(
        self, good: Sequence[bytes], present: Sequence[bytes], known: Found | None
    ) -> Steps:
        """The sources retire what is here with its digests; until then it is held here."""
        slots = self.run.agent.slots
        here = slots.hold(good)
        try:
            sure = [key for key, *_ in here]
            if present:
                found = known or (yield from self._find(present))
                self._has_them(found, present)
                were_here = slots.hold(key for key in present if key in self.sources)
                here += were_here
                sure += yield from self._digested(were_here)
            yield from self._announced()
            for peer in dict.fromkeys(self.sources[key].peer for key in sure):
                named = {key: self.sources[key] for key in sure if self.sources[key].peer == peer}
                yield from self._retire(peer, named)
        finally:
            slots.let_go(here)

    def _has_them(self, found: Found, keys: Iterable[bytes]) -> None:
        self.epochs |= {name: ranks[0].epoch for name, ranks in found.peers.items() if ranks}
        there = ((key, found.sources[key]) for key in keys if key in found.sources)
        self.sources |= {key: source for key, source in there if source.peer in self.epochs}

    def _digested(self, slots: Sequence[Slot]) -> Generator[float, None, list[bytes]]:
        """Those that every rank has found to have their digests."""
        run, table, sure = self.run, self.run.agent.table, list[bytes]()
        for at in range(0, len(slots), BATCH):
            batch = slots[at : at + BATCH]
            until = Deadline(CHECKED, run.clock)
            good = yield from run.agent.checks.digested(batch, run.agent.epoch, until)
            sure += [key for (key, *_), fine in zip(batch, good) if fine]
            for (key, *slot), fine in zip(batch, good):
                if not fine and [*table.places(key)[:2]] == slot:
                    self.wrong_here += table.retire(key, revivable=False)
        return sure

    def _announced(self) -> Steps:
        """Every controller that is there has been sent what became readable. Raises Failed."""
        streams, until = self.run.agent.streams, Deadline(ANNOUNCED, self.run.clock)
        yield SOON  # this turn's changes are put into the outboxes at its end
        waiting = streams.waiting()
        while streams.behind(waiting):
            if until.over:
                text = f"what came could not be announced in {ANNOUNCED:g} s: its source keeps it"
                raise Failed("timeout", text)
            yield POLL

    def _retire(self, peer: str, named: dict[bytes, Source]) -> Steps:
        arguments = {"epoch": f"{self.epochs[peer]:016x}"}
        for _ in range(NAMED):
            result, frames = yield from self.run.agent.fetches.relay.ask(
                peer, "retire", arguments, arrays_of(named)
            )
            try:
                retired = msgspec.msgpack.decode(result, type=Retired)
                named = sources_of(peer, frames) if frames else {}
            except (msgspec.MsgspecError, wire.WireError) as error:
                text = f"instance {peer!r} answered retire with what is none: {error}"
                raise Failed("failed", text) from None
            if retired.pinned:
                self.run.skip("pinned", retired.pinned)
            if not named:
                return
        text = f"instance {peer!r} gives {len(named)} chunks other slots again and again"
        raise Failed("conflict", f"{text}: they are here, and stay there")


class _PeerFailed(Exception):
    """A peer cannot be read from: what had come, and what is left to bring."""

    def __init__(
        self, peer: str, code: str, sentence: str, good: list[bytes], left: list[bytes]
    ) -> None:
        super().__init__(sentence)
        self.peer, self.code, self.sentence = peer, code, sentence
        self.good, self.left = good, left


def _failure(peer: str, results: Mapping[bytes, int]) -> tuple[str, str] | None:
    """(code, sentence) where the peer, or a mover here, did not do what was asked."""
    had = set(results.values())
    if PullResult.MOVER_DOWN in had:
        raise Failed("mover_down", "a mover of this instance ended while it pulled")
    if PullResult.PEER_DEAD in had:
        return "peer_dead", f"instance {peer!r} cannot be read from: it, or its mover, is gone"
    if PullResult.TIMEOUT in had:
        text = f"a pull from instance {peer!r} did not end in time"
        return "pull_timeout", f"{text}: its slots are in limbo until its READ has ended"
    return None
