"""Gather and scatter move exactly the bytes that numpy's oracle names, whatever the strides."""

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lmkv import _native
from lmkv._native import SKIPPED_BLOCK, Copier, Pages, Pool, SlotLayout, SlotPart, SlotStatus

KEY, GENERATION = b"sixteen-byte-key", 5 << 32 | 2


@pytest.fixture(params=_native.isas(), autouse=True)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _native.isa()
    _native.set_isa(request.param)
    yield request.param
    _native.set_isa(before)


@dataclass
class Case:
    """KV as an array [layer, plane, block, head, token, byte], lying in memory in `order`."""

    name: str
    layers: int
    planes: int
    blocks: int
    heads: int
    tokens: int
    run: int
    order: str  # of the axes l p b h t, outermost first
    per_chunk: int
    offset: int = 64  # of the first byte from a page boundary, as vLLM's base pointers have
    gap: int = 0  # bytes after each run that belong to nobody

    def __str__(self) -> str:
        return self.name


CASES = [
    # One opaque page per (block, head): vLLM on a CPU, block 128, heads of 64 and 128, bf16.
    Case("opaque-64", 2, 1, 5, 2, 1, 128 * 2 * 64 * 2, "lpbht", 2),
    Case("opaque-128", 3, 1, 4, 2, 1, 128 * 2 * 128 * 2, "lpbht", 2),
    Case("one-block-chunk", 2, 1, 4, 2, 1, 256, "lpbht", 1),
    Case("blocks-outermost", 2, 1, 5, 2, 1, 4096, "blpht", 2),
    # K and V planes, tokens of a head apart (NHD) or together (HND).
    Case("tokens-nhd-64", 2, 2, 6, 2, 16, 64 * 2, "lpbth", 4),
    Case("tokens-nhd-128", 2, 2, 6, 4, 16, 128 * 2, "lpbth", 2),
    Case("tokens-hnd-128", 2, 2, 6, 2, 16, 128 * 2, "lpbht", 4),
    Case("kv-per-token", 2, 2, 6, 2, 8, 64 * 2, "lbhtp", 3),
    Case("kv-per-block", 2, 2, 6, 2, 8, 64, "lbpht", 3),
    # Odd lengths: tails of 16, 48 and 80 bytes, runs at addresses that are multiples of 16 only.
    Case("run-16", 2, 2, 5, 3, 3, 16, "lpbth", 2, offset=16),
    Case("run-48", 1, 2, 5, 2, 5, 48, "lpbht", 3, offset=48),
    Case("run-80", 2, 1, 7, 1, 1, 80, "lpbht", 3, offset=32, gap=48),
    Case("run-2064", 2, 1, 5, 2, 1, 2064, "lpbht", 2, offset=16, gap=16),
    Case("run-2176", 2, 1, 5, 2, 1, 2176, "lpbht", 2),
    Case("run-4224-gap", 1, 2, 5, 2, 1, 4224, "lpbht", 3, gap=64),
]


class World:
    """A case's KV with random bytes, a pool of two slots, and the copier between them."""

    def __init__(self, case: Case) -> None:
        self.case = case
        sizes = {
            "l": case.layers,
            "p": case.planes,
            "b": case.blocks,
            "h": case.heads,
            "t": case.tokens,
        }
        strides, step = {}, case.run + case.gap
        for axis in reversed(case.order):
            strides[axis] = step
            step *= sizes[axis]
        self.memory = np.random.default_rng(1).integers(0, 256, step + 8192, np.uint8)
        start = -self.memory.ctypes.data % 4096 + case.offset
        axes = "lpbht"
        self.kv = np.lib.stride_tricks.as_strided(
            self.memory[start:],
            [sizes[a] for a in axes] + [case.run],
            [strides[a] for a in axes] + [1],
        )
        self.pages = Pages(
            [self.kv[layer].ctypes.data for layer in range(case.layers)],
            case.blocks,
            case.heads,
            case.tokens,
            case.run,
            strides["b"],
            strides["h"],
            strides["t"],
            case.planes,
            strides["p"],
        )
        segment = self.pages.segment_bytes(case.per_chunk)
        self.layout = SlotLayout(case.layers * case.heads, segment, 1, 0xABC)
        self.copier = Copier(self.layout, self.pages, case.per_chunk)
        self.pool = Pool(self.layout.granule_bytes, 2, 2)
        self.pool.add_segment()
        self.slot = self.pool.address

    def payload(self, blocks: list[int]) -> np.ndarray:
        """The oracle: [segment, byte] of a chunk in these blocks, with zero padding."""
        # layer, head, plane, block, token, byte
        chunk = self.kv[:, :, blocks].transpose(0, 3, 1, 2, 4, 5)
        chunk = chunk.reshape(self.layout.segments, -1)
        return np.pad(chunk, ((0, 0), (0, self.layout.segment_bytes - chunk.shape[1])))

    def stored(self) -> np.ndarray:
        raw = ctypes.string_at(self.slot + self.layout.payload_offset, self.layout.payload_bytes)
        return np.frombuffer(raw, np.uint8).reshape(self.layout.segments, -1)

    def poke(self, offset: int, change: int = 1) -> None:
        byte = ctypes.c_uint8.from_address(self.slot + offset)
        byte.value ^= change


