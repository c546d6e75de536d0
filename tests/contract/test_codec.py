"""A real mover changes slots between their two forms, and pulls compressed ones as they are."""

from __future__ import annotations

import select
import struct

import numpy as np
import pytest
from lmkv import _native
from lmkv.core import geometry, zstd
from lmkv.core.messages import Compress, Compressed, Pull, PullResult, Refused, Rewrite, Rewritten
from lmkv.mover.codec import Codec
from mover_instance import TEXT, Instance, counters, generation, key, place, pulled

from tests.compressed import floats

GOOD, GONE, INCOMPATIBLE = PullResult.GOOD, PullResult.GONE, PullResult.INCOMPATIBLE
FULL = TEXT.replace("segment_bytes=16384", "segment_bytes=15360")  # no granule has room left
LAYOUT = geometry.slot_layout(FULL)
GRANULES = 12  # of these floats; 16 are a slot


def short(first: int, granules: int = GRANULES) -> bytes:
    return struct.pack("<IBBH", first, granules, 0, 0)


def floats_of(n: int) -> bytes:
    return floats(n, LAYOUT.payload_bytes // 2)


class Holder(Instance):
    """Whose chunks are floats, which compress, up to number 99; above they are noise."""

    def __init__(self, name, run_dir, **settings):
        zstd.load()
        super().__init__(name, run_dir, text=FULL, **settings)

    def payload(self, n):
        return np.frombuffer(floats_of(n), np.uint8) if n < 100 else super().payload(n)

    def compress(self, job: int, chunks: list[tuple[int, int, int]]) -> tuple[bytes, bytes]:
        """`chunks`: number, slot, counter. Results and granules."""
        self.send(
            Compress(job),
            b"".join(key(n) for n, _, _ in chunks),
            b"".join(place(slot) for _, slot, _ in chunks),
            counters(*(counter for _, _, counter in chunks)),
        )
        answer, frames = self.receive()
        assert isinstance(answer, Compressed) and answer.job == job, answer
        assert not answer.error
        return frames[0], frames[1]

    def rewrite(self, job: int, n: int, old: tuple[bytes, int], new: tuple[bytes, int]) -> int:
        """Chunk `n` from one (place, counter) to another; the result."""
        self.send(Rewrite(job), key(n), old[0], counters(old[1]), new[0], counters(new[1]))
        answer, frames = self.receive()
        assert isinstance(answer, Rewritten) and answer.job == job, answer
        return frames[0][0]

    def status(self, n: int, where: bytes, counter: int) -> int:
        room = where[4] * LAYOUT.granule_bytes if where[4] < 16 else 0
        address = self.pool.slot_address(where)
        name = generation(self.epoch, counter)
        return _native.check_slot(address, LAYOUT, key(n), name, room)

    def hold_compressed(self, n: int, slot: int, first: int) -> None:
        """Chunk `n`, by way of slot `slot`, compressed from granule `first` on; counter 50 + n."""
        self.write(slot, n, 1)
        self.compress(90, [(n, slot, 1)])
        assert self.rewrite(91, n, (place(slot), 1), (short(first), 50 + n)) == GOOD


@pytest.fixture
def holder(run_dir):
    with Holder("a", run_dir) as found:
        yield found


def test_there_and_back(holder):
    holder.write(3, 7, 11)
    assert holder.compress(1, [(7, 3, 11)]) == (bytes([GOOD]), bytes([GRANULES]))
    assert holder.rewrite(2, 7, (place(3), 11), (short(16 * 5 + 9), 12)) == GOOD
    assert holder.status(7, short(16 * 5 + 9), 12) == GOOD
    assert holder.check(3, 7, 11) == GOOD  # its bytes stay
    assert holder.rewrite(3, 7, (short(16 * 5 + 9), 12), (place(8), 13)) == GOOD
    assert holder.check(8, 7, 13) == GOOD
    assert holder.bytes_of(8).tobytes() == floats_of(7)


def test_neighbours_are_not_touched(holder):
    holder.hold_compressed(1, 0, 16 * 4)
    holder.hold_compressed(2, 0, 16 * 4 + GRANULES)
    holder.hold_compressed(3, 0, 16 * 4 + 2 * GRANULES)
    for i, n in enumerate((1, 2, 3)):
        assert holder.status(n, short(16 * 4 + i * GRANULES), 50 + n) == GOOD


def test_what_lay_there_before_is_gone(holder):
    """Its header is in front of what is written, or under it."""
    holder.hold_compressed(1, 0, 16 * 4)
    holder.hold_compressed(2, 0, 16 * 4 + GRANULES)
    holder.hold_compressed(3, 0, 16 * 4 + 5)
    assert [holder.status(n, short(at), 50 + n) for n, at in ((1, 64), (2, 76), (3, 69))] == [
        *(GONE, GONE, GOOD)
    ]
    holder.write(0, 4, 11)
    assert holder.rewrite(5, 4, (place(0), 11), (place(4), 12)) == GOOD  # a full one
    assert holder.status(3, short(69), 53) == GONE
    assert holder.check(4, 4, 12) == GOOD


def test_a_slot_for_which_memory_is_lacking_is_not_the_last(monkeypatch):
    zstd.load()
    pool = _native.Pool(LAYOUT.granule_bytes, 2, 2)
    pool.add_segment()
    _native.write_slot(pool.slot_address(place(0)), LAYOUT, key(1), generation(1, 1), floats_of(1))
    codec = Codec(0, pool, [FULL], LAYOUT.granule_bytes)

    def ask(message, *frames):
        codec.ask(b"", message, [key(1), place(0), counters(1), *frames], 1)
        assert select.select([codec.fd], [], [], 60.0)[0]
        [(_, answer)] = codec.answers()
        return answer[1][0]

    def fails(*_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(_native, "compress_slot", fails)
        assert ask(Compress(1)) == PullResult.MOVER_DOWN
    assert ask(Compress(2)) == GOOD
    with monkeypatch.context() as patch:
        patch.setattr(_native, "place_compressed", fails)
        assert ask(Rewrite(3), short(16), counters(2)) == PullResult.MOVER_DOWN
    assert ask(Rewrite(4), place(1), counters(2)) == GOOD
    pool.close()


def test_what_cannot_be_done_has_its_result(holder):
    holder.write(0, 1, 11)
    holder.write(1, 101, 12)  # noise
    results, granules = holder.compress(1, [(1, 0, 11), (101, 1, 12), (2, 0, 11), (1, 0, 99)])
    assert list(results) == [GOOD, GOOD, GONE, GONE]
    assert list(granules) == [GRANULES, 0, 0, 0]
    # What another Compress has taken the place of, and what a place is too short for.
    assert holder.rewrite(2, 2, (place(0), 11), (short(80), 13)) == GONE
    assert holder.rewrite(3, 1, (place(0), 11), (short(80, GRANULES - 1), 13)) == GONE
    holder.compress(4, [(1, 0, 11)])
    holder.compress(5, [])
    assert holder.rewrite(6, 1, (place(0), 11), (short(80), 13)) == GONE
    assert holder.rewrite(7, 1, (place(0), 12), (place(5), 13)) == GONE  # another life
    assert holder.status(1, short(80), 13) == GONE


def test_bad_questions_are_refused_and_the_mover_lives(holder):
    holder.send(Compress(1), key(1), place(0))
    answer, _ = holder.receive()
    assert isinstance(answer, Refused)
    assert "2 frames behind the message, expected 3" in answer.message
    most = (64 << 20) // LAYOUT.slot_bytes
    n = most + 1
    holder.send(Compress(2), key(1) * n, place(0) * n, counters(1) * n)
    answer, _ = holder.receive()
    assert isinstance(answer, Refused)
    assert f"{n} slots, allowed are {most}" in answer.message
    outside = struct.pack("<IBBH", 1 << 30, 16, 0, 0)
    holder.send(Compress(3), key(1), outside, counters(1))
    _, frames = holder.receive()
    assert frames[0] == bytes([GONE])


@pytest.mark.nixl
def test_compressed_slots_are_pulled_as_they_are(run_dir):
    with Holder("a", run_dir) as a, Holder("b", run_dir) as b:
        a.hold_compressed(1, 0, 16 * 4)
        a.hold_compressed(2, 0, 16 * 4 + GRANULES)
        a.write(7, 3, 9)
        b.send(
            _pull(1, a, b),
            key(1) + key(2) + key(3) + key(1),
            short(64) + short(64 + GRANULES) + place(7) + short(64),
            counters(51, 52, 9, 77),
            short(32) + short(32 + GRANULES) + place(9) + short(200),
            counters(1, 2, 3, 4),
        )
        answer, results = pulled(b, 1)
        assert results == [GOOD, GOOD, GOOD, GONE]
        assert b.status(1, short(32), 1) == GOOD
        assert b.status(2, short(32 + GRANULES), 2) == GOOD
        assert b.check(9, 3, 3) == GOOD
        size = 2 * GRANULES * LAYOUT.granule_bytes + LAYOUT.used_bytes
        assert answer.bytes == size
        assert b.rewrite(2, 2, (short(32 + GRANULES), 2), (place(12), 5)) == GOOD
        assert b.bytes_of(12).tobytes() == floats_of(2)
        b.send(_pull(2, a, b), key(3), place(7), counters(9), place(2), counters(6))
        assert pulled(b, 2)[1] == [GOOD]
        assert b.status(2, short(32 + GRANULES), 2) == GONE  # another chunk lies over its header


@pytest.mark.nixl
def test_heads_of_a_compressed_slot_are_not_pulled(run_dir):
    """Where they lie only its own table tells."""
    with Holder("a", run_dir) as a, Instance("b", run_dir, text=FULL, heads=(0, 1)) as b:
        a.hold_compressed(1, 0, 64)
        b.send(_pull(1, a, b), key(1), short(64), counters(51), place(2), counters(1))
        _, results = pulled(b, 1)
        assert results == [INCOMPATIBLE]


def _pull(job, a, b):
    return Pull(job, a.peer(), 10.0, b.layout.fingerprint)
