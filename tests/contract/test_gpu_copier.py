"""The GPU's copier, on a fake driver and on a real card: what the host's copier and numpy's oracle
make, both ways across the link."""

from __future__ import annotations

import contextlib
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lmkv import _native
from lmkv._native import SKIPPED_BLOCK, Pool, PoolMap, SlotPart, SlotStatus

from tests.gpu.cards import PATHS, Card, FakeCards, OnFake, OnReal, RealCards, pages
from tests.kernels.bodies import Case, World, aligned
from tests.kernels.cases import CASES, cases, kv

GOOD, DIGEST = SlotStatus.GOOD, SlotStatus.DIGEST
Device = OnFake | OnReal


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> str:
    return request.param


def small() -> World:
    return cleared(World(kv("small", "lbthp", 64, 4), chunks=2))


def cleared(world: World) -> World:
    """Of what an earlier life has left in its slots."""
    for slot in world.slots:
        slot[:] = 0
    return world


def with_slots(world: World, blocks: list[list[int]]) -> World:
    world.slots = [world.slot_like_the_host(of_chunk, n) for n, of_chunk in enumerate(blocks)]
    return world


def assert_slots(world: World, blocks: list[list[int]]) -> None:
    for n, of_chunk in enumerate(blocks):
        assert np.array_equal(world.slots[n], world.slot_like_the_host(of_chunk, n))


def by_the_hosts_copier(world: World, blocks: list[int]) -> np.ndarray:
    """The first chunk's slot, of the pages as the host knows them."""
    here = pages(world, [layer.ctypes.data for layer in world.kv])
    copier, slot = _native.Copier(world.layout, here, world.case.per_chunk), aligned(world.used)
    copier.gather(slot.ctypes.data, world.keys[0], world.generations[0], blocks)
    return slot


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_gather_makes_the_hosts_slot_and_a_scatter_the_oracles_blocks(
    device: Device, case: Case, path: str
) -> None:
    world = cleared(World(case, chunks=1 if case.per_chunk * 2 > case.blocks else 2))
    card = Card(device, world)
    card.know_slots()
    source, target = world.some_blocks(), world.some_blocks()
    card.gather(source, path)
    assert_slots(world, source)
    if card.copier.piece == 16:
        assert np.array_equal(world.slots[0], by_the_hosts_copier(world, source[0]))
    assert card.copier.audit(card.stores, card.chunks(source)) == [GOOD] * world.chunks
    expected = world.expect_scatter(target, [world.payload(blocks) for blocks in source])
    assert card.scatter(target, path) == [GOOD] * world.chunks
    assert np.array_equal(card.memory(), expected)
    card.close()


def test_slots_that_the_gpu_does_not_know(device: Device, path: str) -> None:
    world = small()
    card, source, target = Card(device, world), world.some_blocks(), world.some_blocks()
    card.gather(source, path)
    assert_slots(world, source)
    expected = world.expect_scatter(target, [world.payload(blocks) for blocks in source])
    assert card.copier.audit(card.stores, card.chunks(source)) == [GOOD] * 2
    assert card.scatter(target, path) == [GOOD] * 2
    assert np.array_equal(card.memory(), expected)


def test_a_pool_and_a_peers_mapping_of_it(device: Device, path: str) -> None:
    """The mapping is read-only. A system that does not register those says so, and slots in it are
    copied."""
    world = small()
    card, source, target = Card(device, world), world.some_blocks(), world.some_blocks()
    granule, slot_bytes = world.layout.granule_bytes, world.layout.slot_bytes
    pool, peers = Pool(granule, 2, 2), PoolMap(granule, 2, 2)
    pool.add_segment()
    fd = pool.segment_fd(0, readonly=True)
    peers.add_segment(fd)
    os.close(fd)
    card.know(*pool.segment(0))
    slots = [pool.address, pool.address + slot_bytes]
    card.copier.gather(card.stores, card.chunks(source, slots), staged=PATHS[path])
    for n, slot in enumerate(slots):
        key, generation = world.keys[n], world.generations[n]
        assert _native.check_slot(slot, world.layout, key, generation) == GOOD
    with contextlib.suppress(RuntimeError):
        card.know(*peers.segment(0), readonly=True)
    slots = [peers.address, peers.address + slot_bytes]
    expected = world.expect_scatter(target, [world.payload(blocks) for blocks in source])
    chunks = card.chunks(target, slots)
    assert card.copier.scatter(card.loads, chunks, staged=PATHS[path]) == [GOOD] * 2
    assert np.array_equal(card.memory(), expected)
    card.close()
    peers.close()
    pool.close()


