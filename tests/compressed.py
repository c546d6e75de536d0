"""Payloads that compress as KV does, and slots in memory of a test's own."""

from __future__ import annotations

import numpy as np
from lmkv import _native
from lmkv.core import zstd

LAYOUT = _native.SlotLayout(6, 8192, 1, 0x1122334455667788)
KEY = bytes(range(16))
BF16 = 2  # codec: words of 2 bytes


def floats(seed: int, count: int) -> bytes:
    """So many bfloat16 of the kind that KV has: the exponents are few, the rest is noise."""
    numbers = np.random.default_rng(seed).normal(0, 1, count).astype("<f4")
    return (numbers.view("<u4") >> 16).astype("<u2").tobytes()


class Memory:
    """Page-aligned; `at` is its address."""

    def __init__(self, size: int) -> None:
        self._array = np.zeros(size + 4096, np.uint8)
        skip = -self._array.ctypes.data % 4096
        self.bytes = self._array[skip : skip + size]
        self.at = self.bytes.ctypes.data


def full_slot(payload: bytes, layout: _native.SlotLayout = LAYOUT, generation: int = 7) -> Memory:
    slot = Memory(layout.slot_bytes)
    _native.write_slot(slot.at, layout, KEY, generation, payload)
    return slot


def compressed_slot(
    payload: bytes,
    layout: _native.SlotLayout = LAYOUT,
    codec: int = BF16,
    generation: int = 7,
) -> Memory:
    """As a mover makes it, in as many granules as it takes."""
    zstd.load()
    slot = full_slot(payload, layout, generation)
    status, image = _native.compress_slot(slot.at, layout, KEY, generation, codec)
    assert status == _native.SlotStatus.GOOD
    granules = -(-len(image) // layout.granule_bytes)
    memory = Memory(granules * layout.granule_bytes)
    room = memory.bytes.size
    _native.place_compressed(memory.at, room, layout, KEY, generation, codec, image)
    return memory
