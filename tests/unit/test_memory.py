"""Pools: sealed segments at a fixed address, and what a peer may do with their descriptors."""

import contextlib
import ctypes
import fcntl
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from lmkv._native import Pool, PoolMap, SlotLayout, SlotStatus, check_slot, write_slot

LAYOUT = SlotLayout(2, 64, 1, 5)  # a slot is 16 granules of 4 KiB
SLOT = LAYOUT.slot_bytes
KEY = bytes(16)
ALL_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def place(granule: int, granules: int = 16, tier: int = 0) -> bytes:
    return granule.to_bytes(4, "little") + bytes([granules, tier, 0, 0])


@contextlib.contextmanager
def closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.fixture
def pool() -> Iterator[Pool]:
    """Five slots in segments of two: the last segment is shorter."""
    pool = Pool(LAYOUT.granule_bytes, 5, 2)
    yield pool
    pool.close()


def memfd(size: int, seals: int) -> int:
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def test_segments_become_usable_one_by_one(pool: Pool) -> None:
    assert (pool.slots, pool.segment_slots, pool.segments) == (5, 2, 0)
    with pytest.raises(ValueError, match=r"granules 0 .. 15, but 0 are usable"):
        pool.slot_address(place(0))
    assert [pool.add_segment() for _ in range(3)] == [0, 1, 2]
    assert pool.segments == 3
    with pytest.raises(ValueError, match="all 3 segments are there"):
        pool.add_segment()
    assert pool.slot_address(place(64)) == pool.address + 4 * SLOT
    with pytest.raises(ValueError, match=r"granules 80 .. 95, but 80 are usable"):
        pool.slot_address(place(80))


def test_segment_sizes_modes_and_seals(pool: Pool) -> None:
    for _ in range(3):
        pool.add_segment()
    for segment, slots in enumerate((2, 2, 1)):
        with closing(pool.segment_fd(segment)) as fd:
            status = os.fstat(fd)
            assert status.st_size == slots * SLOT
            assert status.st_mode & 0o777 == 0o600
            seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
            assert seals & ALL_SEALS == ALL_SEALS
            # A restarted mover maps it writable again.
            assert not seals & (fcntl.F_SEAL_WRITE | 0x10)  # FUTURE_WRITE
            assert os.get_inheritable(fd) is False
            with pytest.raises(PermissionError):
                os.ftruncate(fd, 0)


def test_populate_takes_the_memory_at_once(pool: Pool) -> None:
    pool.add_segment(populate=False)
    pool.add_segment(populate=True)
    used = []
    for segment in (0, 1):
        with closing(pool.segment_fd(segment)) as fd:
            used.append(os.fstat(fd).st_blocks * 512)
    assert used == [0, 2 * SLOT]


