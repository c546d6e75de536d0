"""Compressed slots: the golden vector of docs/slots.md, an oracle in numpy, and every reader."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lmkv import _native
from lmkv._native import SlotLayout, SlotStatus

from tests.compressed import (
    BF16,
    KEY,
    LAYOUT,
    Memory,
    compressed_slot,
    floats,
    full_slot,
)
from tests.unit.test_slot_format import V3
from tests.zstd import decompress

PAYLOAD = floats(1, LAYOUT.payload_bytes // 2)
HEADER = struct.Struct("<4s4BQ16sQIIQQ")
WIDTHS = {1: 1, 2: 2, 3: 4}


@pytest.fixture(params=_native.isas(), autouse=True)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _native.isa()
    _native.set_isa(request.param)
    yield request.param
    _native.set_isa(before)


def check(slot: Memory, generation: int = 7, key: bytes = KEY, room: int = 0) -> int:
    room = room or slot.bytes.size
    return _native.check_slot(slot.at, LAYOUT, key, generation, room)


def expand(slot: Memory, layout: SlotLayout = LAYOUT, room: int = 0) -> tuple[int, bytes]:
    """The status, and the payload as it was before."""
    full = Memory(layout.slot_bytes)
    room = room or slot.bytes.size
    status = _native.expand_slot(slot.at, room, layout, KEY, 7, full.at, 9)
    if status == SlotStatus.GOOD:
        assert _native.check_slot(full.at, layout, KEY, 9) == SlotStatus.GOOD
    else:
        assert not full.bytes[:8].any()  # nobody takes it for a slot
    begin = layout.payload_offset
    return status, full.bytes[begin : begin + layout.payload_bytes].tobytes()


def oracle(slot: Memory, layout: SlotLayout) -> bytes:
    """The payload, by docs/slots.md alone."""
    data = slot.bytes.tobytes()
    magic, version, codec, page_format, flags, fingerprint, key, generation, segments, units, *_ = (
        HEADER.unpack(data[:64])
    )
    assert (magic, version, page_format, flags) == (b"LMKV", 1, layout.page_format, 1)
    assert (fingerprint, key, generation) == (layout.fingerprint, KEY, 7)
    assert segments == layout.segments
    table = data[64 : 64 + 16 * segments]
    assert struct.unpack("<Q", data[48:56])[0] == _native.lmx64(table, 2**24 - 1)
    head = data[:56] + bytes(8)
    assert struct.unpack("<Q", data[56:64])[0] == _native.lmx64(head, 2**24 - 2)
    payload = data[-(-(64 + 16 * segments) // 4096) * 4096 :][: units * 64]
    out, width = b"", WIDTHS[codec]
    plane = layout.segment_bytes // width
    for n in range(segments):
        digest, offset, length = struct.unpack_from("<QII", table, 16 * n)
        stored = payload[offset * 64 : offset * 64 + length * 16]
        assert digest == _native.lmx64(stored, n)
        sizes, at, planes = struct.unpack_from(f"<{width}I", stored), 4 * width, []
        for size in sizes:
            raw = stored[at : at + size]
            planes.append(raw if size == plane else decompress(raw))
            at += size
        assert not any(stored[at:]) and len(stored) - at < 64
        words = np.frombuffer(b"".join(planes), np.uint8).reshape(width, plane).T
        whole = np.ascontiguousarray(words).view(f"<u{width}").ravel()
        if width > 1:  # back by a bit
            whole = (whole >> 1) | (whole << (8 * width - 1))
        out += whole.tobytes()
    return out


def test_golden_slot() -> None:
    """Noise has no plane that shrinks, so these bytes depend on no version of zstd."""
    layout = SlotLayout(2, 16384, 1, 0x1122334455667788)
    slot = compressed_slot(V3[:32768], layout)
    head = slot.bytes[:96].tobytes()
    assert head.hex() == (
        "4c4d4b56010201018877665544332211000102030405060708090a0b0c0d0e0f"
        "070000000000000002000000020200003b5d741f4193640e53d7562874dbe085"
        "b71010035a7a5fbd0000000004040000c3e04bfc9886375f0101000004040000"
    )


@pytest.mark.parametrize(("codec", "seed"), [(1, 3), (2, 3), (3, 3), (2, 4)])
def test_the_oracle_reads_what_was_compressed(codec: int, seed: int) -> None:
    payload = floats(seed, LAYOUT.payload_bytes // 2)
    slot = compressed_slot(payload, codec=codec)
    assert oracle(slot, LAYOUT) == payload
    assert expand(slot) == (SlotStatus.GOOD, payload)
    assert check(slot) == SlotStatus.GOOD


@given(
    st.integers(1, 5),
    st.integers(1, 40),
    st.sampled_from([1, 2, 3]),
    st.sampled_from(["zeros", "noise", "floats", "mixed"]),
    st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_every_payload_comes_back(
    segments: int, units: int, codec: int, kind: str, seed: int
) -> None:
    layout = SlotLayout(segments, 64 * units, 2, 5)
    size = layout.payload_bytes
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, size, np.uint8).tobytes()
    mixed = bytes(size // 2) + noise[: size - size // 2]
    some = {"zeros": bytes(size), "noise": noise, "floats": floats(seed, size // 2), "mixed": mixed}
    slot = compressed_slot(some[kind], layout, codec)
    assert oracle(slot, layout) == some[kind]
    assert expand(slot, layout) == (SlotStatus.GOOD, some[kind])


def test_it_shrinks() -> None:
    full, short = full_slot(PAYLOAD), compressed_slot(PAYLOAD)
    assert short.bytes.size <= 13 * LAYOUT.granule_bytes < full.bytes.size


def test_another_key_or_generation_is_gone() -> None:
    slot = compressed_slot(PAYLOAD)
    assert check(slot, generation=8) == SlotStatus.GONE
    assert check(slot, key=bytes(16)) == SlotStatus.GONE
    _native.clear_slot(slot.at)
    assert check(slot) == SlotStatus.GONE


def test_nothing_is_read_beyond_its_place() -> None:
    """A place that is shorter than the slot is of another one: nothing behind it is looked at."""
    slot = compressed_slot(PAYLOAD)
    less = slot.bytes.size - LAYOUT.granule_bytes
    assert check(slot, room=less) == SlotStatus.GONE
    assert expand(slot, room=less)[0] == SlotStatus.GONE
    full = full_slot(PAYLOAD)
    assert check(full, room=LAYOUT.used_bytes - 64) == SlotStatus.GONE


@pytest.mark.parametrize("at", [64, 70, 4096, 9000])  # table and payload
def test_a_flipped_bit_is_found(at: int) -> None:
    slot = compressed_slot(PAYLOAD)
    slot.bytes[at] ^= 1
    assert check(slot) == SlotStatus.DIGEST
    assert expand(slot)[0] == SlotStatus.DIGEST


def reseal(slot: Memory, **fields: int) -> None:
    """A writer that lies, with digests that hold."""
    head = list(HEADER.unpack(slot.bytes[:64].tobytes()))
    names = ["version", "codec", "page_format", "flags"]
    for name, value in fields.items():
        head[1 + names.index(name)] = value
    table = slot.bytes[64 : 64 + 16 * LAYOUT.segments].tobytes()
    head[-2] = _native.lmx64(table, 2**24 - 1)
    head[-1] = 0
    head[-1] = _native.lmx64(HEADER.pack(*head), 2**24 - 2)
    slot.bytes[:64] = np.frombuffer(HEADER.pack(*head), np.uint8)


@pytest.mark.parametrize(
    "fields", [{"codec": 4}, {"codec": 255}, {"flags": 0}, {"flags": 3}, {"page_format": 2}]
)
def test_what_cannot_be_decoded_is_incompatible(fields: dict[str, int]) -> None:
    slot = compressed_slot(PAYLOAD)
    reseal(slot)
    assert check(slot) == SlotStatus.GOOD
    reseal(slot, **fields)
    assert check(slot) == SlotStatus.INCOMPATIBLE
    assert expand(slot)[0] == SlotStatus.INCOMPATIBLE
    assert _native.adopt_slot(slot.at, LAYOUT, KEY, 7, 8, slot.bytes.size) == 3


@pytest.mark.parametrize(("offset", "length"), [(1 << 31, 4), (0, 0), (0, 1 << 31)])
def test_segments_lie_in_the_payload(offset: int, length: int) -> None:
    slot = compressed_slot(PAYLOAD)
    entry = struct.pack("<II", offset, length)
    slot.bytes[64 + 8 : 64 + 16] = np.frombuffer(entry, np.uint8)
    reseal(slot)
    assert check(slot) == SlotStatus.DIGEST
    assert expand(slot)[0] == SlotStatus.DIGEST


def test_stored_bytes_that_are_no_segment() -> None:
    """Their digest holds, and they cannot be decoded: never wrong bytes, never a crash."""
    slot = compressed_slot(PAYLOAD)
    for junk in (b"\xff" * 8, struct.pack("<II", 1, 1), struct.pack("<II", 4096, 4000)):
        slot.bytes[4096 : 4096 + len(junk)] = np.frombuffer(junk, np.uint8)
        length = struct.unpack_from("<I", slot.bytes.tobytes(), 64 + 12)[0]
        stored = slot.bytes[4096 : 4096 + 16 * length].tobytes()
        digest = struct.pack("<Q", _native.lmx64(stored, 0))
        slot.bytes[64:72] = np.frombuffer(digest, np.uint8)
        reseal(slot)
        assert check(slot) == SlotStatus.GOOD
        assert expand(slot)[0] == SlotStatus.DIGEST


def test_a_granule_written_anew_ends_what_lay_there() -> None:
    """Slots of 3 of 16 granules lie side by side, and others are written over parts of them: a
    reader of the old ones finds them gone, not wrong, wherever their headers are."""
    granule, size = LAYOUT.granule_bytes, compressed_slot(bytes(LAYOUT.payload_bytes)).bytes.size
    n = size // granule
    assert 2 <= n <= 8
    pool = _native.Pool(granule, 4, 4)
    pool.add_segment()
    place = lambda first, granules=n: struct.pack("<IBBH", first, granules, 0, 0)  # noqa: E731

    def put(first: int, seed: int) -> Callable[[], int]:
        """A chunk of zeros there; what a reader says of it from now on."""
        at, key = pool.slot_address(place(first)), bytes([seed]) * 16
        _native.write_slot(full.at, LAYOUT, key, 7, bytes(LAYOUT.payload_bytes))
        _, image = _native.compress_slot(full.at, LAYOUT, key, 7, BF16)
        pool.clear(place(first))
        _native.place_compressed(at, size, LAYOUT, key, 7, BF16, image)
        return lambda: int(_native.check_slot(at, LAYOUT, key, 7, size))

    full = Memory(LAYOUT.slot_bytes)
    for shift in range(n):
        old = [put(16 + i * n, 1 + i) for i in range(4)]
        assert [check() for check in old] == [SlotStatus.GOOD] * 4
        new = put(16 + n + shift, 9)
        assert new() == SlotStatus.GOOD
        over = {1} | ({2} if shift else set())
        expected = [SlotStatus.GONE if i in over else SlotStatus.GOOD for i in range(4)]
        assert [check() for check in old] == expected, shift
    # A full slot's frame is taken by compressed ones, and is a full one's again.
    fulls = [pool.slot_address(place(16 * i, 16)) for i in range(4)]
    payload = floats(3, LAYOUT.payload_bytes // 2)
    for i, at in enumerate(fulls):
        pool.clear(place(16 * i, 16))
        _native.write_slot(at, LAYOUT, bytes([20 + i]) * 16, 7, payload)
    put(16 + 12, 31)  # over the last bytes of the second frame's slot, which has 13 granules of 16
    reaching = put(32 - 1, 30)  # from behind them into the third
    states = [_native.check_slot(at, LAYOUT, bytes([20 + i]) * 16, 7) for i, at in enumerate(fulls)]
    good, gone = SlotStatus.GOOD, SlotStatus.GONE
    assert states == [good, gone, gone, good]
    pool.clear(place(32, 16))
    _native.write_slot(fulls[2], LAYOUT, bytes([40]) * 16, 7, payload)
    assert reaching() == gone
    assert _native.check_slot(fulls[2], LAYOUT, bytes([40]) * 16, 7) == good
    pool.close()


def test_bytes_without_the_magic_are_no_slot() -> None:
    """Where a split frame is used anew another chunk's payload may lie over an old header."""
    slot = compressed_slot(PAYLOAD)
    slot.bytes[:64] = 0x5A
    assert check(slot) == SlotStatus.GONE