def test_more_slots_than_a_lane_has_room_for(device: Device) -> None:
    """Five chunks by lanes of one slot each: rounds take turns, and nothing is mixed up."""
    world = cleared(World(Case(2, 2, 11, 2, 4, 64, "lbthp", 2), chunks=5))
    card = Card(device, world, staging=2 * (world.used + 256))
    card.know_slots()
    source, target = world.some_blocks(), world.some_blocks()
    card.gather(source, "staged")
    assert_slots(world, source)
    expected = world.expect_scatter(target, [world.payload(blocks) for blocks in source])
    assert card.scatter(target, "staged") == [GOOD] * 5
    assert np.array_equal(card.memory(), expected)
    narrow = _native.GpuChannel(card.gpu, urgent=False, staging_bytes=128)
    with pytest.raises(ValueError, match="staging: 64 bytes a lane, a slot has"):
        card.copier.gather(narrow, card.chunks(source), staged=True)
    card.close()


def test_kernel_blocks_are_told_as_vllms(device: Device, path: str) -> None:
    """vLLM's block is two kernel blocks; block 1 is kernel blocks 2 and 3."""
    world = cleared(World(Case(2, 2, 8, 2, 4, 64, "lbthp", 4)))
    card = Card(device, world, kernel_blocks=2)
    card.know_slots()
    card.gather([[3, 1]], path)
    assert np.array_equal(world.slots[0], world.slot_like_the_host([6, 7, 2, 3]))
    expected = world.expect_scatter([[SKIPPED_BLOCK] * 2 + [0, 1]], [world.payload([6, 7, 2, 3])])
    assert card.scatter([[SKIPPED_BLOCK, 0]], path) == [GOOD]
    assert np.array_equal(card.memory(), expected)
    with pytest.raises(ValueError, match="blocks: 4 of 4"):
        card.gather([[4, 1]], path)
    with pytest.raises(ValueError, match="blocks: 3, a chunk has 2"):
        card.gather([[0, 1, 2]], path)
    card.close()


def test_a_part_of_a_peers_slot(device: Device, path: str) -> None:
    """A holder's slot has 4 heads of 3 layers; the reader's heads are its heads 1 and 2."""
    holder = World(Case(3, 2, 4, 4, 4, 64, "lbthp", 2))
    (source,) = holder.some_blocks()
    world = World(Case(3, 2, 5, 3, 4, 64, "lpbht", 2), seed=2)
    world.slots, expected = [holder.slot_like_the_host(source)], world.memory.copy()
    world.view(expected)[:, :, [4, 0], 1:3] = holder.kv[:, :, source, 1:3]
    part = SlotPart(world.layout, holder.layout, 3, 1, 1, 2)
    card = Card(device, world)
    card.know_slots()
    assert card.scatter([[4, 0]], path, part=part) == [GOOD]
    assert np.array_equal(card.memory(), expected)
    card.close()


def test_a_bad_slot_is_named(device: Device, path: str) -> None:
    world = small()
    blocks = world.some_blocks()
    card = Card(device, with_slots(world, blocks))
    card.know_slots()
    world.slots[1][world.layout.payload_offset + 5] ^= 1
    assert card.scatter(blocks, path) == [GOOD, DIGEST]
    assert card.copier.audit(card.stores, card.chunks(blocks))[0] == GOOD
    world.slots[1][:8] = 0
    assert card.scatter(blocks, path) == [GOOD, SlotStatus.GONE]
    card.close()


@given(cases(), st.integers(0, 2**32 - 1), st.sampled_from(sorted(PATHS)))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_the_layout_and_the_order_among_streams(
    cards: FakeCards | RealCards, case: Case, seed: int, path: str
) -> None:
    with cards.fresh(seed) as device:
        world = cleared(World(case, 2, seed))
        card = Card(device, world, staging=2 * (world.used + 256))
        card.know_slots()
        source, target = world.some_blocks(), world.some_blocks()
        card.gather(source, path)
        assert_slots(world, source)
        expected = world.expect_scatter(target, [world.payload(blocks) for blocks in source])
        assert card.scatter(target, path) == [GOOD] * 2
        assert np.array_equal(card.memory(), expected)
        card.close()
        del card
