"""Stores: reserve -> a Store in the step's plan -> every rank reports -> admit, or abort.

Until its gather has ended a store's source blocks must not be overwritten: `must_wait()` names the
jobs whose blocks a step is about to reuse. Planned by the scheduler thread, ended by the background
thread; one lock holds the jobs.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

from lmkv import _native
from lmkv.agent.refusals import Refuse, ignore
from lmkv.core.messages import Stored
from lmkv.core.steps import Store


def confirmed(computed: int, scheduled: int, known: int, prompt: int, volatile: int = 0) -> int:
    """Tokens whose KV is there for good after a step that is given `scheduled` of them.

    vLLM counts drafts and what is in flight as `computed`: no token counts before it is `known`.
    Where decoding may come back to its last `volatile` tokens (a draft head's KV), those beyond the
    prompt do not count either.
    """
    there = min(computed + scheduled, known)
    return max(min(there, prompt), there - volatile)


@dataclass
class _Job:
    place: bytes
    counter: bytes
    blocks: list[int]
    waiting: set[int]
    good: bool = True


class Stores:
    def __init__(self, table: _native.SlotTable, ranks: int, refuse: Refuse = ignore) -> None:
        self._refuse = refuse
        self._table = table
        self._ranks = ranks
        self._lock = threading.Lock()
        self._jobs: dict[int, _Job] = {}
        self._sources: dict[int, int] = {}  # block -> job
        self._next = 1
        self.no_room = 0  # chunks that found no slot

    def plan(
        self, chunks: list[tuple[bytes, list[int]]], now: float, group: int = 0
    ) -> list[Store]:
        """Reserve for (key, blocks) each, of one cache group. No room is no error: what does
        not fit is not stored."""
        room = self._table.reserve(b"".join(key for key, _ in chunks), now)
        if room is not None:
            return self._begin(chunks, group, *room)
        stores: list[Store] = []
        for chunk in chunks:  # as many as there is room for, from the head
            room = self._table.reserve(chunk[0], now)
            if room is None:
                break
            stores += self._begin([chunk], group, *room)
        self.no_room += len(chunks) - len(stores)
        return stores

    def _begin(
        self, chunks: list[tuple[bytes, list[int]]], group: int, places: bytes, counters: bytes
    ) -> list[Store]:
        stores = []
        with self._lock:
            for i, (key, blocks) in enumerate(chunks):
                place, counter = places[i * 8 : i * 8 + 8], counters[i * 4 : i * 4 + 4]
                job, self._next = self._next, self._next + 1
                self._jobs[job] = _Job(place, counter, blocks, set(range(self._ranks)))
                self._sources.update(dict.fromkeys(blocks, job))
                number = int.from_bytes(counter, "little")
                stores.append(Store(job, key, place, number, blocks, group))
        return stores

    def must_wait(self, blocks: Iterable[int]) -> list[int]:
        """Jobs that still read one of these blocks."""
        with self._lock:
            if not self._sources:
                return []
            return sorted({self._sources[b] for b in blocks if b in self._sources})

    def stored(self, message: Stored, frames: list[bytes]) -> bool:
        """A rank's report; True when slots became readable."""
        with self._lock:
            job = self._jobs.get(message.job)
            if job is None or message.rank not in job.waiting:
                return False
            job.waiting.discard(message.rank)
            job.good &= self._result(message, frames)
            if job.waiting:
                return False
            del self._jobs[message.job]
            for block in job.blocks:
                if self._sources.get(block) == message.job:
                    del self._sources[block]
        if job.good and self._table.admit(job.place, job.counter):
            return True
        # Failed, or of an epoch that has ended: the slot is taken until it is given up.
        self._table.abort(job.place, job.counter)
        return False

    def _result(self, message: Stored, frames: list[bytes]) -> bool:
        if len(frames) != 3 or len(frames[2]) != 1:
            sizes = [len(frame) for frame in frames]
            what = f"stored of rank {message.rank}: frames of {sizes} bytes, the third is a result"
            self._refuse("message", what)
            return False
        return frames[2] == b"\x01"

    @property
    def open(self) -> int:
        with self._lock:
            return len(self._jobs)
