"""The slot table: what a chunk costs from its store to its end, as a full slot and as a short one.

A round is 16 chunks of a pool that is full: reserve, admit, lookup, pin, unpin, touch, changes for
the controllers, every fourth round retired. The limit is a dict that gets, finds and gives up the
same keys one by one.

Counted, not timed (`valgrind --tool=cachegrind --cache-sim=no` on the same rounds in C++, gcc 12
-O3, instructions per chunk): 2,094 before the table knew places of fewer than 16 granules, 2,494
when it had learned them, 2,057 now. Of the 400 that full slots paid for short ones, two thirds were
places that were looked up as if they might be short, granules that were asked for in each step
through a list, and what was held counted by frames; flags of one bit that are set from a variable
cost seven instructions where a byte costs one. Now a slot says its granules in a byte that it had
to spare (72 bytes again, 80 between), and only what is not full goes another way, out of line.
That leaves 80 more than before; answers that are made in their size at once take 120 away.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from lmkv._native import SlotTable

from bench.harness import Row, measure

SLOTS, CHUNKS, ROUNDS = 4096, 16, 512
SHORT = 12  # granules


def life(table: SlotTable, keys: list[bytes], granules: bytes) -> Callable[[], None]:
    now = iter(range(1 << 62))

    def run() -> None:
        for n, batch in enumerate(keys):
            slots = table.reserve(batch, next(now) / 100, granules)
            assert slots is not None
            table.admit(*slots)
            table.lookup(batch)
            table.pin(batch)
            table.unpin(*slots)
            table.touch(*slots)
            table.take_changes()
            if n % 4 == 3:
                table.retire(batch)

    return run


def rows() -> list[Row]:
    keys = [os.urandom(16 * CHUNKS) for _ in range(2 * ROUNDS)]  # twice what the pool holds
    alone = [key[i : i + 16] for key in keys for i in range(0, len(key), 16)]

    def as_dict() -> None:
        there: dict[bytes, int] = {}
        for n, key in enumerate(alone):
            there[key] = n
            if there.get(key) == n and n >= SLOTS:
                del there[alone[n - SLOTS]]

    tables = [SlotTable(SLOTS, 1024) for _ in range(2)]
    for table in tables:
        table.grow(SLOTS)
    full, short, limit = measure(
        life(tables[0], keys, b""),
        life(tables[1], keys, bytes([SHORT]) * CHUNKS),
        as_dict,
        figure=lambda seconds: seconds / len(alone) * 1e9,
    )
    note = "a chunk, store to end; limit: a dict with the same keys"
    return [
        Row("slot table, full slots", "ns", full, limit, 4.0, at_least=False, note=note),
        Row("slot table, compressed ones", "ns", short, limit, 12.0, at_least=False, note=note),
    ]