def some_blocks(case: Case, seed: int) -> list[int]:
    return np.random.default_rng(seed).permutation(case.blocks)[: case.per_chunk].tolist()


@pytest.fixture(params=CASES, ids=str)
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param)


@pytest.fixture
def small() -> World:
    return World(CASES[4])


def test_gather_is_the_oracle(world: World) -> None:
    blocks = some_blocks(world.case, 7)
    before = world.memory.copy()
    ctypes.memset(world.slot, 0xEE, world.layout.slot_bytes)  # what an earlier life has left
    world.copier.gather(world.slot, KEY, GENERATION, blocks)
    assert np.array_equal(world.stored(), world.payload(blocks))
    assert np.array_equal(world.memory, before)
    assert _native.check_slot(world.slot, world.layout, KEY, GENERATION) == SlotStatus.GOOD
    assert world.copier.audit(world.slot, blocks)


def test_gather_seals_what_write_slot_seals(world: World) -> None:
    blocks = some_blocks(world.case, 8)
    other = world.slot + world.layout.slot_bytes
    world.copier.gather(world.slot, KEY, GENERATION, blocks)
    _native.write_slot(other, world.layout, KEY, GENERATION, world.payload(blocks).tobytes())
    whole = world.layout.payload_offset + world.layout.payload_bytes
    assert ctypes.string_at(world.slot, whole) == ctypes.string_at(other, whole)


def test_scatter_writes_those_blocks_and_nothing_else(world: World) -> None:
    source, target = some_blocks(world.case, 7), some_blocks(world.case, 9)
    world.copier.gather(world.slot, KEY, GENERATION, source)
    expected = world.memory.copy()
    twin = np.lib.stride_tricks.as_strided(
        expected[world.kv.ctypes.data - world.memory.ctypes.data :],
        world.kv.shape,
        world.kv.strides,
    )
    twin[:, :, target] = world.kv[:, :, source]
    status = world.copier.scatter(world.slot, KEY, GENERATION, target)
    assert status == SlotStatus.GOOD
    assert np.array_equal(world.memory, expected)


@pytest.mark.parametrize("skipped", [0, -1], ids=["first", "last"])
def test_scatter_leaves_a_skipped_block_alone_and_checks_its_bytes(
    world: World, skipped: int
) -> None:
    source, target = some_blocks(world.case, 7), some_blocks(world.case, 9)
    world.copier.gather(world.slot, KEY, GENERATION, source)
    sources, targets = source.copy(), target.copy()
    del sources[skipped], targets[skipped]
    target[skipped] = SKIPPED_BLOCK
    expected = world.memory.copy()
    twin = np.lib.stride_tricks.as_strided(
        expected[world.kv.ctypes.data - world.memory.ctypes.data :],
        world.kv.shape,
        world.kv.strides,
    )
    twin[:, :, targets] = world.kv[:, :, sources]
    assert world.copier.scatter(world.slot, KEY, GENERATION, target) == SlotStatus.GOOD
    assert np.array_equal(world.memory, expected)
    run = world.case.run * world.case.tokens
    of_skipped = 0 if skipped == 0 else run * (world.case.per_chunk - 1)
    world.poke(world.layout.payload_offset + of_skipped)
    assert world.copier.scatter(world.slot, KEY, GENERATION, target) == SlotStatus.DIGEST