def test_a_puller_adopts_it_as_it_is() -> None:
    slot = compressed_slot(PAYLOAD)
    assert _native.adopt_slot(slot.at, LAYOUT, KEY, 7, 8, slot.bytes.size) == SlotStatus.GOOD
    assert check(slot, generation=8) == SlotStatus.GOOD
    assert check(slot, generation=7) == SlotStatus.GONE
    assert _native.adopt_slot(slot.at, LAYOUT, KEY, 7, 9, slot.bytes.size) == SlotStatus.GONE


def test_what_is_compressed_is_not_compressed_again() -> None:
    slot = compressed_slot(PAYLOAD)
    assert _native.compress_slot(slot.at, LAYOUT, KEY, 7, BF16) == (SlotStatus.INCOMPATIBLE, b"")
    full = full_slot(PAYLOAD)
    assert _native.compress_slot(full.at, LAYOUT, KEY, 8, BF16) == (SlotStatus.GONE, b"")
    with pytest.raises(ValueError, match=r"codec: 4 is not in 1 \.\. 3"):
        _native.compress_slot(full.at, LAYOUT, KEY, 7, 4)


def test_an_image_that_does_not_fit_is_refused() -> None:
    full = full_slot(PAYLOAD)
    _, image = _native.compress_slot(full.at, LAYOUT, KEY, 7, BF16)
    target = Memory(LAYOUT.slot_bytes)
    with pytest.raises(ValueError, match="image: "):
        _native.place_compressed(target.at, len(image) - 64, LAYOUT, KEY, 1, BF16, image)
    assert not target.bytes.any()


def test_scatter_decodes_on_the_way() -> None:
    layers, heads, blocks, page = 3, 2, 4, 4096
    kv = np.zeros((layers, blocks, heads, page), np.uint8)
    addresses = [kv[n].ctypes.data for n in range(layers)]
    pages = _native.Pages(addresses, blocks, heads, 1, page, heads * page, page)
    copier = _native.Copier(LAYOUT, pages, 2)
    slot = compressed_slot(PAYLOAD)
    room = slot.bytes.size
    assert copier.scatter(slot.at, KEY, 7, [3, 1], room) == SlotStatus.GOOD
    assert np.ascontiguousarray(kv[:, [3, 1]].transpose(0, 2, 1, 3)).tobytes() == PAYLOAD
    assert not kv[:, [0, 2]].any()
    slot.bytes[5000] ^= 1
    assert copier.scatter(slot.at, KEY, 7, [3, 1], room) == SlotStatus.DIGEST
