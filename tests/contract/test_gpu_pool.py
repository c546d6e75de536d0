"""Slots in a GPU's memory, on a fake driver and on a real card: gathered, judged and cleared there,
and read by another process through a CUDA IPC handle, byte by byte."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from lmkv import _native
from lmkv._native import GpuMemory, GpuPool, SlotStatus

from tests.fakecuda.build import ROOT
from tests.gpu.cards import Card, OnFake, OnReal
from tests.kernels.bodies import Case, World
from tests.kernels.cases import CASES, kv

GOOD, GONE, DIGEST = SlotStatus.GOOD, SlotStatus.GONE, SlotStatus.DIGEST
SIZE = 4 << 20
Device = OnFake | OnReal
Chunk = tuple[int, bytes, int, list[int], bool]


class PoolCard(Card):
    """Whose slots are in a pool on the card too."""

    def __init__(self, device: Device, world: World, memory: GpuMemory | None = None) -> None:
        super().__init__(device, world)
        slot = world.layout.slot_bytes
        size = -(-world.chunks * slot // SIZE) * SIZE
        self.memory_there = memory or GpuMemory(self.gpu, size)
        self.pool = GpuPool(self.memory_there, world.layout.granule_bytes, world.chunks)

    def there(self, blocks: list[list[int]]) -> list[Chunk]:
        at = [self.pool.address + n * self.pool.slot_bytes for n in range(len(blocks))]
        return [(*chunk, True) for chunk in self.chunks(blocks, at)]

    def slot(self, n: int) -> np.ndarray:
        """Its header, table and payload; what lies between is nobody's."""
        raw = self.memory_there.read(n * self.pool.slot_bytes, self.world.used)
        return told(self.world, np.frombuffer(raw, np.uint8))


def told(world: World, slot: np.ndarray) -> np.ndarray:
    table_end = 64 + (8 * world.layout.segments + 15) // 16 * 16
    return np.concatenate([slot[:table_end], slot[world.layout.payload_offset : world.used]])


@pytest.fixture
def kept() -> Iterator[list[PoolCard]]:
    """Their pools are closed in the end."""
    cards: list[PoolCard] = []
    yield cards
    for card in cards:
        card.pool.close()
        card.close()
    cards.clear()
    gc.collect()


def small() -> World:
    return World(kv("small", "lbthp", 64, 4), chunks=2)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_slot_there_is_the_hosts_and_a_scatter_makes_the_oracles_blocks(
    device: Device, case: Case, kept: list[PoolCard]
) -> None:
    world = World(case, chunks=1 if case.per_chunk * 2 > case.blocks else 2)
    kept.append(card := PoolCard(device, world))
    source, target = world.some_blocks(), world.some_blocks()
    card.copier.gather(card.stores, card.there(source))
    for n, blocks in enumerate(source):
        assert np.array_equal(card.slot(n), told(world, world.slot_like_the_host(blocks, n)))
    assert card.copier.verify(card.stores, card.there([[]] * len(source))) == [GOOD] * len(source)
    assert card.copier.audit(card.stores, card.there(source)) == [GOOD] * len(source)
    expected = world.expect_scatter(target, [world.payload(blocks) for blocks in source])
    assert card.copier.scatter(card.loads, card.there(target)) == [GOOD] * len(source)
    assert np.array_equal(card.memory(), expected)


def test_a_slot_that_is_cleared_or_changed_is_judged_so(
    device: Device, kept: list[PoolCard]
) -> None:
    world = small()
    kept.append(card := PoolCard(device, world))
    blocks = world.some_blocks()
    card.copier.gather(card.stores, card.there(blocks))
    at = card.pool.slot_bytes + world.layout.payload_offset + 5
    (byte,) = card.memory_there.read(at, 1)
    card.memory_there.write(at, bytes([byte ^ 1]))
    assert card.copier.verify(card.stores, card.there(blocks)) == [GOOD, DIGEST]
    assert card.copier.scatter(card.loads, card.there(blocks)) == [GOOD, DIGEST]
    card.copier.clear(card.stores, card.there(blocks)[:1])
    assert card.copier.verify(card.stores, card.there(blocks)) == [GONE, DIGEST]
    assert card.copier.scatter(card.loads, card.there(blocks)) == [GONE, DIGEST]


