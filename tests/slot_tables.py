"""Slot tables in small numbers: keys, places and counters from integers, and stored slots."""

from __future__ import annotations

import struct

from lmkv._native import SlotTable


def keys(*numbers: int) -> bytes:
    return b"".join(n.to_bytes(16, "little") for n in numbers)


def place(slot: int) -> bytes:
    return struct.pack("<IBBH", slot * 16, 16, 0, 0)


def counters(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


def make(capacity: int, **options: float) -> SlotTable:
    table = SlotTable(capacity, capacity, **options)
    table.grow(capacity)
    return table


def store(table: SlotTable, *which: int, now: float = 0.0, front: bool = True) -> bytes:
    got = table.reserve(keys(*which), now)
    assert got is not None
    assert table.admit(*got, front=front) == len(which)
    return got[0]
