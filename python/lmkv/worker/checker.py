"""Slots that are digested again because somebody asks: ask() -> a thread of its own -> `report`.

The thread begins with the first question, runs at the lowest priority and looks at one slot at a
time, so that copies, the engine and whoever stops the worker wait for a slot at most.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable
from contextlib import suppress

from lmkv import _native
from lmkv.core import wire
from lmkv.core.geometry import DEVICE
from lmkv.core.messages import Check
from lmkv.worker.affinity import unpin
from lmkv.worker.copiers import Pool, Slot, short_room
from lmkv.worker.copies import Once

log = logging.getLogger("lmkv.worker")

KEY, PLACE, COUNTER = wire.KEY_BYTES, wire.PLACE_BYTES, wire.COUNTER_BYTES
WAITING = 16  # questions
LOWEST = 19  # of priorities

Frames = list[bytes]


class Checker:
    """`check(group, slot)` is the copiers', of so many cache `groups`; `report(job, results)` is
    called from the thread."""

    def __init__(
        self,
        pool: Pool,
        groups: int,
        check: Callable[[int, Slot], int],
        report: Callable[[int, bytes], None],
    ) -> None:
        self._pool = pool
        self._groups = groups
        self._check = check
        self._once = Once()
        self._report = report
        self._queue: queue.Queue[tuple[Check, Frames] | None] = queue.Queue(WAITING)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lmkv-check", daemon=True)

    def ask(self, check: Check, frames: Frames) -> None:
        """Raises WireError. One too many is not answered: its asker has a deadline."""
        wire.counts(frames, KEY, PLACE, COUNTER)
        with suppress(queue.Full):
            self._queue.put_nowait((check, frames))
        if self._thread.ident is None and not self._stopping.is_set():
            self._thread.start()

    def stop(self, deadline: float) -> bool:
        """Ends after the slot under way; False if that takes longer than `deadline` seconds."""
        self._stopping.set()
        with suppress(queue.Full):
            self._queue.put_nowait(None)
        if self._thread.ident is not None:
            self._thread.join(deadline)
        return not self._thread.is_alive()

    def _run(self) -> None:
        unpin()
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST)
        while not self._stopping.is_set():
            asked = self._queue.get()
            if asked is None:
                continue
            try:
                self._answer(*asked)
            except RuntimeError as error:  # of a GPU's driver: whoever asked has a deadline
                self._once.exception("slots cannot be checked", error)

    def _answer(self, check: Check, frames: Frames) -> None:
        keys, places, counters = frames
        results = bytearray()
        for i in range(len(keys) // KEY):
            if self._stopping.is_set():
                return
            place = places[i * PLACE : (i + 1) * PLACE]
            counter = int.from_bytes(counters[i * COUNTER : (i + 1) * COUNTER], "little")
            generation = (check.epoch & 0xFFFFFFFF) << 32 | counter
            results.append(self._status(keys[i * KEY : (i + 1) * KEY], place, generation))
        self._report(check.job, bytes(results))

    def _status(self, key: bytes, place: bytes, generation: int) -> int:
        """A SlotStatus. Which cache group a slot is of, its own header says."""
        try:
            address = self._pool.slot_address(place)
        except ValueError:  # of a segment that is not there
            return _native.SlotStatus.GONE
        room = short_room(place, self._pool)
        slot = Slot(address, key, generation, [], self._pool.tier == DEVICE, room)
        status: int = _native.SlotStatus.INCOMPATIBLE
        for group in range(self._groups):
            status = self._check(group, slot)
            if status != _native.SlotStatus.INCOMPATIBLE:
                break
        return status
