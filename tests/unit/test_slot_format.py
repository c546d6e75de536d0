"""The golden vectors of docs/slots.md, and a slot's sizes."""

import ctypes
from collections.abc import Iterator

import numpy as np
import pytest
from lmkv import _native
from lmkv._native import SlotLayout, SlotStatus

KEY = bytes(range(16))
HEADER = bytes.fromhex(
    "4c4d4b56010001008877665544332211000102030405060708090a0b0c0d0e0f"
    "07000000000000000200000000020000b6794d6c06666bee62b99c8a30ce105d"
)


@pytest.fixture(params=_native.isas(), autouse=True)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _native.isa()
    _native.set_isa(request.param)
    yield request.param
    _native.set_isa(before)


def generator(bytes_: int) -> bytes:
    """x = x * 1664525 + 1013904223 from 1 on, as u32 words."""
    words, x = [], 1
    for _ in range(bytes_ // 4):
        x = (x * 1664525 + 1013904223) % 2**32
        words.append(x)
    return np.array(words, "<u4").tobytes()


V3 = generator(65536)


@pytest.mark.parametrize(
    ("data", "segment", "digest"),
    [
        (bytes(16), 0, 0xA2E4B28D82197B2A),
        (bytes(range(48)), 1, 0xF847701B64D72957),
        (V3, 63, 0x2692966A16B27130),
    ],
    ids=["V1", "V2", "V3"],
)
def test_golden_digests(data: bytes, segment: int, digest: int) -> None:
    assert _native.lmx64(data, segment) == digest


def formula(data: bytes, segment: int) -> int:
    """lmx64 as docs/slots.md writes it, in Python's integers."""
    g = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F)
    low, all_ = 2**32, 2**64
    t0 = t1 = 0
    for n in range(1, len(data) // 16 + 1):
        w = np.frombuffer(data, "<u4", 4, (n - 1) * 16).tolist()
        a, b, c, d = ((w[k] + n * g[k]) % low for k in range(4))
        x, y = ((b << 32 | a) + c * d) % all_, ((d << 32 | c) + a * b) % all_
        t0 += (x % low) * (x >> 32) + y
        t1 += (y % low) * (y >> 32) + x

    def mix(z: int) -> int:
        z %= all_
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % all_
        z = (z ^ z >> 27) * 0x94D049BB133111EB % all_
        return z ^ z >> 31

    return mix(mix(mix(len(data) + (segment << 40)) + t0) + t1)


@pytest.mark.parametrize("units", [1, 2, 3, 7, 8, 9, 15, 17, 127, 128, 129, 131, 1001])
def test_any_number_of_units(units: int) -> None:
    data = np.random.default_rng(units).integers(0, 256, units * 16, np.uint8).tobytes()
    assert _native.lmx64(data, 2**24 - 3) == formula(data, 2**24 - 3)


@pytest.mark.parametrize(
    ("data", "segment", "text"),
    [
        (b"", 0, "data: 0 bytes"),
        (bytes(15), 0, "data: 15 bytes are not a multiple of 16"),
        (bytes(16), 2**24, "segment: 16777216 is not below"),
    ],
)
def test_bad_input_is_named(data: bytes, segment: int, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        _native.lmx64(data, segment)


def test_golden_header() -> None:
    layout = SlotLayout(2, 16384, 1, 0x1122334455667788)
    pool = _native.Pool(layout.granule_bytes, 1, 1)
    pool.add_segment()
    _native.write_slot(pool.address, layout, KEY, 7, V3[:32768])
    slot = ctypes.string_at(pool.address, layout.payload_offset + layout.payload_bytes)
    assert slot[:64] == HEADER
    table = b"".join(
        _native.lmx64(V3[n * 16384 : (n + 1) * 16384], n).to_bytes(8, "little") for n in (0, 1)
    )
    assert slot[64:80] == table
    assert slot[80:4096] == bytes(4096 - 80)
    assert slot[4096:] == V3[:32768]
    assert _native.check_slot(pool.address, layout, KEY, 7) == SlotStatus.GOOD


def test_an_odd_table_is_padded_with_zeros() -> None:
    layout = SlotLayout(3, 64, 2, 1)
    pool = _native.Pool(layout.granule_bytes, 1, 1)
    pool.add_segment()
    ctypes.memset(pool.address, 0xFF, 4096)
    _native.write_slot(pool.address, layout, KEY, 1, bytes(192))
    assert ctypes.string_at(pool.address + 64 + 24, 8) == bytes(8)
    assert _native.check_slot(pool.address, layout, KEY, 1) == SlotStatus.GOOD


def test_sizes_of_an_8b_models_chunk() -> None:
    # 32 layers of 8 heads, 256 tokens of 128 values in bf16, K and V: 32 MiB and one page.
    layout = SlotLayout(256, 256 * 128 * 2 * 2, 1, 5)
    assert layout.payload_offset == 4096
    assert layout.payload_bytes == 32 << 20
    assert layout.used_bytes == layout.payload_offset + (32 << 20)
    assert layout.granule_bytes == (2 << 20) + 4096  # 1/16 of 32 MiB + 4096, rounded up
    assert layout.slot_bytes == 16 * layout.granule_bytes
    assert layout.fingerprint == 5


@pytest.mark.parametrize(("segments", "offset"), [(1, 4096), (504, 4096), (505, 8192)])
def test_the_payload_begins_at_a_page(segments: int, offset: int) -> None:
    assert SlotLayout(segments, 64, 1, 0).payload_offset == offset


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((0, 64, 1, 0), "segments: 0 is not in"),
        ((2**24 - 2, 64, 1, 0), "segments: 16777214 is not in"),
        ((1, 0, 1, 0), "segment_bytes: 0"),
        ((1, 96, 1, 0), "segment_bytes: 96 is not a multiple of 64"),
        ((1 << 20, 1 << 20, 1, 0), "payload: 1048576 segments of 1048576 bytes"),
        ((1, 64, 3, 0), "page_format: 3 is not 1"),
    ],
)
def test_a_layout_that_cannot_be_is_named(arguments: tuple[int, ...], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        SlotLayout(*arguments)


def test_a_puller_adopts_a_good_slot_only() -> None:
    layout = SlotLayout(2, 64, 1, 3)
    pool = _native.Pool(layout.granule_bytes, 1, 1)
    pool.add_segment()
    _native.write_slot(pool.address, layout, KEY, 7, bytes(128))
    assert _native.adopt_slot(pool.address, layout, KEY, 7, 1 << 32 | 9) == SlotStatus.GOOD
    assert _native.check_slot(pool.address, layout, KEY, 7) == SlotStatus.GONE
    assert _native.check_slot(pool.address, layout, KEY, 1 << 32 | 9) == SlotStatus.GOOD
    ctypes.memset(pool.address + 4096, 1, 1)
    assert _native.adopt_slot(pool.address, layout, KEY, 1 << 32 | 9, 10) == SlotStatus.DIGEST
    assert _native.check_slot(pool.address, layout, KEY, 10) == SlotStatus.GONE


def test_a_cleared_slot_is_gone() -> None:
    layout = SlotLayout(1, 64, 1, 3)
    pool = _native.Pool(layout.granule_bytes, 1, 1)
    pool.add_segment()
    assert _native.check_slot(pool.address, layout, KEY, 7) == SlotStatus.GONE
    _native.write_slot(pool.address, layout, KEY, 7, bytes(64))
    _native.clear_slot(pool.address)
    assert _native.check_slot(pool.address, layout, KEY, 7) == SlotStatus.GONE