def test_what_a_peer_gets_cannot_be_mapped_writable(pool: Pool) -> None:
    pool.add_segment()
    with closing(pool.segment_fd(0, readonly=True)) as fd:
        with pytest.raises(PermissionError):
            mmap.mmap(fd, 2 * SLOT, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        with pytest.raises(OSError):
            os.write(fd, b"x")
        writable = PoolMap(LAYOUT.granule_bytes, 5, 2, writable=True)
        with pytest.raises(RuntimeError, match="Permission denied"):
            writable.add_segment(fd)
        assert writable.segments == 0
        readable = PoolMap(LAYOUT.granule_bytes, 5, 2)
        assert readable.add_segment(fd) == 0


def test_a_map_sees_the_pools_bytes(pool: Pool) -> None:
    pool.add_segment()
    pool.add_segment()
    peer = PoolMap(LAYOUT.granule_bytes, 5, 2)
    for segment in (0, 1):
        with closing(pool.segment_fd(segment, readonly=True)) as fd:
            peer.add_segment(fd)
    write_slot(pool.slot_address(place(48)), LAYOUT, KEY, 9, bytes(128))
    assert peer.address != pool.address
    assert check_slot(peer.slot_address(place(48)), LAYOUT, KEY, 9) == SlotStatus.GOOD
    peer.close()
    assert check_slot(pool.slot_address(place(48)), LAYOUT, KEY, 9) == SlotStatus.GOOD


def test_a_writable_map_is_the_pool() -> None:
    pool = Pool(LAYOUT.granule_bytes, 2, 2)
    pool.add_segment()
    mover = PoolMap(LAYOUT.granule_bytes, 2, 2, writable=True)
    with closing(pool.segment_fd(0)) as fd:
        mover.add_segment(fd)
    write_slot(mover.slot_address(place(16)), LAYOUT, KEY, 3, bytes(128))
    assert check_slot(pool.slot_address(place(16)), LAYOUT, KEY, 3) == SlotStatus.GOOD


def resident(address: int) -> int:
    """Bytes of the mapping at `address` that have page table entries."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    for line in lines:
        if line.startswith(f"{address:x}-"):
            return next(int(n.split()[1]) << 10 for n in lines if n.startswith("Rss:"))
    raise AssertionError(f"nothing is mapped at {address:x}")


@pytest.mark.parametrize("writable", [True, False])
def test_faults_are_taken_ahead_and_no_byte_changes(writable: bool) -> None:
    layout = SlotLayout(64, 1 << 16, 1, 5)  # 4 MiB and a table: two pieces a segment
    pool = Pool(layout.granule_bytes, 10, 5)
    for _ in range(2):
        pool.add_segment()
    segment_bytes = 5 * layout.slot_bytes
    there = pool.slot_address(place(64))
    write_slot(there, layout, KEY, 3, bytes(range(256)) * (layout.payload_bytes // 256))
    before = ctypes.string_at(pool.address, segment_bytes)
    peer = PoolMap(layout.granule_bytes, 10, 5, writable=writable)
    for segment in (0, 1):
        with closing(pool.segment_fd(segment, readonly=not writable)) as fd:
            peer.add_segment(fd)
    assert resident(peer.address) == 0
    peer.fault_in(0)
    assert resident(peer.address) == segment_bytes
    assert ctypes.string_at(pool.address, segment_bytes) == before
    with pytest.raises(ValueError, match="segment 2 of 2"):
        peer.fault_in(2)


@pytest.mark.parametrize(
    ("seals", "missing"),
    [
        (0, "SHRINK GROW SEAL missing"),
        (fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL, "not sealed: SHRINK missing"),
        (fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL, "not sealed: GROW missing"),
        (fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW, "not sealed: SEAL missing"),
    ],
)
def test_an_unsealed_segment_is_refused(seals: int, missing: str) -> None:
    peer = PoolMap(LAYOUT.granule_bytes, 2, 2)
    with closing(memfd(2 * SLOT, seals)) as fd, pytest.raises(RuntimeError, match=missing):
        peer.add_segment(fd)
    assert peer.segments == 0


def test_a_segment_of_another_size_is_refused() -> None:
    peer = PoolMap(LAYOUT.granule_bytes, 3, 2)
    sizes = f"{SLOT} bytes, announced are {2 * SLOT}"
    with closing(memfd(SLOT, ALL_SEALS)) as fd, pytest.raises(RuntimeError, match=sizes):
        peer.add_segment(fd)
    with closing(memfd(2 * SLOT, ALL_SEALS)) as fd:
        peer.add_segment(fd)
    with closing(memfd(SLOT, ALL_SEALS)) as fd:  # the last one is shorter
        assert peer.add_segment(fd) == 1


def test_what_is_no_memfd_is_refused(tmp_path: os.PathLike[str]) -> None:
    peer = PoolMap(LAYOUT.granule_bytes, 2, 2)
    folder = closing(os.open(tmp_path, os.O_RDONLY))
    with folder as fd, pytest.raises(RuntimeError, match=f"descriptor {fd} has no seals"):
        peer.add_segment(fd)


def test_addresses_are_random_and_high() -> None:
    pools = [Pool(LAYOUT.granule_bytes, 2, 2) for _ in range(4)]
    assert len({pool.address for pool in pools}) == 4
    for pool in pools:
        assert pool.address >= 1 << 44
        assert pool.address % (2 << 20) == 0


def test_a_given_address_is_taken_or_refused() -> None:
    pool = Pool(LAYOUT.granule_bytes, 4, 2)
    address = pool.address
    with pytest.raises(RuntimeError, match=f"0x{address:x}"):
        PoolMap(LAYOUT.granule_bytes, 4, 2, address)
    # Reserved as a whole from the start: the part without a segment is taken too.
    with pytest.raises(RuntimeError, match="File exists"):
        Pool(LAYOUT.granule_bytes, 1, 1, address + 3 * SLOT)
    pool.close()
    assert PoolMap(LAYOUT.granule_bytes, 4, 2, address).address == address


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (place(0, tier=1), "tier 1 is not 0"),
        (place(0, granules=0), "0 granules"),
        (place(0, granules=17), "17 granules"),
        (place(24), "granules 24 .. 39 cross segments of 32"),
        (b"short", "5 bytes, not 8"),
    ],
)
def test_a_place_that_is_no_slot(pool: Pool, bad: bytes, text: str) -> None:
    pool.add_segment()
    pool.add_segment()
    with pytest.raises(ValueError, match=text):
        pool.slot_address(bad)


def test_a_compressed_slot_begins_at_any_granule(pool: Pool) -> None:
    pool.add_segment()
    assert pool.slot_address(place(31, 1)) == pool.address + 31 * LAYOUT.granule_bytes


def test_closed_means_unmapped() -> None:
    pool = Pool(LAYOUT.granule_bytes, 2, 2)
    pool.add_segment()
    mapped = f"{pool.address:x}-"
    with open("/proc/self/maps") as maps:
        assert mapped in maps.read()
    pool.close()
    with open("/proc/self/maps") as maps:
        assert mapped not in maps.read()
    for call in (pool.add_segment, lambda: pool.slot_address(place(0))):
        with pytest.raises(ValueError):
            call()
    pool.close()  # twice is harmless


@pytest.mark.parametrize(
    ("slots", "segment_slots", "text"),
    [
        (0, 1, "slots: 0 is not in"),
        (1 << 28, 1, "slots: 268435456 is not in"),
        (1, 0, "segment_slots: 0"),
    ],
)
def test_a_pool_that_cannot_be(slots: int, segment_slots: int, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Pool(LAYOUT.granule_bytes, slots, segment_slots)


def test_a_pool_larger_than_addresses() -> None:
    with pytest.raises(ValueError, match=r"more than 2\^46 bytes"):
        Pool(SlotLayout(256, 1 << 20, 1, 0).granule_bytes, 1 << 27, 1)


def test_new_memory_is_zero(pool: Pool) -> None:
    pool.add_segment()
    assert ctypes.string_at(pool.address, 2 * SLOT) == bytes(2 * SLOT)