def test_only_a_scatter_may_skip(small: World) -> None:
    blocks = [0, 1, 2, SKIPPED_BLOCK]
    for call in (
        lambda: small.copier.gather(small.slot, KEY, GENERATION, blocks),
        lambda: small.copier.audit(small.slot, blocks),
    ):
        with pytest.raises(ValueError, match=f"blocks: {SKIPPED_BLOCK} of 6"):
            call()


def test_slots_of_engines_with_other_strides_are_alike() -> None:
    """`tokens`: whatever order an engine keeps its pages in, the slot is the same."""
    hnd, nhd = World(CASES[6]), World(Case("nhd", 2, 2, 6, 2, 16, 128 * 2, "bltph", 4))
    nhd.kv[:] = hnd.kv
    hnd.copier.gather(hnd.slot, KEY, GENERATION, [1, 2, 3, 4])
    nhd.copier.gather(nhd.slot, KEY, GENERATION, [1, 2, 3, 4])
    assert np.array_equal(hnd.stored(), nhd.stored())
    assert nhd.copier.scatter(hnd.slot, KEY, GENERATION, [5, 0, 2, 1]) == SlotStatus.GOOD
    assert np.array_equal(nhd.kv[:, :, [5, 0, 2, 1]], hnd.kv[:, :, [1, 2, 3, 4]])


def test_adjacent_blocks_in_a_row_are_merged_runs() -> None:
    """One head: neighbouring blocks are one run, in this order only."""
    world = World(Case("one-head", 2, 2, 8, 1, 4, 80, "lpbht", 4))
    for blocks in ([2, 3, 4, 5], [5, 4, 3, 2], [0, 1, 6, 7], [7, 0, 1, 2]):
        world.copier.gather(world.slot, KEY, GENERATION, blocks)
        assert np.array_equal(world.stored(), world.payload(blocks))


def test_audit_finds_a_block_that_has_changed(small: World) -> None:
    small.copier.gather(small.slot, KEY, GENERATION, [0, 1, 2, 3])
    assert not small.copier.audit(small.slot, [0, 1, 3, 2])
    small.kv[1, 1, 3, 1, 15, 127] ^= 1  # the very last byte
    assert not small.copier.audit(small.slot, [0, 1, 2, 3])
    small.kv[1, 1, 3, 1, 15, 127] ^= 1
    assert small.copier.audit(small.slot, [0, 1, 2, 3])


def test_audit_of_a_slot_whose_table_is_rubbish(small: World) -> None:
    small.copier.gather(small.slot, KEY, GENERATION, [0, 1, 2, 3])
    small.poke(64)
    assert not small.copier.audit(small.slot, [0, 1, 2, 3])


def scatter(world: World, key: bytes = KEY, generation: int = GENERATION) -> int:
    return world.copier.scatter(world.slot, key, generation, [5, 4, 3, 2])


def test_every_status(small: World) -> None:
    assert scatter(small) == SlotStatus.GONE  # nothing was ever there
    small.copier.gather(small.slot, KEY, GENERATION, [0, 1, 2, 3])
    assert scatter(small) == SlotStatus.GOOD
    assert scatter(small, key=bytes(16)) == SlotStatus.GONE
    assert scatter(small, generation=GENERATION + 1) == SlotStatus.GONE
    whole = small.layout.payload_offset + small.layout.payload_bytes
    for offset in (8, 40, 48, 56, 64, 64 + 8 * small.layout.segments - 1, 4096, whole - 1):
        small.poke(offset)
        assert scatter(small) == SlotStatus.DIGEST, offset
        small.poke(offset)
    small.poke(4)  # version
    assert scatter(small) == SlotStatus.INCOMPATIBLE
    small.poke(4)
    assert scatter(small) == SlotStatus.GOOD
    _native.clear_slot(small.slot)
    assert scatter(small) == SlotStatus.GONE


def test_a_slot_of_another_layout_touches_no_block(small: World) -> None:
    small.copier.gather(small.slot, KEY, GENERATION, [0, 1, 2, 3])
    other = SlotLayout(small.layout.segments, small.layout.segment_bytes, 1, 0xABD)
    copier = Copier(other, small.pages, small.case.per_chunk)
    before = small.memory.copy()
    assert copier.scatter(small.slot, KEY, GENERATION, [2, 3, 4, 5]) == SlotStatus.INCOMPATIBLE
    assert np.array_equal(small.memory, before)


