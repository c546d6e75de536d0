"""Pulls into and out of a GPU's memory, on the fake driver, over the loopback transport: slots are
cleared, judged and resealed there."""

from __future__ import annotations

import gc
import struct
from collections.abc import Iterator

import pytest
from lmkv import _native
from lmkv.core.geometry import DEVICE, HOST

from tests.fakecuda.fake import FakeCuda, needs_compiler
from tests.fakecuda.raw import NUMBERS
from tests.gpu.cards import FATBIN
from tests.unit.test_pull_engine import (
    DIGEST,
    GONE,
    GOOD,
    LAYOUT,
    OURS,
    SLOTS,
    THEIRS,
    World,
    events_of,
    generation,
    key,
    names,
    payload,
)

pytestmark = needs_compiler
SIZE = 2 << 20
MOVER_DOWN = 6


def place(slot: int, tier: int) -> bytes:
    return struct.pack("<IBBH", 16 * slot, 16, tier, 0)


class Pool:
    """Slots in a GPU's memory, or the host's; a test writes and reads them as bytes."""

    def __init__(self, gpu: _native.Gpu | None) -> None:
        self.tier = HOST if gpu is None else DEVICE
        if gpu is None:
            self.pool = _native.Pool(LAYOUT.granule_bytes, SLOTS, SLOTS)
            self.pool.add_segment()
            self.map = _native.PoolMap(LAYOUT.granule_bytes, SLOTS, SLOTS, 0, writable=True)
            self.map.add_segment(self.pool.segment_fd(0))
        else:
            self.memory = _native.GpuMemory(gpu, SIZE)
            self.map = _native.GpuPool(self.memory, LAYOUT.granule_bytes, SLOTS)

    def at(self, slot: int) -> int:
        return self.map.slot_address(place(slot, self.tier))

    def write(self, slot: int, n: int, counter: int) -> None:
        """A fake card's memory is the host's."""
        _native.write_slot(self.at(slot), LAYOUT, key(n), generation(THEIRS, counter), payload(n))

    def check(self, slot: int, n: int) -> int:
        return _native.check_slot(self.at(slot), LAYOUT, key(n), generation(OURS, 1))

    def close(self) -> None:
        self.map.close()
        if self.tier == HOST:
            self.pool.close()


class GpuWorld:
    def __init__(self, fake: FakeCuda, theirs: bool, ours: bool) -> None:
        gpu = _native.Gpu(0, str(fake.path))
        gpu.load(FATBIN)
        self.theirs, self.ours = Pool(gpu if theirs else None), Pool(gpu if ours else None)
        number = next(names)
        self.serve = _native.Transport("loopback", f"gpu-serve{number}")
        self.pull_agent = _native.Transport("loopback", f"gpu-pull{number}")
        size = SLOTS * LAYOUT.slot_bytes
        self.serve.register(self.theirs.map.address, size, self.theirs.tier)
        self.pull_agent.register(self.ours.map.address, size, self.ours.tier)
        more = (gpu, 2) if ours else ()
        self.engine = _native.PullEngine(self.pull_agent, self.ours.map, *more)
        self.peer = _native.PullPeer(
            "h",
            self.serve.metadata(),
            self.theirs.map.address,
            LAYOUT.granule_bytes,
            16 * SLOTS,
            16 * SLOTS,
            self.theirs.tier,
        )

    def pull(self, job: int, n: int, slot: int, counter: int, own: int, tier: int = -1) -> int:
        """The result, of one chunk."""
        remote = place(slot, self.theirs.tier if tier < 0 else tier)
        self.engine.pull(
            job, self.peer, LAYOUT, THEIRS, OURS, key(n), remote,
            struct.pack("<I", counter), place(own, self.ours.tier), struct.pack("<I", 1), 30.0,
        )  # fmt: skip
        (event,) = events_of(self.engine)
        assert event.job == job
        return event.results[0]

    def close(self) -> None:
        del self.engine
        gc.collect()
        self.theirs.close()
        self.ours.close()


