"""Two levels: a pool of the host, and in front of it, in the GPU's memory, what was used last.

It is this rank's own matter: agent, peers, places and the wire know the host's pool alone. A chunk
is gathered into the front as well when it is stored, and when it was loaded; a load looks there
first. A slot in front says what it is, like any slot: one that was taken for another chunk
meanwhile, or is not whole, is a miss, and the host's is read.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lmkv import _native
from lmkv.core.steps import SKIPPED
from lmkv.worker import gpu_room
from lmkv.worker.copiers import Copiers, Pool, Slot
from lmkv.worker.copies import Once

if TYPE_CHECKING:
    from lmkv.worker.gpu_copiers import GpuCopiers
    from lmkv.worker.page_layout import PageLayout

log = logging.getLogger("lmkv.worker")

Chunk = tuple[int, bytes, int]  # cache group, key, generation


def in_front(copiers: Copiers, pages: Sequence[PageLayout]) -> Copiers:
    """Of the room that was taken for it; the copiers as they are where there is none, which is
    said."""
    from lmkv.worker.gpu_copiers import GpuCopiers

    try:
        room = gpu_room.take(gpu_room.ordinal_of(pages))
        slot = max((group.slot for group in pages), key=lambda slot: slot.granule_bytes)
        pool = gpu_room.cut(room, slot.slot_bytes, slot.granule_bytes)
    except (RuntimeError, ValueError) as error:
        log.warning("lmkv: the pool is the host's alone: %s", error)
        return copiers
    assert isinstance(copiers, GpuCopiers)
    return Front(copiers, pool)


class Front:
    """Copiers that look in front first. `hits` counts the slots that were good there."""

    def __init__(self, copiers: GpuCopiers, pool: _native.GpuPool) -> None:
        self.at_once, self.short_at_once = copiers.at_once, copiers.short_at_once
        self.apart = copiers.apart
        self.hits = 0
        self._copiers = copiers
        self._pool = pool
        self._once = Once()
        self._lock = threading.Lock()  # of stores and loads, which are threads of their own
        self._free = [*range(pool.slots)]
        self._there: OrderedDict[Chunk, int] = OrderedDict()  # slots' numbers, the latest last

    def mark(self) -> Any:
        return self._copiers.mark()

    def gather(self, group: int, slots: Sequence[Slot], after: Any = None) -> None:
        self._copiers.gather(group, slots, after)
        self._put(group, slots, after, urgent=False)

    def audit(self, group: int, slot: Slot) -> bool:
        return self._copiers.audit(group, slot)

    def check(self, group: int, slot: Slot) -> int:
        return self._copiers.check(group, slot)

    def clear(self, group: int, slot: Slot) -> None:
        self._forget_chunk((group, slot.key, slot.generation))
        self._copiers.clear(group, slot)

    def scatter(
        self,
        group: int,
        slots: Sequence[Slot],
        part: _native.SlotPart | None = None,
        after: Any = None,
    ) -> list[int]:
        if part is not None or slots[0].device:  # other heads than ours, or as fast as the front
            return self._copiers.scatter(group, slots, part, after)
        statuses = self._scatter_from_front(group, slots, after)
        rest = [n for n in range(len(slots)) if statuses[n] != _native.SlotStatus.GOOD]
        if not rest:
            return statuses
        loaded = self._copiers.scatter(group, [slots[n] for n in rest], None, after)
        for n, status in zip(rest, loaded):
            statuses[n] = status
        good = [slots[n] for n in rest if statuses[n] == _native.SlotStatus.GOOD]
        self._put(group, [s for s in good if SKIPPED not in s.blocks], after, urgent=True)
        return statuses

    def know(self, pool: Pool, readonly: bool) -> None:
        self._copiers.know(pool, readonly)

    def open(self, handle: bytes, size: int) -> _native.GpuMemory:
        return self._copiers.open(handle, size)

    def forget(self, pool: Pool) -> None:
        self._copiers.forget(pool)

    def _scatter_from_front(self, group: int, slots: Sequence[Slot], after: Any) -> list[int]:
        statuses: list[int] = [_native.SlotStatus.GONE] * len(slots)
        found: list[tuple[int, Slot]] = []
        with self._lock:
            for n, slot in enumerate(slots):
                chunk = group, slot.key, slot.generation
                if chunk in self._there:
                    self._there.move_to_end(chunk)
                    found.append((n, self._in_front(slot, self._there[chunk])))
        if not found:
            return statuses
        try:
            there = self._copiers.scatter(group, [slot for _, slot in found], None, after)
        except RuntimeError as error:
            self._once.exception("the pool in front cannot be read", error)
            return statuses
        for (n, slot), status in zip(found, there):
            statuses[n] = status
            if status == _native.SlotStatus.GOOD:
                self.hits += 1
            else:
                self._forget_chunk((group, slot.key, slot.generation))
        return statuses

    def _put(self, group: int, slots: Sequence[Slot], after: Any, urgent: bool) -> None:
        """From their blocks; what fails leaves the host's slots as they are."""
        taken: list[tuple[Slot, int]] = []
        with self._lock:
            for slot in slots[-self._pool.slots :]:
                if (group, slot.key, slot.generation) in self._there:
                    continue
                if not self._free and not self._there:
                    break  # all is being filled
                number = self._free.pop() if self._free else self._there.popitem(last=False)[1]
                taken.append((slot, number))
        if not taken:
            return
        there = [self._in_front(slot, number) for slot, number in taken]
        try:
            self._copiers.gather(group, there, after, urgent)
        except RuntimeError as error:
            self._once.exception("the pool in front cannot be filled", error)
            with self._lock:
                self._free += [number for _, number in taken]
            return
        with self._lock:
            for slot, number in taken:
                chunk = group, slot.key, slot.generation
                if chunk in self._there:  # the other thread was sooner
                    self._free.append(number)
                else:
                    self._there[chunk] = number

    def _in_front(self, slot: Slot, number: int) -> Slot:
        address = self._pool.address + number * self._pool.slot_bytes
        return replace(slot, address=address, device=True, room=0)

    def _forget_chunk(self, chunk: Chunk) -> None:
        with self._lock:
            number = self._there.pop(chunk, None)
            if number is not None:
                self._free.append(number)