def test_reused_in_between_is_gone(small: World) -> None:
    """The holder has the slot for another chunk: not corrupt, only too late."""
    small.copier.gather(small.slot, KEY, GENERATION, [0, 1, 2, 3])
    small.copier.gather(small.slot, b"another-key-here", GENERATION + 1, [1, 2, 3, 4])
    assert scatter(small) == SlotStatus.GONE
    assert scatter(small, b"another-key-here", GENERATION + 1) == SlotStatus.GOOD


@pytest.mark.parametrize(
    ("blocks", "text"),
    [
        ([0, 1, 2], "blocks: 3, a chunk has 4"),
        ([0, 1, 2, 6], "blocks: 6 of 6"),
    ],
)
def test_bad_blocks_are_named(small: World, blocks: list[int], text: str) -> None:
    for call in (
        lambda: small.copier.gather(small.slot, KEY, GENERATION, blocks),
        lambda: small.copier.scatter(small.slot, KEY, GENERATION, blocks),
        lambda: small.copier.audit(small.slot, blocks),
    ):
        with pytest.raises(ValueError, match=text):
            call()


def test_bad_slot_and_key_are_named(small: World) -> None:
    with pytest.raises(ValueError, match="slot_address: 64 is not a multiple of 4096"):
        small.copier.gather(64, KEY, GENERATION, [0, 1, 2, 3])
    with pytest.raises(ValueError, match="key: 15 bytes, not 16"):
        small.copier.scatter(small.slot, KEY[1:], GENERATION, [0, 1, 2, 3])


GOOD_PAGES: dict[str, object] = {
    "layers": [4096],
    "blocks": 1,
    "heads": 1,
    "tokens": 1,
    "run_bytes": 64,
    "block_stride": 64,
    "head_stride": 64,
}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"run_bytes": 22}, "run_bytes: 22 is not a multiple of 4"),
        ({"block_stride": 1002}, "block_stride: 1002 is not a multiple of 4"),
        ({"head_stride": 2}, "head_stride: 2"),
        ({"token_stride": 2}, "token_stride: 2"),
        ({"plane_stride": 2}, "plane_stride: 2"),
        ({"layers": []}, "layers: there are none"),
        ({"layers": [4096, 4098]}, "layers: address 0x1002"),
        ({"blocks": 0}, "blocks: 0"),
        ({"heads": 0}, "heads: 0"),
        ({"tokens": 0}, "tokens: 0"),
        ({"planes": 0}, "planes: 0"),
    ],
)
def test_pages_that_cannot_be_copied_are_named(change: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Pages(**{**GOOD_PAGES, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"run_bytes": 24}, "run_bytes: 24 is not a multiple of 16"),
        ({"block_stride": 1000}, "block_stride: 1000 is not a multiple of 16"),
        ({"token_stride": 8}, "token_stride: 8"),
        ({"layers": [4104]}, "layers: address 0x1008"),
    ],
)
def test_pages_for_a_gpu_alone_are_named(change: dict[str, object], text: str) -> None:
    pages = Pages(**{**GOOD_PAGES, **change})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=text):
        Copier(SlotLayout(1, 64, 1, 0), pages, 1)


def test_a_layout_that_is_not_the_pages_is_named(small: World) -> None:
    segments, size = small.layout.segments, small.layout.segment_bytes
    with pytest.raises(ValueError, match="layout: 5 segments, the pages have 2 layers of 2 heads"):
        Copier(SlotLayout(5, size, 1, 0), small.pages, small.case.per_chunk)
    with pytest.raises(ValueError, match=f"segments of 64 bytes, a chunk of the pages has {size}"):
        Copier(SlotLayout(segments, 64, 1, 0), small.pages, small.case.per_chunk)


# ---------------------------------------------------------------- parts: a peer with other heads


