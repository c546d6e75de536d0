"""A holder in a process of its own, whose slots never stand still.

Its first half of slots is only ever rewritten as a writer must (word 0, payload, table, header): a
reader finds the chunk, or that it is gone. The second half is torn, flipped and mixed up where it
lies, then written anew. What is announced is in shared memory: chunk << 32 | counter by slot.
"""

from __future__ import annotations

import os
import random
import select
import time
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import Synchronized
from typing import Any

from lmkv import _native

from tests.soak.corruption import Damage
from tests.soak.slots import CHUNKS, THEIRS, Memory, Shape, Truth, generation, key
from tests.soak.tally import DIGEST, GONE, GOOD, INCOMPATIBLE

SLOTS = 64
BURST, NAP = 32, 0.0005  # changes in a row; seconds between bursts
PROPER = frozenset({GOOD, GONE})
DAMAGED = frozenset({GOOD, GONE, DIGEST, INCOMPATIBLE})


def row(slot: int) -> str:
    return "rewritten meanwhile" if slot < SLOTS // 2 else "damaged meanwhile"


def expected(slot: int) -> frozenset[int]:
    return PROPER if slot < SLOTS // 2 else DAMAGED


class Holder:
    def __init__(self, shape: Shape, seed: int, announced: Any, epoch: int, address: int) -> None:
        self.truth = Truth(shape, seed)
        layout = self.truth.layout
        self.pool = _native.Pool(layout.granule_bytes, SLOTS, SLOTS, address)
        self.pool.add_segment()
        self.memory = Memory(self.pool.address, SLOTS, layout)
        self.random = random.Random(seed ^ epoch)
        self._damage = Damage(self.memory, self.truth, SLOTS, self.random)
        self._announced, self._epoch = announced, epoch
        self._counter = 0
        self._whole = [True] * SLOTS
        for slot in range(SLOTS):
            self._rewrite(slot)

    def _rewrite(self, slot: int) -> None:
        n = self.random.randrange(CHUNKS)
        self._counter += 1
        _native.write_slot(
            self.memory.address(slot),
            self.truth.layout,
            key(n),
            generation(self._epoch, self._counter),
            self.truth.payload(n),
        )
        self._announced[slot] = n << 32 | self._counter
        self._whole[slot] = True

    def change(self) -> None:
        slot = self.random.randrange(SLOTS)
        if slot < SLOTS // 2 or not self._whole[slot]:
            self._rewrite(slot)
            return
        self._whole[slot] = False
        view = self.memory.slot(slot)
        cut = self.random.randrange(1, len(view) // 64) * 64
        match self.random.randrange(4):
            case 0:
                self._damage.flip(slot, 0, len(view))
            case 1:  # half of a neighbour
                view[:cut] = self.memory.slot(slot ^ 1)[:cut]
            case 2:
                view[cut:] = self.memory.slot(slot ^ 1)[cut:]
            case 3:
                view[cut:] = bytes(len(view) - cut)


def main(
    commands: Connection, shape: Shape, seed: int, announced: Any, stop: Synchronized[int],
    share: str, transport: tuple[str, dict[str, str]] | None, epoch: int, address: int,
) -> None:  # fmt: skip
    """Says what a controller would tell of it, then changes slots until `stop`."""
    if transport:
        os.environ.clear()
        os.environ.update(transport[1])
    holder = Holder(shape, seed, announced, epoch, address)
    pool = holder.pool
    metadata = b""
    server = None
    if transport:
        from lmkv.mover.transport import find_library

        serve = _native.Transport("nixl", transport[0], find_library().path, progress=True)
        serve.register(pool.address, pool.slots * pool.slot_bytes)
        metadata = serve.metadata()
    if share:
        from lmkv.mover.share import ShareServer

        server = ShareServer(share, 0, [], time.monotonic)
        server.instance, server.epoch = "changing", THEIRS
        fd = pool.segment_fd(0)
        server.add_segment(fd)
        os.close(fd)
    commands.send((pool.address, metadata))
    parent = os.getppid()
    while not stop.value and os.getppid() == parent:
        for _ in range(holder.random.randint(1, BURST)):
            holder.change()
        time.sleep(holder.random.random() * NAP)
        asked = server is not None and select.select([server], [], [], 0)[0]
        if server is not None and asked and (client := server.accept()) is not None:
            select.select([client], [], [], 5)
            server.serve(client)
    os._exit(0)
