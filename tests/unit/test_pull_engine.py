"""The engine over the loopback transport: what it refuses, and one report for each job."""

from __future__ import annotations

import select
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lmkv import _native

LAYOUT = _native.SlotLayout(2, 4096, 1, 99)
SLOTS = 16
GOOD, GONE, DIGEST, INCOMPATIBLE, TIMEOUT, PEER_DEAD = range(6)
THEIRS, OURS = 0x1111_2222_3333_4444, 0x5555_6666_7777_8888  # epochs
names = iter(range(1 << 30))


def place(slot: int, granules: int = 16) -> bytes:
    return struct.pack("<IBBH", 16 * slot, granules, 0, 0)


def generation(epoch: int, counter: int) -> int:
    return (epoch & 0xFFFFFFFF) << 32 | counter


def key(n: int) -> bytes:
    return bytes([n]) * 16


def payload(n: int) -> bytes:
    return bytes([n, 255 - n]) * (LAYOUT.payload_bytes // 2)


def events_of(engine: _native.PullEngine, count: int = 1) -> list[_native.PullEvent]:
    found: list[_native.PullEvent] = []
    while len(found) < count:
        assert select.select([engine.fd], [], [], 20)[0], "the engine reports nothing"
        found += engine.take()
    return found


class World:
    """A holder's pool, our pool, and an engine between them."""

    def __init__(self) -> None:
        self.theirs = _native.Pool(LAYOUT.granule_bytes, SLOTS, SLOTS)
        self.theirs.add_segment()
        pool = _native.Pool(LAYOUT.granule_bytes, SLOTS, SLOTS)
        pool.add_segment()
        self.ours = _native.PoolMap(LAYOUT.granule_bytes, SLOTS, SLOTS, 0, writable=True)
        self.ours.add_segment(pool.segment_fd(0))
        number = next(names)
        self.serve = _native.Transport("loopback", f"serve{number}")
        self.serve.register(self.theirs.address, SLOTS * LAYOUT.slot_bytes)
        self.transport = _native.Transport("loopback", f"pull{number}")
        self.transport.register(self.ours.address, SLOTS * LAYOUT.slot_bytes)
        self.engine = _native.PullEngine(self.transport, self.ours)
        self.peer = _native.PullPeer(
            "h",
            self.serve.metadata(),
            self.theirs.address,
            LAYOUT.granule_bytes,
            16 * SLOTS,
            16 * SLOTS,
        )

    def pull(self, job, chunks, own, deadline=30.0, peer=None) -> None:
        """`chunks`: (n, slot, counter); `own`: slots, admitted as 1."""
        self.engine.pull(
            job,
            peer or self.peer,
            LAYOUT,
            THEIRS,
            OURS,
            b"".join(key(n) for n, _, _ in chunks),
            b"".join(place(slot) for _, slot, _ in chunks),
            b"".join(struct.pack("<I", counter) for _, _, counter in chunks),
            b"".join(place(slot) for slot in own),
            struct.pack("<I", 1) * len(own),
            deadline,
        )

    def events(self, count: int = 1) -> list[_native.PullEvent]:
        return events_of(self.engine, count)

    def write(self, slot: int, n: int, counter: int) -> None:
        at = self.theirs.slot_address(place(slot))
        _native.write_slot(at, LAYOUT, key(n), generation(THEIRS, counter), payload(n))

    def holds(self, slot: int, n: int) -> bool:
        at = self.ours.slot_address(place(slot))
        return _native.check_slot(at, LAYOUT, key(n), generation(OURS, 1)) == GOOD


def test_a_job_is_reported_once_with_its_bytes():
    world = World()
    world.write(3, n=1, counter=9)
    world.pull(5, [(1, 3, 9)], [7])
    (event,) = world.events()
    assert (event.job, event.results, event.limbo_ended) == (5, bytes([GOOD]), False)
    assert event.bytes == LAYOUT.payload_offset + LAYOUT.payload_bytes
    assert world.holds(7, 1)
    assert world.engine.take() == []
    assert world.engine.limbo_slots == 0 and world.engine.limbo_seconds == 0


def test_a_deadline_of_nothing_is_a_timeout_and_the_places_come_back():
    world = World()
    world.write(0, n=0, counter=1)
    world.pull(1, [(0, 0, 1)] * 8, list(range(8)), deadline=0.0)
    pulled, ended = world.events(2)
    assert not pulled.limbo_ended and ended.limbo_ended and ended.job == 1
    assert TIMEOUT in pulled.results
    assert world.engine.limbo_slots == 0
    for slot, result in enumerate(pulled.results):
        assert world.holds(slot, 0) == (result == GOOD)


def test_a_dead_peer_fails_its_jobs_and_not_others():
    world = World()
    world.write(0, n=0, counter=1)
    dead = _native.Transport("loopback", f"dead{next(names)}")
    metadata = dead.metadata()
    dead.close()
    peer = _native.PullPeer("dead", metadata, world.theirs.address, 4096, 256, 256)
    world.pull(1, [(0, 0, 1)], [0], peer=peer)
    world.pull(2, [(0, 0, 1)], [1])
    first, second = sorted(world.events(2), key=lambda event: event.job)
    assert (first.results, first.stale) == (bytes([PEER_DEAD]), True)
    assert "loopback agent" in first.error
    assert (second.results, second.stale) == (bytes([GOOD]), False)


def test_forget_then_pull_connects_again():
    world = World()
    world.write(0, n=0, counter=1)
    for job in (1, 2):
        world.pull(job, [(0, 0, 1)], [0])
        assert world.events()[0].results == bytes([GOOD])
        world.engine.forget("h")


def test_misuse_is_named():
    world = World()
    with pytest.raises(ValueError, match="pull 1: no chunks"):
        world.pull(1, [], [])
    with pytest.raises(ValueError, match=r"granules 256 \.\. 271"):
        world.pull(1, [(0, 0, 1)], [SLOTS])
    with pytest.raises(ValueError, match="deadline -1"):
        world.pull(1, [(0, 0, 1)], [0], deadline=-1.0)
    with pytest.raises(ValueError, match="pull 1: unequal counts 1, 1, 1, 0, 0"):
        world.pull(1, [(0, 0, 1)], [])
    arrays = [key(0), place(0), struct.pack("<I", 1), place(0, 8), struct.pack("<I", 1)]
    with pytest.raises(ValueError, match="own place of 8 granules, theirs has 16"):
        world.engine.pull(1, world.peer, LAYOUT, THEIRS, OURS, *arrays, 1.0)
    with pytest.raises(ValueError, match="keys: 15 bytes are not a multiple of 16"):
        world.engine.pull(1, world.peer, LAYOUT, THEIRS, OURS, key(0)[:15], *arrays[1:], 1.0)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_whatever_the_holder_has_only_the_asked_bytes_are_good(data):
    """Model: a chunk is GOOD exactly when the holder's slot has that key and counter, unflipped."""
    world = World()
    slots = data.draw(
        st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3), st.booleans()), min_size=SLOTS,
                 max_size=SLOTS)
    )  # fmt: skip
    for slot, (n, counter, whole) in enumerate(slots):
        world.write(slot, n, counter)
        if not whole:
            flipped = bytearray(payload(n))
            flipped[data.draw(st.integers(0, len(flipped) - 1))] ^= 1
            _overwrite(world.theirs.slot_address(place(slot)) + LAYOUT.payload_offset, flipped)
    count = data.draw(st.integers(1, SLOTS))
    chunks = [
        (data.draw(st.integers(0, 3)), data.draw(st.integers(0, SLOTS - 1)),
         data.draw(st.integers(1, 3)))
        for _ in range(count)
    ]  # fmt: skip
    own = data.draw(st.permutations(range(SLOTS)))[:count]
    world.pull(1, chunks, own)
    results = world.events()[0].results
    for (n, slot, counter), place_, result in zip(chunks, own, results, strict=True):
        has_n, has_counter, whole = slots[slot]
        same = (n, counter) == (has_n, has_counter)
        assert result == (GONE if not same else GOOD if whole else DIGEST)
        assert world.holds(place_, n) == (result == GOOD)


def _overwrite(address: int, data: bytes) -> None:
    import ctypes

    ctypes.memmove(address, bytes(data), len(data))