class Split:
    """One engine's KV of `heads` heads, another's of some of them, and the part between: their
    heads [their, their + n) are ours [our, our + n)."""

    def __init__(self, heads: tuple[int, int], their: int, our: int, n: int) -> None:
        shape = [
            Case(f"heads-{count}", 3, 1, 6, count, 1, 208, "lpbht", 2, gap=16 * count)
            for count in heads
        ]
        self.their, self.our, self.n = their, our, n
        self.holder, self.reader = World(shape[0]), World(shape[1])
        self.reader.kv[:] = np.random.default_rng(2).integers(0, 256, self.reader.kv.shape)
        ours, theirs = self.reader.layout, self.holder.layout
        # Other heads, another layout: the fingerprint tells.
        self.theirs = SlotLayout(theirs.segments, theirs.segment_bytes, 1, 0xDEF)
        self.holder.copier = Copier(self.theirs, self.holder.pages, 2)
        self.part = SlotPart(ours, self.theirs, 3, their, our, n)
        self.holder.copier.gather(self.holder.slot, KEY, GENERATION, [4, 1])

    def scatter(self, key: bytes = KEY, generation: int = GENERATION) -> int:
        reader = self.reader
        return reader.copier.scatter_part(
            self.holder.slot, self.part, key, generation, [SKIPPED_BLOCK, 3]
        )

    def expected(self) -> np.ndarray:
        """The reader's KV with those heads of the second block, and nothing else, replaced."""
        kv = self.reader.kv.copy()
        theirs, ours = slice(self.their, self.their + self.n), slice(self.our, self.our + self.n)
        kv[:, :, 3, ours] = self.holder.kv[:, :, 1, theirs]
        return kv


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_a_part_is_those_heads_and_nothing_else(data: st.DataObject) -> None:
    heads = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    n = data.draw(st.integers(1, min(heads)))
    their, our = (data.draw(st.integers(0, count - n)) for count in heads)
    split = Split(heads, their, our, n)
    expected = split.expected()
    assert split.scatter() == SlotStatus.GOOD
    assert np.array_equal(split.reader.kv, expected)


def test_of_a_part_only_what_is_read_is_verified() -> None:
    """Heads 1 and 2 of four: a flip in theirs is found, in the others' it is nobody's business."""
    split = Split((4, 2), their=1, our=0, n=2)
    for segment in range(split.theirs.segments):
        for byte in (0, split.theirs.segment_bytes - 1):  # the last one is padding
            at = split.theirs.payload_offset + segment * split.theirs.segment_bytes + byte
            split.holder.poke(at)
            found = SlotStatus.DIGEST if segment % 4 in (1, 2) else SlotStatus.GOOD
            assert split.scatter() == found, segment
            split.holder.poke(at)
    for offset in (8, 48, 56, 64, 64 + 8 * split.theirs.segments - 1):  # header, all of the table
        split.holder.poke(offset)
        assert split.scatter() == SlotStatus.DIGEST, offset
        split.holder.poke(offset)
    assert split.scatter() == SlotStatus.GOOD


def test_a_head_at_another_s_place_is_found() -> None:
    """Two heads exchanged in the payload."""
    split = Split((2, 1), their=1, our=0, n=1)
    at, size = split.holder.slot + split.theirs.payload_offset, split.theirs.segment_bytes
    first, second = (ctypes.string_at(at + n * size, size) for n in (0, 1))
    ctypes.memmove(at, second + first, 2 * size)
    assert split.scatter() == SlotStatus.DIGEST


def test_a_part_of_another_chunk_or_layout_touches_no_block() -> None:
    split = Split((4, 2), their=0, our=0, n=2)
    before = split.reader.kv.copy()
    assert split.scatter(key=bytes(16)) == SlotStatus.GONE
    assert split.scatter(generation=GENERATION + 1) == SlotStatus.GONE
    split.part = SlotPart(split.reader.layout, split.holder.layout, 3, 0, 0, 2)
    assert split.scatter() == SlotStatus.INCOMPATIBLE
    assert np.array_equal(split.reader.kv, before)


def test_parts_that_do_not_fit_are_named() -> None:
    split = Split((4, 2), their=0, our=0, n=2)
    ours, theirs = split.reader.layout, split.theirs
    for arguments, text in (
        ((ours, theirs, 5, 0, 0, 1), "layers: 5 do not divide 6 and 12 segments"),
        ((ours, theirs, 3, 3, 0, 2), "their heads 3 on: 2 of 4"),
        ((ours, theirs, 3, 0, 1, 2), "our heads 1 on: 2 of 2"),
        ((ours, SlotLayout(12, 64, 1, 1), 3, 0, 0, 1), "segments of 64 bytes, ours have"),
    ):
        with pytest.raises(ValueError, match=text):
            SlotPart(*arguments)
    split.part = SlotPart(theirs, theirs, 3, 0, 0, 1)
    with pytest.raises(ValueError, match="of another layout"):
        split.scatter()
