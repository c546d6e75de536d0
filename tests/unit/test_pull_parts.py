"""The engine puts a chunk together from several ranks of a peer, which have other heads: in memory
of the host, and in that of a GPU, which is the fake driver's."""

from __future__ import annotations

import ctypes
import gc
import itertools
import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lmkv import _native
from lmkv.core.geometry import DEVICE, HOST, Heads
from lmkv.core.messages import HostIdentity, RankInfo
from lmkv.core.parts import parts

from tests.fakecuda.build import COMPILER
from tests.fakecuda.fake import FakeCuda, needs_compiler
from tests.fakecuda.raw import NUMBERS
from tests.gpu.cards import FATBIN
from tests.unit.test_pull_engine import (
    DIGEST,
    GONE,
    GOOD,
    OURS,
    PEER_DEAD,
    THEIRS,
    TIMEOUT,
    events_of,
    generation,
    key,
    names,
    place,
)

MOVER_DOWN = 6

LAYERS, HEADS, SEGMENT, SLOTS = 3, 6, 4096, 8


def kv(n: int) -> np.ndarray:
    """Chunk n of the model: [layer, head, byte]."""
    return np.random.default_rng(n).integers(0, 256, (LAYERS, HEADS, SEGMENT), np.uint8)


def layout(heads: Heads) -> _native.SlotLayout:
    return _native.SlotLayout(LAYERS * heads[1], SEGMENT, 2, 1000 + 10 * heads[0] + heads[1])


class Holder:
    """One rank of the peer."""

    def __init__(self, number: int, heads: Heads) -> None:
        self.heads, self.layout = heads, layout(heads)
        self.pool = _native.Pool(self.layout.granule_bytes, SLOTS, SLOTS)
        self.pool.add_segment()
        self.serve = _native.Transport("loopback", f"holder{next(names)}")
        self.serve.register(self.pool.address, SLOTS * self.layout.slot_bytes)
        self.peer = _native.PullPeer(
            f"h/{number}",
            self.serve.metadata(),
            self.pool.address,
            self.layout.granule_bytes,
            16 * SLOTS,
            16 * SLOTS,
        )

    def write(self, slot: int, n: int, counter: int) -> None:
        first, count = self.heads
        payload = kv(n)[:, first : first + count].tobytes()
        at = self.pool.slot_address(place(slot))
        _native.write_slot(at, self.layout, key(n), generation(THEIRS, counter), payload)

    def flip(self, slot: int, layer: int, head: int, byte: int) -> None:
        """A bit of one of the model's heads."""
        segment = layer * self.heads[1] + head - self.heads[0]
        at = self.layout.payload_offset + segment * SEGMENT + byte
        ctypes.c_uint8.from_address(self.pool.slot_address(place(slot)) + at).value ^= 1