@pytest.fixture
def fake() -> Iterator[FakeCuda]:
    with FakeCuda() as fake:
        yield fake
        gc.collect()


@pytest.mark.parametrize(("theirs", "ours"), [(True, True), (True, False), (False, True)])
def test_a_slot_comes_whole_under_our_generation(fake: FakeCuda, theirs: bool, ours: bool) -> None:
    world = GpuWorld(fake, theirs, ours)
    world.theirs.write(3, n=1, counter=9)
    assert world.pull(1, n=1, slot=3, counter=9, own=7) == GOOD
    assert world.ours.check(7, 1) == _native.SlotStatus.GOOD
    assert (fake.launches()["lmkv_verify_16"] > 0) == ours
    world.close()


def test_what_is_torn_is_read_twice_and_refused_and_nobody_reads_it(fake: FakeCuda) -> None:
    import ctypes

    world = GpuWorld(fake, True, True)
    world.theirs.write(0, n=1, counter=2)
    ctypes.c_uint8.from_address(world.theirs.at(0) + LAYOUT.payload_offset + 77).value ^= 1
    assert world.pull(1, n=1, slot=0, counter=2, own=5) == DIGEST
    assert fake.launches()["lmkv_verify_16"] == 2
    assert world.ours.check(5, 1) == _native.SlotStatus.GONE
    word = ctypes.c_uint64.from_address(world.ours.at(5)).value
    assert word == 0
    world.close()


def test_another_life_of_a_slot_is_gone(fake: FakeCuda) -> None:
    world = GpuWorld(fake, True, True)
    world.theirs.write(0, n=1, counter=3)
    assert world.pull(1, n=1, slot=0, counter=2, own=5) == GONE
    assert world.pull(2, n=1, slot=0, counter=3, own=5, tier=HOST) == GONE  # no such place
    assert world.pull(3, n=1, slot=0, counter=3, own=5) == GOOD
    world.close()


def test_a_slot_is_cleared_before_the_read_is_posted(fake: FakeCuda) -> None:
    """Whatever comes of it: what was there is accepted by nobody."""
    world = GpuWorld(fake, True, True)
    world.theirs.write(0, n=1, counter=3)
    assert world.pull(1, n=1, slot=0, counter=3, own=5) == GOOD
    fills = fake.count("fill")
    world.theirs.map.slot_address(place(1, DEVICE))
    assert world.pull(2, n=2, slot=1, counter=1, own=5) == GONE  # nothing was written there
    assert fake.count("fill") > fills
    assert world.ours.check(5, 1) == _native.SlotStatus.GONE
    world.close()


@pytest.mark.parametrize("when", ["before the READ", "after it"])
def test_a_lost_gpu_is_said_and_the_peer_is_not_to_blame(fake: FakeCuda, when: str) -> None:
    world = GpuWorld(fake, True, True)
    world.theirs.write(0, n=1, counter=3)
    if when == "before the READ":
        fake.lose_context()
    else:
        fake.fail("launch", 1, NUMBERS["LAUNCH_FAILED"])
    assert world.engine.lost == ""
    assert world.pull(1, n=1, slot=0, counter=3, own=5) == MOVER_DOWN
    assert "CUDA_ERROR_" in world.engine.lost
    world.close()
    fake.reset()


def test_memory_of_two_kinds_is_not_one_read() -> None:
    world, other = World(), _native.Transport("loopback", f"two{next(names)}")
    a, b = world.ours.address, world.theirs.address
    other.register(a, 4096)
    other.register(b, 4096, DEVICE)
    peer = other.connect(world.serve.metadata())
    with pytest.raises(ValueError, match="is in memory of another kind than those before it"):
        other.read(peer, [a, b], [b, b], [64, 64])
    with pytest.raises(RuntimeError, match="not registered there"):
        other.read(peer, [a], [b], [64], DEVICE)
    with pytest.raises(ValueError, match="tier 2: 0"):
        other.register(a, 4096, 2)
