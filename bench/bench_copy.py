"""Host gather and scatter with digests, and scatter from another process's pool, in runs of 16 KiB.

The limit of each is memcpy of the same runs, one call a run, in the same rounds: both sides pay for
random runs. The working set (256 MiB on either side) is well above the caches, and every chunk is
compared byte by byte before anything is timed.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import random
import socket
from collections.abc import Callable

import numpy as np
from lmkv import _native
from lmkv._native import Copier, Pages, Pool, PoolMap, SlotLayout, SlotStatus

from bench.harness import Figure, Row, measure

RUN = 16 << 10
LAYERS, HEADS, BLOCKS_PER_CHUNK = 32, 8, 2  # 512 runs a chunk: a slot of 8 MiB
CHUNK_BYTES = LAYERS * HEADS * BLOCKS_PER_CHUNK * RUN
CHUNKS = (256 << 20) // CHUNK_BYTES
BLOCKS = CHUNKS * BLOCKS_PER_CHUNK
LAYOUT = SlotLayout(LAYERS * HEADS, BLOCKS_PER_CHUNK * RUN, 2, 1)


def keys(chunk: int) -> bytes:
    return chunk.to_bytes(16, "little")


class World:
    """Random KV pages, a pool with a slot a chunk, and a plan of runs for memcpy."""

    def __init__(self) -> None:
        chooser = random.Random(1)
        self.memory = np.random.default_rng(1).integers(
            0, 2**63, (BLOCKS * LAYERS * HEADS * RUN + 4096) // 8, np.uint64
        )
        start = -self.memory.ctypes.data % 4096 // 8
        # [layer, block, head, run], as vLLM's LBHNC
        self.kv = self.memory[start : start + BLOCKS * LAYERS * HEADS * RUN // 8].reshape(
            LAYERS, BLOCKS, HEADS, RUN // 8
        )
        pages = Pages(
            [layer.ctypes.data for layer in self.kv], BLOCKS, HEADS, 1, RUN, HEADS * RUN, RUN
        )
        self.copier = Copier(LAYOUT, pages, BLOCKS_PER_CHUNK)
        order = list(range(BLOCKS))
        chooser.shuffle(order)
        self.blocks = [
            order[n * BLOCKS_PER_CHUNK : (n + 1) * BLOCKS_PER_CHUNK] for n in range(CHUNKS)
        ]
        self.pool = Pool(LAYOUT.granule_bytes, CHUNKS, 32)
        while self.pool.segments * 32 < CHUNKS:
            self.pool.add_segment()

    def gather(self) -> None:
        for chunk, blocks in enumerate(self.blocks):
            self.copier.gather(self.slot(self.pool, chunk), keys(chunk), 1, blocks)

    def scatter(self, pool: Pool | PoolMap) -> None:
        for chunk, blocks in enumerate(self.blocks):
            status = self.copier.scatter(self.slot(pool, chunk), keys(chunk), 1, blocks)
            if status != SlotStatus.GOOD:
                raise RuntimeError(f"chunk {chunk}: status {status}")

    def slot(self, pool: Pool | PoolMap, chunk: int) -> int:
        return pool.address + chunk * LAYOUT.slot_bytes

    def runs(self, pool: Pool | PoolMap, to_pages: bool) -> tuple[np.ndarray, np.ndarray]:
        """(to, from) addresses of all runs, in the order in which the copier takes them."""
        layers, heads = np.arange(LAYERS), np.arange(HEADS)
        page, slot = [], []
        for chunk, blocks in enumerate(self.blocks):
            base = self.slot(pool, chunk) + LAYOUT.payload_offset
            slot.append(base + np.arange(LAYERS * HEADS * BLOCKS_PER_CHUNK) * RUN)
            at = (layers[:, None, None] * BLOCKS + np.array(blocks)) * HEADS + heads[:, None]
            page.append(self.kv.ctypes.data + at.ravel() * RUN)
        pages, slots = np.concatenate(page), np.concatenate(slot)
        return (pages, slots) if to_pages else (slots, pages)

    def check(self, pool: Pool | PoolMap) -> None:
        """Gather, scramble the pages, scatter: every byte is back, and in the slot's order."""
        before = self.kv.copy()
        self.gather()
        first = ctypes.string_at(self.slot(pool, 0) + LAYOUT.payload_offset, LAYOUT.payload_bytes)
        expected = before[:, self.blocks[0]].transpose(0, 2, 1, 3)
        if first != expected.tobytes():
            raise RuntimeError("gather: the slot's bytes are not the oracle's")
        self.kv[:] = 0
        self.scatter(pool)
        if not np.array_equal(self.kv, before):
            raise RuntimeError("scatter: the pages' bytes are not what was gathered")


def figures(
    world: World, copy: Callable[[], None], pool: Pool | PoolMap, to_pages: bool
) -> list[Figure]:
    to, from_ = world.runs(pool, to_pages)
    gigabytes = CHUNKS * CHUNK_BYTES / 1e9
    return measure(
        copy,
        lambda: _native.copy_runs(to, from_, RUN),
        rounds=15,
        figure=lambda seconds: gigabytes / seconds,
    )


def holder(channel: socket.socket, readers_end: socket.socket) -> None:
    """Another process: owns a pool with the same chunks, and hands out its read-only fds."""
    readers_end.close()  # of a fork: else its close is never seen
    world = World()
    world.gather()
    fds = [world.pool.segment_fd(n, readonly=True) for n in range(world.pool.segments)]
    socket.send_fds(channel, [b"x"], fds)
    channel.recv(1)  # until the reader has done


def mapped_pool() -> tuple[PoolMap, socket.socket, multiprocessing.Process]:
    ours, theirs = socket.socketpair()
    ours.settimeout(60)
    fork = multiprocessing.get_context("fork")
    process = fork.Process(target=holder, args=(theirs, ours), daemon=True)
    process.start()
    theirs.close()
    pool = PoolMap(LAYOUT.granule_bytes, CHUNKS, 32)
    for fd in socket.recv_fds(ours, 1, 64)[1]:
        pool.add_segment(fd)
        os.close(fd)
    return pool, ours, process


def rows() -> list[Row]:
    pool, channel, process = mapped_pool()  # first: a fork of a small process
    try:
        world = World()
        world.check(world.pool)
        world.check(pool)
        note = f"{_native.isa()}, runs of 16 KiB, limit: memcpy of the same runs"
        gather = figures(world, world.gather, world.pool, to_pages=False)
        scatter = figures(world, lambda: world.scatter(world.pool), world.pool, to_pages=True)
        mapped = figures(world, lambda: world.scatter(pool), pool, to_pages=True)
    finally:
        channel.close()
        process.join(10)
    return [
        Row("gather with digest", "GB/s", *gather, target=0.95, note=note),
        Row("scatter with digest", "GB/s", *scatter, target=1.3, note=note),
        Row("mapped scatter", "GB/s", *mapped, target=1.3, note=note + ", a peer's sealed memfd"),
    ]


if __name__ == "__main__":
    for row in rows():
        print(f"{row.name}: {row.lmkv} {row.unit}, limit {row.limit}, ratio {row.ratio:.2f}")
