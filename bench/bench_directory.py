"""The directory: announcements, locate, drop, memory (DESIGN.md 6 and 11).

The limits are the memory's: entries of 32 bytes written to, or read from, random rows of a table of
the same size, by numpy in one call.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from time import perf_counter

import numpy as np
from lmkv._native import Directory

from bench.harness import Figure, Row, measure

MESSAGE = 4096  # keys
MILLION = 1_000_000

Batch = tuple[bytes, bytes, bytes]


def batches(n: int) -> list[Batch]:
    """n random keys at the slots 0 .. n-1, in messages."""
    places = np.zeros(
        n, dtype=[("first", "<u4"), ("granules", "u1"), ("tier", "u1"), ("none", "<u2")]
    )
    places["first"], places["granules"] = 16 * np.arange(n), 16
    counters = np.arange(1, n + 1, dtype="<u4")
    parts = [slice(i, min(i + MESSAGE, n)) for i in range(0, n, MESSAGE)]
    return [
        (
            os.urandom(16 * (part.stop - part.start)),
            places[part].tobytes(),
            counters[part].tobytes(),
        )
        for part in parts
    ]


def announce(directory: Directory, instance: int, messages: list[Batch]) -> int:
    return sum(directory.announce(instance, *message) for message in messages)


def ratios(numerator: float) -> Callable[[float], float]:
    return lambda seconds: numerator / seconds


def announce_rows(n: int = 4 * MILLION) -> list[Row]:
    messages = batches(n)
    table = np.ones((n, 4), dtype=np.uint64)
    rows_at_random = np.random.default_rng(1).permutation(n)
    entries = np.ones((n, 4), dtype=np.uint64)
    full = Directory()
    holder = full.add(0, 0)
    assert announce(full, holder, messages) == n == len(full)

    def from_empty() -> None:
        directory = Directory()
        announce(directory, directory.add(0, 0), messages)

    def again() -> None:
        assert announce(full, holder, messages) == 0

    def scatter() -> None:
        table[rows_at_random] = entries

    grown, renewed, limit = measure(
        from_empty, again, scatter, rounds=5, figure=ratios(n / MILLION)
    )
    note = "target: 10 M keys/s; limit: 32-byte rows written at random into a table of that size"
    target = 10 / limit.median
    return [
        Row("directory announce, from empty", "M keys/s", grown, limit, target,
            note=f"{note}; {n // MILLION} M keys, with all growth and the system's new pages"),
        Row("directory announce, known keys", "M keys/s", renewed, limit, target,
            note=f"{note}; {n // MILLION} M keys move to a place (no growth)"),
    ]  # fmt: skip


def locate_row(n: int = 4 * MILLION, keys: int = 512) -> Row:
    messages = batches(n)
    directory = Directory()
    holder, asker = directory.add(0, 0), directory.add(0, 1)
    announce(directory, holder, messages)
    prompts = [message[0][: 16 * keys] for message in messages]
    table = np.ones((n, 4), dtype=np.uint64)
    rows = [np.random.default_rng(i).integers(0, n, keys) for i in range(len(prompts))]
    for prompt in prompts[:10]:
        assert directory.locate(prompt, asker)[0] == [(0, keys, holder, 0)]

    def locate() -> None:
        for prompt in prompts:
            directory.locate(prompt, asker)

    def gather() -> None:
        for some in rows:
            table[some]

    us, limit = measure(locate, gather, figure=lambda seconds: seconds / len(prompts) * 1e6)
    return Row(f"directory locate, {keys} keys", "us", us, limit, 50 / limit.median, at_least=False,
               note="target: 50 us (DESIGN: microseconds); cold prompts of a table of 4 M keys; "
                    "limit: as many 32-byte rows read at random")  # fmt: skip


def drop_row(n: int = MILLION, rounds: int = 7) -> Row:
    messages = batches(n)
    table = np.ones((n, 4), dtype=np.uint64)
    drops, sweeps, reads = [], [], []
    for _ in range(rounds):
        directory = Directory()
        holder, other = directory.add(0, 0), directory.add(0, 1)
        announce(directory, holder, messages)
        announce(directory, other, messages[:1])
        begin = perf_counter()
        directory.drop(holder)
        drops.append((perf_counter() - begin) * 1e3)
        assert directory.holders(messages[0][0][:16]) == [other]
        assert directory.holders(messages[1][0][:16]) == []
        begin = perf_counter()
        assert directory.sweep(10 * n)
        sweeps.append((perf_counter() - begin) * 1e3)
        begin = perf_counter()
        table.sum()
        reads.append((perf_counter() - begin) * 1e3)
    lmkv, limit = (Figure(statistics.median(v), min(v), max(v)) for v in (drops, reads))
    return Row("directory drop, 1 M chunks", "ms", lmkv, limit, 10 / limit.median, at_least=False,
               note="target: 10 ms; limit: reading its entries once; sweeping them later takes "
                    f"{statistics.median(sweeps):.0f} ms in all, in bounded steps")  # fmt: skip


def memory_row(n: int = 10 * MILLION) -> Row:
    directory = Directory()
    holder = directory.add(0, 0)
    places, counters = np.zeros(MESSAGE, "<u8").tobytes(), np.zeros(MESSAGE, "<u4").tobytes()
    for first in range(0, n, MESSAGE):
        count = min(MESSAGE, n - first)
        part = os.urandom(16 * count), places[: 8 * count], counters[: 4 * count]
        directory.announce(holder, *part)
    assert len(directory) == n
    each = directory.bytes / n
    figure, limit = Figure(each, each, each), Figure(28, 28, 28)
    note = "target: 40; limit: a key, a place and a counter are 28"
    name = "directory bytes per key, 10 M keys"
    return Row(name, "bytes", figure, limit, 40 / 28, at_least=False, note=note)


def sync_row(instances: int = 125, slots: int = 32_768) -> Row:
    """All come back at once: a locate waits for a slice at most, so the p99 of these counts."""
    messages = batches(slots)
    directory = Directory()
    numbers = [directory.add(0, 0) for _ in range(instances)]
    for number in numbers:
        directory.expect(number, slots)
        directory.begin_sync(number)
    ms = []
    for number in numbers:
        for _, places, counters in messages:
            keys = os.urandom(16 * MESSAGE)
            begin = perf_counter()
            directory.sync_slice(number, 0, 16 * slots, keys, places, counters)
            ms.append((perf_counter() - begin) * 1e3)
    ms.sort()
    figure = Figure(ms[len(ms) * 99 // 100], ms[len(ms) // 2], ms[-1])
    note = f"p99 [p50..longest]; limit: ours, 1 ms; {instances} instances of {slots} slots"
    return Row("directory sync slice, 4,096 keys", "ms", figure, Figure(1, 1, 1), 1.0,
               at_least=False, note=f"{note}; {directory.moved} keys moved by growth")  # fmt: skip


def rows() -> list[Row]:
    return [*announce_rows(), locate_row(), drop_row(), sync_row(), memory_row()]
