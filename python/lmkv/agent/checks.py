"""Slots digested again by every rank: the command `verify`, on the instance's side.

verify() runs in a command's thread: it samples readable slots, a few at a time, and waits;
`send` and `heard` are the background thread's, whose sockets the workers are at. A slot that the
table has meanwhile given away is not wrong, whatever is in it. A job that wants some digested
(`digested`) is the background thread's too, and yields while it waits.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Generator, Sequence

from lmkv import _native
from lmkv.agent.commands import Failed, Frames, number
from lmkv.agent.links import Link
from lmkv.core import wire
from lmkv.core.clock import Deadline
from lmkv.core.geometry import GRANULES_A_SLOT
from lmkv.core.messages import MAX_KEYS, Check, Checked, Command, Differing, PullResult, SlotsResult

KEY, PLACE, COUNTER = wire.KEY_BYTES, wire.PLACE_BYTES, wire.COUNTER_BYTES
SAMPLE, MOST = 64, 1 << 20  # slots, where no number is given, and at most
BATCH = 32  # slots that the ranks are asked about at once
SPARE = 0.5  # seconds before the deadline in which the answer goes back
WRONG = 256  # that are named
POLL = 0.02  # seconds between two looks of a job

Slot = tuple[bytes, bytes, bytes]  # key, place, counter


class Checks:
    def __init__(
        self,
        table: _native.SlotTable,
        ranks: int,
        epoch: Callable[[], int],
        wake: Callable[[], None],
    ) -> None:
        self._table = table
        self._ranks = ranks
        self._epoch = epoch
        self._wake = wake
        self._one = threading.Lock()  # a verify at a time
        self._condition = threading.Condition()
        self._job = 0
        self._unsent: tuple[Check, Frames] | None = None
        self._size = 0  # slots of the job
        self._results: dict[int, bytes] = {}  # of the job, by rank

    # ------------------------------------------------------------ a command's thread

    def verify(
        self, command: Command, frames: Frames, until: Deadline
    ) -> tuple[SlotsResult, Frames]:
        sample = number(command, "sample", SAMPLE, 0, MOST)
        if not self._one.acquire(blocking=False):
            raise Failed("busy", "another verify runs here: try again later")
        try:
            epoch = self._epoch()
            slots = self._readable()
            result = SlotsResult(len(slots))
            chosen = random.sample(slots, min(sample, len(slots)))
            for at in range(0, len(chosen), BATCH):
                if until.left() <= SPARE or len(result.wrong) >= WRONG:
                    break
                if self._epoch() != epoch:  # its counters begin anew: the rest is another's
                    break
                batch = chosen[at : at + BATCH]
                result.wrong += self._wrong(batch, epoch, until)
                result.sampled += len(batch)
            return result, []
        finally:
            self._one.release()

    def _readable(self) -> list[Slot]:
        found: list[Slot] = []
        step, end = MAX_KEYS * GRANULES_A_SLOT, self._table.usable * GRANULES_A_SLOT
        for first in range(0, end, step):
            found += slots_of(*self._table.slice(first, min(end, first + step)))
        return found

    def _wrong(self, batch: Sequence[Slot], epoch: int, until: Deadline) -> list[Differing]:
        results = self._ask(batch, epoch, until)
        found = []
        for i, (key, place, counter) in enumerate(batch):
            for rank, result in sorted(results.items()):
                if result[i] == PullResult.GOOD:
                    continue
                if self._table.places(key)[:2] == (place, counter) and self._epoch() == epoch:
                    how = "digest" if result[i] == PullResult.DIGEST else "header"
                    found.append(Differing(key.hex(), how, rank))
        return found

    def _ask(self, batch: Sequence[Slot], epoch: int, until: Deadline) -> dict[int, bytes]:
        with self._condition:
            self._begin(batch, epoch)
            self._wake()
            while len(self._results) < self._ranks:
                if until.over:
                    silent = sorted(set(range(self._ranks)) - self._results.keys())
                    text = f"rank {silent[0]} did not digest its slots in time"
                    raise Failed("timeout", text)
                self._condition.wait(until.left())
            return self._results

    def _begin(self, batch: Sequence[Slot], epoch: int) -> None:
        arrays = [b"".join(each) for each in zip(*batch)]
        self._job += 1
        self._unsent, self._size = (Check(self._job, epoch), arrays), len(batch)
        self._results = {}

    # ------------------------------------------------------------ the background thread

    def digested(
        self, batch: Sequence[Slot], epoch: int, until: Deadline
    ) -> Generator[float, None, list[bool]]:
        """Whether each of at most `BATCH` slots has its digests in every rank. Raises Failed."""
        while not self._one.acquire(blocking=False):  # a verify goes on
            _in_time(until, "another verify runs here, and did not end")
            yield POLL
        try:
            with self._condition:
                self._begin(batch, epoch)
            while len(self._results) < self._ranks:
                _in_time(until, "a rank did not digest its slots")
                yield POLL
            results = list(zip(*self._results.values()))
            return [all(each == PullResult.GOOD for each in ranks) for ranks in results]
        finally:
            self._one.release()

    def send(self, links: Sequence[Link]) -> None:
        if self._unsent is None:
            return
        with self._condition:
            (check, arrays), self._unsent = self._unsent, None
        for link in links:
            link.send(check, *arrays)

    def heard(self, message: Checked, frames: Frames) -> None:
        """WireError: not what was asked for."""
        with self._condition:
            if message.job != self._job or message.rank >= self._ranks:
                return
            if wire.counts(frames, 1) != self._size:
                raise wire.WireError(f"checked: {len(frames[0])} results, expected {self._size}")
            self._results[message.rank] = frames[0]
            self._condition.notify_all()


def _in_time(until: Deadline, what: str) -> None:
    if until.over:
        raise Failed("timeout", f"{what} in time")


def slots_of(keys: bytes, places: bytes, counters: bytes) -> list[Slot]:
    return [
        (
            keys[i * KEY : (i + 1) * KEY],
            places[i * PLACE : (i + 1) * PLACE],
            counters[i * COUNTER : (i + 1) * COUNTER],
        )
        for i in range(len(keys) // KEY)
    ]
