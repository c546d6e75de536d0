"""What the soak knows to be true: chunk n's key and payload; and a pool's bytes, by slot."""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass

import numpy as np
from lmkv import _native

CHUNKS = 256  # kinds of payload
GRANULES, HEADER = 16, 64
FINGERPRINT = 0x1122_3344_5566_7788
THEIRS, OURS = 0x0BAD_CAFE_1111_2222, 0x0BAD_CAFE_3333_4444  # epochs
EARLIER = 0x0BAD_CAFE_5555_6666  # the holder's life before this one


@dataclass(frozen=True)
class Shape:
    """Segments and their bytes: one granule holds the payload of the small one."""

    segments: int
    segment_bytes: int

    def layout(self, page_format: int = 1, fingerprint: int = FINGERPRINT) -> _native.SlotLayout:
        return _native.SlotLayout(self.segments, self.segment_bytes, page_format, fingerprint)

    @property
    def table(self) -> slice:
        return slice(HEADER, HEADER + -(-self.segments // 2) * 16)


SHAPES = (Shape(4, 1024), Shape(3, 64), Shape(32, 512))


def key(n: int) -> bytes:
    return struct.pack("<IIQ", n, ~n & 0xFFFFFFFF, n * 0x9E3779B97F4A7C15 & (1 << 64) - 1)


def place(slot: int, granules: int = GRANULES, tier: int = 0, shift: int = 0) -> bytes:
    return struct.pack("<IBBH", (GRANULES * slot + shift) & 0xFFFFFFFF, granules, tier, 0)


def generation(epoch: int, counter: int) -> int:
    return (epoch & 0xFFFFFFFF) << 32 | counter


class Truth:
    """Payloads of one shape: chunk n always has the same bytes, in every process of a run."""

    def __init__(self, shape: Shape, seed: int) -> None:
        self.shape, self.layout = shape, shape.layout()
        rng = np.random.default_rng(seed)
        size = self.layout.payload_bytes
        self.payloads = [rng.bytes(size) for _ in range(CHUNKS)]

    def payload(self, n: int) -> bytes:
        return self.payloads[n % CHUNKS]


class Memory:
    """The bytes of a pool, by slot."""

    def __init__(self, address: int, slots: int, layout: _native.SlotLayout) -> None:
        self._bytes = memoryview(
            (ctypes.c_uint8 * (slots * layout.slot_bytes)).from_address(address)
        ).cast("B")
        self._address, self._layout = address, layout
        self._used = layout.used_bytes

    def address(self, slot: int) -> int:
        return self._address + slot * self._layout.slot_bytes

    def slot(self, slot: int) -> memoryview:
        """Header, table and payload."""
        at = slot * self._layout.slot_bytes
        return self._bytes[at : at + self._used]

    def payload(self, slot: int) -> memoryview:
        at = slot * self._layout.slot_bytes
        return self._bytes[at + self._layout.payload_offset : at + self._used]
