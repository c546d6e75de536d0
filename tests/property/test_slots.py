"""Whatever happens to a slot's bytes, a reader never calls them good."""

import ctypes
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lmkv import _native
from lmkv._native import SlotLayout, SlotStatus

SEGMENTS, SEGMENT = 5, 192
LAYOUT = SlotLayout(SEGMENTS, SEGMENT, 1, 0xFEEDFACE)
KEY, GENERATION = b"sixteen-byte-key", (77 << 32) | 3
TABLE = 64 + 48  # header, and five digests padded to six
PAYLOAD = np.random.default_rng(3).integers(0, 256, SEGMENTS * SEGMENT, np.uint8)
READ = (*range(TABLE), *range(4096, 4096 + SEGMENTS * SEGMENT))  # offsets that a reader relies on

pool = _native.Pool(LAYOUT.granule_bytes, 1, 1)
pool.add_segment()
slot = np.frombuffer((ctypes.c_uint8 * 8192).from_address(pool.address), np.uint8)
slot = np.lib.stride_tricks.as_strided(slot, writeable=True)


@pytest.fixture(params=_native.isas(), autouse=True, scope="module")
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _native.isa()
    _native.set_isa(request.param)
    yield request.param
    _native.set_isa(before)


def fresh(payload: np.ndarray = PAYLOAD, key: bytes = KEY, generation: int = GENERATION) -> None:
    slot[:] = 0
    _native.write_slot(pool.address, LAYOUT, key, generation, payload.tobytes())


def verdict() -> int:
    return _native.check_slot(pool.address, LAYOUT, KEY, GENERATION)


def test_untouched_is_good() -> None:
    fresh()
    assert verdict() == SlotStatus.GOOD


def test_any_single_flipped_bit_is_found() -> None:
    fresh()
    for at in READ:
        for bit in range(8):
            slot[at] ^= 1 << bit
            found = verdict()
            slot[at] ^= 1 << bit
            # Corruption; but the magic's makes it no slot, the version's another format's.
            named = SlotStatus.GONE if at < 4 else SlotStatus.INCOMPATIBLE
            assert found == (named if at <= 4 else SlotStatus.DIGEST), (at, bit)
    assert verdict() == SlotStatus.GOOD


@given(st.sets(st.tuples(st.sampled_from(READ), st.integers(1, 255)), min_size=1, max_size=8))
def test_bytes_changed_anywhere(changes: set[tuple[int, int]]) -> None:
    fresh()
    intact = slot.copy()
    for at, change in changes:
        slot[at] ^= change
    assert (verdict() == SlotStatus.GOOD) == np.array_equal(slot, intact)


@given(st.integers(0, 4096 + SEGMENTS * SEGMENT - 1), st.booleans())
def test_a_slot_that_arrived_in_part(length: int, tail_first: bool) -> None:
    """A READ brings bytes in any order: old zeros beside a new slot, from either end."""
    fresh()
    intact = slot.copy()
    slot[(slice(None, length) if tail_first else slice(length, None))] = 0
    whole = all(slot[at] == intact[at] for at in READ)
    assert (verdict() == SlotStatus.GOOD) == whole
    if not slot[:4].any():
        assert verdict() == SlotStatus.GONE


@given(st.integers(0, 64 * 65), st.booleans())
def test_a_mix_of_two_lives(cut: int, old_first: bool) -> None:
    """The slot as it was for another key and payload, overwritten in part by this one."""
    fresh()
    new = slot.copy()
    fresh(np.random.default_rng(4).integers(0, 256, PAYLOAD.size, np.uint8), b"another-key-here", 9)
    slot[(slice(cut, None) if old_first else slice(None, cut))] = new[
        (slice(cut, None) if old_first else slice(None, cut))
    ]
    whole = all(slot[at] == new[at] for at in READ)
    assert (verdict() == SlotStatus.GOOD) == whole


@given(st.permutations(range(SEGMENTS)))
def test_segments_in_another_order(order: list[int]) -> None:
    fresh()
    segments = slot[4096 : 4096 + PAYLOAD.size].reshape(SEGMENTS, SEGMENT)
    segments[:] = segments[order]
    table = slot[64 : 64 + 8 * SEGMENTS].reshape(SEGMENTS, 8)
    assert verdict() == (SlotStatus.GOOD if order == sorted(order) else SlotStatus.DIGEST)
    table[:] = table[order]  # even with their digests: the table has one too
    assert verdict() == (SlotStatus.GOOD if order == sorted(order) else SlotStatus.DIGEST)


@given(st.integers(0, SEGMENTS * SEGMENT // 16 - 1), st.integers(0, SEGMENTS * SEGMENT // 16 - 1))
def test_units_exchanged(a: int, b: int) -> None:
    fresh()
    units = slot[4096 : 4096 + PAYLOAD.size].reshape(-1, 16)
    units[[a, b]] = units[[b, a]]
    assert (verdict() == SlotStatus.GOOD) == (a == b)


@given(st.binary(min_size=16, max_size=16), st.integers(0, 2**64 - 1))
def test_another_key_or_generation_is_gone(key: bytes, generation: int) -> None:
    fresh()
    same = (key, generation) == (KEY, GENERATION)
    expected = SlotStatus.GOOD if same else SlotStatus.GONE
    assert _native.check_slot(pool.address, LAYOUT, key, generation) == expected
    assert _native.check_slot(pool.address, LAYOUT, KEY, generation ^ 1) == (
        SlotStatus.GOOD if generation ^ 1 == GENERATION else SlotStatus.GONE
    )


@pytest.mark.parametrize(
    "other",
    [
        SlotLayout(SEGMENTS, SEGMENT, 1, 0xFEEDFACF),
        SlotLayout(SEGMENTS, SEGMENT, 2, 0xFEEDFACE),
        SlotLayout(SEGMENTS - 2, SEGMENT, 1, 0xFEEDFACE),
        SlotLayout(SEGMENTS, SEGMENT + 64, 1, 0xFEEDFACE),
    ],
    ids=["fingerprint", "page_format", "segments", "segment_bytes"],
)
def test_another_layout_is_incompatible(other: SlotLayout) -> None:
    fresh()
    found = _native.check_slot(pool.address, other, KEY, GENERATION)
    assert found == SlotStatus.INCOMPATIBLE


@given(st.integers(0, 4), st.integers(1, 255))
def test_zeroed_magic_is_gone(extra: int, rubbish: int) -> None:
    fresh()
    slot[: 4 + extra] = 0
    slot[4096] ^= rubbish
    assert verdict() == SlotStatus.GONE
