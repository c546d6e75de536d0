"""Mapped loads by a real worker: its map of the peer's pool, its copier, its verdicts.

The worker is not started: no mover, no threads; loads run here, one chunk each. The holder is a
share socket with the segments of a pool: in this process, where slots stand still while they are
loaded, or in another one that goes on changing them (holder.py).
"""

from __future__ import annotations

import itertools
import os
import random
import select
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
from lmkv import _native
from lmkv.core import config, geometry
from lmkv.core.messages import HostIdentity, PullPeer, RankInfo
from lmkv.core.steps import Load, LoadChunk
from lmkv.mover.share import ShareServer
from lmkv.worker.worker import Worker

from tests.soak import holder
from tests.soak.corruption import KINDS, Ask, Damage, draw, note_cuts
from tests.soak.slots import GRANULES, THEIRS, Memory, Truth, generation, key, place
from tests.soak.tally import GOOD, INCOMPATIBLE, PEER_DEAD, Tally

SEGMENT, BATCH = 128, 128
SLOTS = 3 * SEGMENT  # the third segment is not announced
PATH = "mapped"
GUARD = 0xA5  # in blocks that no load names
names = itertools.count()


class Kv:
    """vLLM's blocks for one shape: two a chunk, a page for each layer and head; some are spare."""

    def __init__(self, truth: Truth) -> None:
        shape = truth.shape
        self.heads = next(h for h in (4, 3, 2, 1) if shape.segments % h == 0)
        self.layers = shape.segments // self.heads
        page, self.blocks = shape.segment_bytes // 2, 2 * BATCH + 4
        self.array = np.full((self.layers, self.blocks, self.heads, page), GUARD, np.uint8)
        layers = [self.array[n].ctypes.data for n in range(self.layers)]
        pages = _native.Pages(layers, self.blocks, self.heads, 1, page, self.heads * page, page)
        self.slot = truth.layout
        self._copier = _native.Copier(truth.layout, pages, 2)
        self.layout = geometry.Layout(
            16, "bfloat16", "cpu:vec:8", 0, ["l"] * self.layers, 1, self.heads, 0, self.heads,
            shape.segment_bytes,
        ).text()  # fmt: skip
        split = (self.layers, self.heads, 2, page)
        self.true = [
            np.frombuffer(payload, np.uint8).reshape(split).swapaxes(1, 2)
            for payload in truth.payloads
        ]

    def copier(self) -> _native.Copier:
        return self._copier

    def holds(self, block: int, n: int) -> bool:
        """Whether blocks `block` and the next are chunk n."""
        return np.array_equal(self.array[:, block : block + 2], self.true[n % len(self.true)])

    def guarded(self) -> bool:
        return bool((self.array[:, [0, 1, -2, -1]] == GUARD).all())


class Loader:
    """The worker, and the check of what it says."""

    def __init__(self, truth: Truth, run_dir: str) -> None:
        self.kv = Kv(truth)
        inline = {"run_dir": run_dir, "pool_gib": 0.25}
        settings = config.load(config.InstanceConfig, inline)
        name = f"reader{next(names)}"
        self.worker = Worker(settings, name, name, 0, 1, [self.kv])  # type: ignore[arg-type]

    def load(self, peer: PullPeer, ask: Ask, block: int, epoch: int = THEIRS) -> int:
        what = generation(epoch, ask.counter)
        chunk = LoadChunk(key(ask.n), ask.place, what, [block, block + 1], 0)
        result = self.worker._copy_load(Load("r", [chunk], [[peer]]), None)
        assert result.good == (result.result == GOOD)
        return int(result.result)

    def try_one(
        self, tally: Tally, row: tuple[str, str], peer: PullPeer, ask: Ask, block: int,
        expected: frozenset[int],
    ) -> None:  # fmt: skip
        result = self.load(peer, ask, block)
        tally.count(row, result, result != GOOD or self.kv.holds(block, ask.n), expected)

    def close(self) -> None:
        self.worker.stop()


def rank_info(
    address: int, layout: _native.SlotLayout, segment_slots: int, share: str, segments: int = 1,
    usable: int = 1,
) -> RankInfo:  # fmt: skip
    return RankInfo(
        0,
        HostIdentity("boot", 1, 1),
        address,
        layout.granule_bytes,
        GRANULES * segment_slots * segments,
        GRANULES * segment_slots,
        usable,
        share,
    )