class World:
    """A peer of several ranks, and a rank of ours with `own` heads: in the GPU's memory, if any,
    which a test reads as it would the host's."""

    def __init__(self, own: Heads, theirs: list[Heads], gpu: _native.Gpu | None = None) -> None:
        self.own, self.layout = own, layout(own)
        self.holders = [Holder(n, heads) for n, heads in enumerate(theirs)]
        self.tier = HOST if gpu is None else DEVICE
        size = SLOTS * self.layout.slot_bytes
        self.pool: _native.PoolMap | _native.GpuPool
        if gpu is None:
            backing = _native.Pool(self.layout.granule_bytes, SLOTS, SLOTS)
            backing.add_segment()
            self.pool = _native.PoolMap(self.layout.granule_bytes, SLOTS, SLOTS, 0, writable=True)
            self.pool.add_segment(backing.segment_fd(0))
        else:
            memory = _native.GpuMemory(gpu, -(-size // (2 << 20)) * (2 << 20))
            self.pool = _native.GpuPool(memory, self.layout.granule_bytes, SLOTS)
        self.transport = _native.Transport("loopback", f"reader{next(names)}")
        self.transport.register(self.pool.address, size, self.tier)
        more = () if gpu is None else (gpu, 2)
        self.engine = _native.PullEngine(self.transport, self.pool, *more)
        here = HostIdentity("boot", 1, 1)
        infos = [RankInfo(n, here, heads=[heads]) for n, heads in enumerate(theirs)]
        found = parts(RankInfo(0, here, heads=[own]), infos)
        self.read = [self.holders[part.at] for part in found]
        self.parts = [
            _native.SlotPart(
                self.layout,
                layout(part.theirs),
                LAYERS,
                part.read[0] - part.theirs[0],
                part.read[0] - own[0],
                part.read[1],
            )
            for part in found
        ]

    def write(self, slot: int, n: int, counter: int) -> None:
        for holder in self.holders:
            holder.write(slot, n, counter)

    def pull(self, chunks: list[tuple[int, int, int]], deadline: float = 30.0) -> None:
        """(chunk, their slot, their counter), each into our slot of the same number."""
        self.engine.pull_parts(
            1,
            [holder.peer for holder in self.read],
            self.parts,
            self.layout,
            THEIRS,
            OURS,
            b"".join(key(n) for n, _, _ in chunks),
            b"".join(place(slot) for _, slot, _ in chunks),
            b"".join(struct.pack("<I", counter) for _, _, counter in chunks),
            b"".join(self.place(slot) for _, slot, _ in chunks),
            struct.pack("<I", 1) * len(chunks),
            deadline,
        )

    def place(self, slot: int) -> bytes:
        return struct.pack("<IBBH", 16 * slot, 16, self.tier, 0)

    def results(self) -> bytes:
        return events_of(self.engine)[0].results

    def check(self, slot: int, n: int) -> int:
        at = self.pool.slot_address(self.place(slot))
        return _native.check_slot(at, self.layout, key(n), generation(OURS, 1))

    def holds(self, slot: int, n: int) -> bool:
        """Sealed as ours, byte by byte what the model's heads are."""
        at = self.pool.slot_address(self.place(slot)) + self.layout.payload_offset
        first, count = self.own
        expected = kv(n)[:, first : first + count].tobytes()
        same = ctypes.string_at(at, self.layout.payload_bytes) == expected
        return self.check(slot, n) == GOOD and same

    def close(self) -> None:
        del self.engine
        self.pool.close()
        del self.pool, self.transport


class Worlds:
    """All of one memory; closed in the end, and then nothing holds the GPU."""

    def __init__(self, gpu: _native.Gpu | None = None) -> None:
        self._gpu = gpu
        self._made: list[World] = []

    def __call__(self, own: Heads, theirs: list[Heads]) -> World:
        self._made.append(World(own, theirs, self._gpu))
        return self._made[-1]

    def close(self) -> None:
        while self._made:
            self._made.pop().close()
        self._gpu = None
        gc.collect()


@contextmanager
def on_a_gpu() -> Iterator[tuple[FakeCuda, Worlds]]:
    with FakeCuda() as fake:
        gpu = _native.Gpu(0, str(fake.path))
        gpu.load(FATBIN)
        worlds = Worlds(gpu)
        del gpu
        with closing(worlds):
            yield fake, worlds


@pytest.fixture(params=["host", "gpu"])
def make(request: pytest.FixtureRequest) -> Iterator[Worlds]:
    if request.param == "host":
        with closing(Worlds()) as worlds:
            yield worlds
        return
    if COMPILER is None:
        pytest.skip("no C++ compiler for the fake driver")
    with on_a_gpu() as (_, worlds):
        yield worlds


HALVES, THIRDS = [(0, 3), (3, 3)], [(0, 2), (2, 2), (4, 2)]


@pytest.mark.parametrize(
    ("own", "theirs"),
    [((0, 6), HALVES), ((0, 6), THIRDS), ((3, 3), [(0, 6)]), ((2, 2), HALVES), ((0, 3), THIRDS)],
)
def test_heads_come_from_wherever_they_are(make: Worlds, own: Heads, theirs: list[Heads]) -> None:
    world = make(own, theirs)
    for slot in range(SLOTS):
        world.write(slot, n=slot, counter=9)
    world.pull([(slot, slot, 9) for slot in range(SLOTS)])
    (event,) = events_of(world.engine)
    assert event.results == bytes([GOOD]) * SLOTS
    assert all(world.holds(slot, slot) for slot in range(SLOTS))
    # Header and table of each rank, and our heads once.
    assert event.bytes == SLOTS * (4096 * len(world.parts) + world.layout.payload_bytes)
    assert world.engine.limbo_slots == 0


def test_a_chunk_is_as_good_as_its_worst_part(make: Worlds) -> None:
    world = make((0, 6), HALVES)
    world.write(0, n=0, counter=9)
    world.write(1, n=1, counter=9)
    world.write(2, n=2, counter=9)
    world.holders[1].write(1, n=7, counter=10)  # one rank has reused it
    world.holders[0].flip(2, layer=2, head=2, byte=4095)
    world.pull([(0, 0, 9), (1, 1, 9), (2, 2, 9)])
    assert world.results() == bytes([GOOD, GONE, DIGEST])
    assert world.holds(0, 0)
    assert world.check(1, 1) == world.check(2, 2) == GONE  # nothing was sealed


def test_what_a_rank_has_beside_our_heads_is_not_verified(make: Worlds) -> None:
    world = make((0, 2), HALVES)
    world.write(0, n=0, counter=9)
    world.holders[0].flip(0, layer=1, head=2, byte=7)  # not ours
    world.holders[1].write(0, n=3, counter=9)  # a rank that is not read
    world.pull([(0, 0, 9)])
    assert world.results() == bytes([GOOD])
    assert world.holds(0, 0)


def test_a_rank_that_is_dead_fails_what_it_has_a_part_of(make: Worlds) -> None:
    world = make((0, 6), HALVES)
    world.write(0, n=0, counter=9)
    world.holders[1].serve.close()
    world.pull([(0, 0, 9)])
    (event,) = events_of(world.engine)
    assert (event.results, event.stale) == (bytes([PEER_DEAD]), True)
    assert world.check(0, 0) == GONE


def test_a_slot_stays_in_limbo_until_every_part_s_read_has_ended(make: Worlds) -> None:
    world = make((0, 6), THIRDS)
    for slot in range(SLOTS):
        world.write(slot, n=slot, counter=9)
    world.pull([(slot, slot, 9) for slot in range(SLOTS)], deadline=0.0)
    pulled, ended = events_of(world.engine, 2)
    assert not pulled.limbo_ended and ended.limbo_ended
    assert TIMEOUT in pulled.results
    assert world.engine.limbo_slots == 0
    for slot, result in enumerate(pulled.results):
        assert world.holds(slot, slot) == (result == GOOD)
    world.pull([(0, 0, 9)])  # its rooms are free again
    assert world.results() == bytes([GOOD])


def test_parts_that_are_not_a_slot_are_named(make: Worlds) -> None:
    world = make((0, 6), HALVES)
    one, two = world.parts
    for wrong, text in (
        ([one], "parts with 9 of 18 segments"),
        ([one, one], "segment 0 comes twice"),
        ([one, two, two], "3 parts"),
    ):
        world.parts, read = wrong, world.read
        world.read = read[: min(2, len(wrong))]
        with pytest.raises(ValueError, match=text):
            world.pull([(0, 0, 9)])
        world.read = read
    world.parts = make((0, 6), [(0, 6)]).parts
    world.read = world.read[:1]
    with pytest.raises(ValueError, match="do not fit into 16 granules"):
        world.pull([(0, 0, 9)])
    world.parts, world.read = [], []
    with pytest.raises(ValueError, match="no peer"):
        world.pull([(0, 0, 9)])


@needs_compiler
@pytest.mark.parametrize("launch", [1, 2, 3])
def test_a_gpu_that_is_lost_while_parts_are_judged_is_said(launch: int) -> None:
    """Two launches judge a part: a chunk that lacks one of its two is not sealed."""
    with on_a_gpu() as (fake, worlds):
        world = worlds((0, 6), HALVES)
        world.write(0, n=0, counter=9)
        fake.fail("launch", launch, NUMBERS["LAUNCH_FAILED"])
        world.pull([(0, 0, 9)])
        assert world.results() == bytes([MOVER_DOWN])
        assert "CUDA_ERROR_LAUNCH_FAILED" in world.engine.lost
        assert world.check(0, 0) == GONE


@needs_compiler
def test_parts_in_a_gpus_memory_are_read_there_alone() -> None:
    with on_a_gpu() as (fake, worlds):
        world = worlds((0, 6), HALVES)
        world.write(0, n=0, counter=9)
        world.pull([(0, 0, 9)])
        assert world.results() == bytes([GOOD])
        assert fake.launches()["lmkv_audit_16"] == 2 * 2
        assert fake.copied()["d2h"] < SEGMENT  # verdicts and digests


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_whatever_the_ranks_have_only_whole_chunks_are_good(data: st.DataObject) -> None:
    """Model: a part is good when its rank's slot has that key and counter and no flip in what is
    read of it; a chunk when all of its parts are."""
    cuts = sorted({0, HEADS, *data.draw(st.lists(st.integers(0, HEADS), max_size=3))})
    own = data.draw(st.integers(0, HEADS - 1))
    heads = own, data.draw(st.integers(1, HEADS - own))
    theirs = [(a, b - a) for a, b in itertools.pairwise(cuts)]
    if COMPILER is None or data.draw(st.booleans()):
        with closing(Worlds()) as worlds:
            check_against_the_model(data, worlds(heads, theirs))
    else:
        with on_a_gpu() as (_, worlds):
            check_against_the_model(data, worlds(heads, theirs))


def check_against_the_model(data: st.DataObject, world: World) -> None:
    own, expected = world.own[0], []
    for slot in range(SLOTS):
        worst = {GOOD}
        for holder, part in zip(world.holders, range(len(world.holders)), strict=True):
            counter = data.draw(st.sampled_from([9, 9, 9, 8]))
            holder.write(slot, slot, counter)
            first, count = holder.heads
            read = range(max(first, own), min(first + count, sum(world.own)))
            if not read:
                continue
            if counter != 9:
                worst.add(GONE)
            elif data.draw(st.integers(0, 5)) == 0:
                head = data.draw(st.integers(first, first + count - 1))
                holder.flip(slot, part % LAYERS, head, data.draw(st.integers(0, SEGMENT - 1)))
                worst |= {DIGEST} if head in read else set()
        expected.append(worst)
    world.pull([(slot, slot, 9) for slot in range(SLOTS)])
    for slot, (result, worst) in enumerate(zip(world.results(), expected, strict=True)):
        assert result in (worst - {GOOD} or {GOOD})
        assert world.holds(slot, slot) == (worst == {GOOD})
