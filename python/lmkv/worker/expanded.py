"""Compressed slots as full ones, in memory of the host's that no peer sees.

Expanded(layout, slots) -> fill(n, slot) -> (SlotStatus, the full slot) -> close()
"""

from __future__ import annotations

import ctypes
import mmap
from dataclasses import replace

from lmkv import _native
from lmkv.worker.copiers import Slot


class Expanded:
    """Room for so many slots of this layout."""

    def __init__(self, layout: _native.SlotLayout, slots: int) -> None:
        self._layout = layout
        self._memory = mmap.mmap(-1, slots * layout.slot_bytes)
        view = ctypes.c_char.from_buffer(self._memory)
        self._address = ctypes.addressof(view)
        del view  # else it could not be closed

    def close(self) -> None:
        self._memory.close()

    def fill(self, n: int, slot: Slot) -> tuple[int, Slot]:
        """As slot number `n` of the room: its status, and where it is, under the same generation.
        What is read was checked against its digests."""
        at = self._address + n * self._layout.slot_bytes
        status = _native.expand_slot(
            slot.address, slot.room, self._layout, slot.key, slot.generation, at, slot.generation
        )
        return status, replace(slot, address=at, room=0)