def test_one_call_is_for_one_kind_of_memory(device: Device, kept: list[PoolCard]) -> None:
    world = small()
    kept.append(card := PoolCard(device, world))
    blocks = world.some_blocks()
    mixed = [card.there(blocks)[0], card.chunks(blocks)[1]]
    with pytest.raises(ValueError, match="some are in a GPU's memory, and some are not"):
        card.copier.gather(card.stores, mixed)
    with pytest.raises(ValueError, match="they are not in a GPU's memory"):
        card.copier.verify(card.stores, card.chunks(blocks))
    with pytest.raises(ValueError, match="they are not in a GPU's memory"):
        card.copier.clear(card.stores, card.chunks(blocks))


def test_memory_begins_empty_and_its_slots_are_gone(device: Device, kept: list[PoolCard]) -> None:
    memory = GpuMemory(device.gpu(), SIZE)
    assert memory.read(0, SIZE) == bytes(SIZE)
    kept.append(card := PoolCard(device, small(), memory))
    assert card.copier.verify(card.stores, card.there([[], []])) == [GONE, GONE]


def test_sizes_that_cannot_be(device: Device, kept: list[PoolCard]) -> None:
    gpu = device.gpu()
    with pytest.raises(ValueError, match="bytes: 4096 is not a multiple of 2097152"):
        GpuMemory(gpu, 4096)
    memory = GpuMemory(gpu, SIZE)
    with pytest.raises(ValueError, match="slots: 65 of 65536 bytes do not fit into 4194304"):
        GpuPool(memory, 4096, 65)
    with pytest.raises(ValueError, match="offset: 2 bytes at 4194303 of 4194304"):
        memory.write(SIZE - 1, b"ab")
    pool = GpuPool(memory, 4096, 64)
    assert (pool.tier, pool.segments, pool.segment_slots) == (1, 1, 64)
    with pytest.raises(ValueError, match="place: tier 0 is not 1"):
        pool.slot_address(b"\0\0\0\0\x10\0\0\0")
    pool.close()
    pool.close()
    with pytest.raises(ValueError, match="GPU memory: it is closed"):
        memory.read(0, 1)
    del memory, pool, gpu
    gc.collect()


HOLDER = """
import sys
from lmkv import _native
from tests.fakecuda.fake import FakeCuda
library = str(FakeCuda().__enter__().path) if sys.argv[1] == "fake" else "libcuda.so.1"
memory = _native.GpuMemory(_native.Gpu(0, library), int(sys.argv[2]))
memory.write(0, sys.stdin.buffer.read(int(sys.argv[3])))
print(memory.handle().hex(), flush=True)
sys.stdin.buffer.read()
"""


def test_a_pool_of_another_process_is_read_where_it_is(
    device: Device, kept: list[PoolCard]
) -> None:
    """From the card to the card; and one that is not as large as was announced is not opened."""
    world = small()
    source, target = world.some_blocks(), world.some_blocks()
    gap = bytes(world.layout.slot_bytes - world.used)
    slots = b"".join(world.slot_like_the_host(b, n).tobytes() + gap for n, b in enumerate(source))
    kind = "fake" if isinstance(device, OnFake) else "real"
    words = [sys.executable, "-c", HOLDER, kind, str(SIZE), str(len(slots))]
    ends = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(words, cwd=ROOT, **ends) as holder:  # type: ignore[call-overload]
        holder.stdin.write(slots)
        holder.stdin.flush()
        handle = bytes.fromhex(holder.stdout.readline().decode())
        gpu = device.gpu()
        with pytest.raises(RuntimeError, match=f"GPU memory of {SIZE} bytes, {2 * SIZE} were"):
            GpuMemory(gpu, 2 * SIZE, handle)
        with pytest.raises(ValueError, match="handle: 3 bytes, not 64"):
            GpuMemory(gpu, SIZE, b"abc")
        kept.append(card := PoolCard(device, world, GpuMemory(gpu, SIZE, handle)))
        expected = world.expect_scatter(target, [world.payload(blocks) for blocks in source])
        assert card.copier.scatter(card.loads, card.there(target)) == [GOOD, GOOD]
        assert np.array_equal(card.memory(), expected)
        card.pool.close()
        holder.stdin.close()
        assert holder.wait(30) == 0
    if kind == "fake":
        with pytest.raises(RuntimeError, match="CUDA_ERROR_INVALID_VALUE"):  # who had it is gone
            GpuMemory(gpu, SIZE, handle)
    del gpu


def test_nothing_is_taken_where_there_is_no_room(device: Device) -> None:
    gpu = device.gpu()
    free, total = gpu.memory()
    assert 0 < free <= total
    with pytest.raises(RuntimeError, match="CUDA_ERROR_OUT_OF_MEMORY"):
        GpuMemory(gpu, (total + (4 << 20)) // (2 << 20) * (2 << 20))
    assert isinstance(gpu, _native.Gpu)
