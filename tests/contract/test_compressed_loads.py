"""A worker loads compressed chunks: of its own pool, of mapped peers', heads of them too; a host's
and a GPU's, whose driver is a fake one."""

from __future__ import annotations

import ctypes
import struct

import numpy as np
import pytest
from lmkv import _native
from lmkv.core import wire
from lmkv.core.messages import Check, Checked, PullResult
from lmkv.core.steps import SKIPPED, LoadChunk
from test_worker import EPOCH, Rank, gpu, key, peer_of, place, start, start_host, two_ranks

from tests.compressed import BF16, floats

__all__ = ["gpu", "start", "start_host"]  # fixtures

FREE = 5  # a slot where no chunk is stored: compressed ones are put there


def short(first: int, granules: int) -> bytes:
    return struct.pack("<IBBH", first, granules, 0, 0)


def generation(counter: int) -> int:
    return (EPOCH & 0xFFFFFFFF) << 32 | counter


def fill(rank: Rank, seed: int) -> None:
    array = rank.kv.array
    array[:] = np.frombuffer(floats(seed, array.size // 2), np.uint8).reshape(array.shape)


def compress(rank: Rank, n: int, first: int) -> bytes:
    """Chunk `n`, which is stored, goes to granule `first` as counter 50 + n, as a mover does it.
    Its place; the full slot is gone."""
    pool, layout = rank.worker.pool, rank.kv.slot
    address = pool.slot_address(place(n))
    status, image = _native.compress_slot(address, layout, key(n), generation(n), BF16)
    assert status == _native.SlotStatus.GOOD
    where = short(first, -(-len(image) // layout.granule_bytes))
    to, room = pool.slot_address(where), where[4] * layout.granule_bytes
    name = generation(50 + n)
    _native.place_compressed(to, room, layout, key(n), name, BF16, image)
    _native.clear_slot(address)
    return where


def chunk(n: int, where: bytes, blocks: list[int], peer: int = -1) -> LoadChunk:
    return LoadChunk(key(n), where, generation(50 + n), blocks, peer)


def test_the_own_pools(start) -> None:
    rank = start()
    rank.ready()
    fill(rank, 5)
    first, second = rank.kv.chunk(0, 1), rank.kv.chunk(2, 3)
    rank.save(1, [0, 1])
    rank.save(2, [2, 3])
    rank.save(3, [0, 1])
    one = compress(rank, 1, 16 * FREE + 3)
    two = compress(rank, 2, 16 * FREE + 3 + one[4])
    assert one[4] < 9  # of a full slot's granules that have bytes
    rank.kv.array[:] = 0
    full = LoadChunk(key(3), place(3), generation(3), [2, 3])
    result = rank.load(chunk(1, one, [7, 6]), full, chunk(2, two, [SKIPPED, 4]))
    assert (result.good, result.result) == (3, PullResult.GOOD)
    assert result.bytes == 3 * rank.kv.slot.payload_bytes
    assert np.array_equal(rank.kv.chunk(7, 6), first)
    assert np.array_equal(rank.kv.chunk(2, 3), first)
    assert np.array_equal(rank.kv.array[:, 4], second[:, 1])
    assert not rank.kv.array[:, [0, 1, 5]].any()


def test_a_neighbours(start) -> None:
    here, there = start("a", 1), start("b", 2)
    here.ready()
    peer = peer_of(there, there.ready())
    fill(there, 6)
    there.save(1, [3, 5])
    there.save(2, [1, 2])
    one = compress(there, 1, 16 * FREE)
    two = compress(there, 2, 16 * FREE + one[4])
    result = here.load(chunk(1, one, [0, 1], 0), chunk(2, two, [3, 2], 0), peers=[peer])
    assert (result.good, result.result) == (2, PullResult.GOOD)
    assert np.array_equal(here.kv.chunk(0, 1), there.kv.chunk(3, 5))
    assert np.array_equal(here.kv.chunk(3, 2), there.kv.chunk(1, 2))


def test_a_neighbour_of_two_ranks_gives_a_head_each(start) -> None:
    here = start("a", 1)
    here.ready()
    ranks, peers = two_ranks(start, "b")
    for rank in ranks:
        fill(rank, 7)
        rank.save(1, [3, 5])
    (where,) = {compress(rank, 1, 16 * FREE) for rank in ranks}
    result = here.load(chunk(1, where, [0, 1], 0), peers=[peers])
    assert (result.good, result.result) == (1, PullResult.GOOD)
    for head, rank in enumerate(ranks):
        assert np.array_equal(here.kv.array[:, [0, 1], head], rank.kv.array[:, [3, 5], 0])


def test_a_store_ends_what_reaches_into_its_place(start) -> None:
    rank = start()
    rank.ready()
    fill(rank, 5)
    rank.save(1, [0, 1])
    one = compress(rank, 1, 16 * FREE - 1)
    asked = chunk(1, one, [4, 3])
    assert rank.load(asked).result == PullResult.GOOD
    rank.save(FREE, [2, 3])
    assert (rank.load(asked).good, rank.load(asked).result) == (0, PullResult.GONE)
    full = LoadChunk(key(FREE), place(FREE), generation(FREE), [4, 3])
    assert rank.load(full).result == PullResult.GOOD


@pytest.mark.parametrize(
    ("what", "expected"),
    [("payload", "DIGEST"), ("short", "GONE"), ("counter", "GONE"), ("codec", "INCOMPATIBLE")],
)
def test_what_is_wrong_ends_the_load(start, what: str, expected: str) -> None:
    rank = start()
    rank.ready()
    fill(rank, 8)
    rank.save(1, [0, 1])
    rank.save(2, [2, 3])
    one = compress(rank, 1, 16 * FREE)
    two = compress(rank, 2, 16 * FREE + one[4])
    asked = chunk(2, two, [4, 5])
    if what == "short":
        asked = chunk(2, short(16 * FREE + one[4], two[4] - 1), [4, 5])
    elif what == "counter":
        asked = LoadChunk(key(2), two, generation(99), [4, 5], -1)
    else:
        at = rank.worker.pool.slot_address(two) + (4096 + 70 if what == "payload" else 5)
        spoil(at, rank, two)
    result = rank.load(chunk(1, one, [6, 7]), asked)
    assert (result.good, result.result) == (1, getattr(PullResult, expected))
    assert rank.worker.take_failed_blocks() == {4, 5}


def spoil(at: int, rank: Rank, where: bytes) -> None:
    """Another codec, under a checksum that holds; or another byte of the payload."""
    start_ = rank.worker.pool.slot_address(where)
    (ctypes.c_uint8 * 1).from_address(at)[0] ^= 0x84
    header = (ctypes.c_uint8 * 64).from_address(start_)
    head = bytes(header)[:56] + bytes(8)
    if at < start_ + 64:
        header[56:64] = struct.pack("<Q", _native.lmx64(head, 2**24 - 2))


def test_compressed_slots_are_digested_again(start_host) -> None:
    rank = start_host()
    rank.ready()
    fill(rank, 9)
    rank.save(1, [0, 1])
    rank.save(2, [2, 3])
    rank.save(3, [2, 3])
    one = compress(rank, 1, 16 * FREE)
    two = compress(rank, 2, 16 * FREE + one[4])
    spoil(rank.worker.pool.slot_address(two) + 4096 + 70, rank, two)
    counters = struct.pack("<III", 51, 52, 3)
    frames = [key(1) + key(2) + key(3), one + two + place(3), counters]
    rank.agent.send_multipart(wire.encode(Check(5, EPOCH), *frames))
    while not isinstance((heard := rank.receive())[0], Checked):
        pass
    assert list(heard[1][0]) == [PullResult.GOOD, PullResult.DIGEST, PullResult.GOOD]