class Share:
    """The share socket of a pool here, served by a thread."""

    def __init__(self, pool: _native.Pool, run_dir: str, instance: str, epoch: int) -> None:
        self.server = ShareServer(f"{run_dir}/{instance}.share", 0, [], time.monotonic)
        self.server.instance, self.server.epoch = instance, epoch
        for segment in range(pool.segments):
            fd = pool.segment_fd(segment)
            self.server.add_segment(fd)
            os.close(fd)
        self._stop, self._stopped = os.pipe()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while self._stop not in select.select([self.server, self._stop], [], [])[0]:
            if (client := self.server.accept()) is not None:
                select.select([client], [], [], 5)
                self.server.serve(client)

    def close(self) -> None:
        os.close(self._stopped)
        self._thread.join()
        os.close(self._stop)
        self.server.close()


class Mapped:
    def __init__(self, truth: Truth, seed: int, run_dir: str) -> None:
        self.random = random.Random(seed)
        layout = truth.layout
        self._pool = _native.Pool(layout.granule_bytes, SLOTS, SEGMENT)
        for _ in range(3):
            self._pool.add_segment()
        memory = Memory(self._pool.address, SLOTS, layout)
        self.damage = Damage(memory, truth, 2 * SEGMENT, self.random)
        self._name = f"holder{next(names)}"
        self._share = Share(self._pool, run_dir, self._name, THEIRS)
        self.loader = Loader(truth, run_dir)
        self._lies: dict[str, tuple[Callable[[], PullPeer], int]] = {
            "another life answers": (lambda: self.peer(epoch=THEIRS + (1 << 32)), PEER_DEAD),
            "nobody answers": (lambda: self.peer(share_socket=f"{run_dir}/no.share"), PEER_DEAD),
            "segments that are not there": (lambda: self.peer(usable_segments=5), PEER_DEAD),
            "granules of another size": (
                lambda: self.peer(granule_bytes=2 * layout.granule_bytes),
                INCOMPATIBLE,
            ),
            "segments of another size": (
                lambda: self.peer(segment_granules=GRANULES * SEGMENT // 2),
                INCOMPATIBLE,
            ),
        }

    def peer(self, epoch: int = THEIRS, **changes: object) -> PullPeer:
        path = self._share.server.path
        info = rank_info(self._pool.address, self.damage.layout, SEGMENT, path, 3, usable=2)
        for name, value in changes.items():
            setattr(info, name, value)
        return PullPeer(self._name, epoch, 1, info)

    def run(self, tries: int, tally: Tally, progress: Callable[[int], None]) -> None:
        batches = 0
        while tries > 0:
            n = min(BATCH, tries)
            if batches % 32 == 31:
                n = 1
                self._lie(tally)
            else:
                self._batch(n, tally)
            progress(n)
            tries -= n
            batches += 1
        note_cuts(self.damage, tally)

    def _batch(self, n: int, tally: Tally) -> None:
        peer = self.peer()
        slots = self.random.sample(range(0, 2 * SEGMENT, 2), n)
        for i, (row, ask) in enumerate(draw(self.damage, list(KINDS), slots)):
            block = 2 + 2 * i
            self.loader.try_one(tally, (row, PATH), peer, ask, block, frozenset({ask.expected}))
        assert self.loader.kv.guarded(), "a load wrote into blocks that it was not given"

    def _lie(self, tally: Tally) -> None:
        """Of a peer that says what is not so, nothing is ever mapped."""
        name = self.random.choice(list(self._lies))
        make, expected = self._lies[name]
        ask = KINDS["none"](self.damage, 0, self.damage.chunk())
        self.loader.worker._mapped.forget(self._name, THEIRS)  # else what is mapped serves
        self.loader.try_one(tally, (name, PATH), make(), ask, 2, frozenset({expected}))
        self.loader.worker._mapped.forget(self._name, THEIRS)

    def close(self) -> None:
        self.loader.close()
        self._share.close()
        self._pool.close()


def mapped_by_another(
    loader: Loader, peer: PullPeer, announced: Sequence[int], tries: int, seed: int,
    tally: Tally, progress: Callable[[int], None],
) -> None:  # fmt: skip
    """Loads out of a pool that its holder changes at the same time."""
    random_ = random.Random(seed)
    path = "mapped, other process"
    while tries > 0:
        slots = [random_.randrange(holder.SLOTS) for _ in range(min(BATCH, tries))]
        said = [divmod(announced[slot], 1 << 32) for slot in slots]  # some are older when loaded
        for i, (slot, (n, counter)) in enumerate(zip(slots, said)):
            row, expected = (holder.row(slot), path), holder.expected(slot)
            ask = Ask(n, counter, place(slot), GOOD)
            loader.try_one(tally, row, peer, ask, 2 + 2 * i, expected)
        tries -= len(slots)
        progress(len(slots))
    assert loader.kv.guarded(), "a load wrote into blocks that it was not given"
