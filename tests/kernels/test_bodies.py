"""The kernels' bodies, on a CPU in shuffled thread order, move exactly the oracle's bytes."""

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from lmkv import _native
from lmkv._native import SKIPPED_BLOCK, SlotStatus

from tests.kernels.bodies import Case, World, addresses, aligned, hash_chunks, library
from tests.kernels.cases import CASES, kv

pytestmark = pytest.mark.skipif(library() is None, reason="no C++ compiler for the bodies")


@pytest.fixture(params=CASES, ids=str)
def world(request: pytest.FixtureRequest) -> World:
    case = request.param
    return World(case, chunks=1 if case.per_chunk * 2 > case.blocks else 2)


@pytest.fixture
def small() -> World:
    return World(kv("small", "lbthp", 64, 4), chunks=2)


def test_gather_makes_the_hosts_slot_byte_for_byte(world: World) -> None:
    blocks, before = world.some_blocks(), world.memory.copy()
    world.gather(blocks)
    for chunk, of_chunk in enumerate(blocks):
        assert np.array_equal(
            world.slots[chunk][world.layout.payload_offset :].reshape(world.segments, -1),
            world.payload(of_chunk),
        )
        assert np.array_equal(world.slots[chunk], world.slot_like_the_host(of_chunk, chunk))
    assert np.array_equal(world.memory, before)
    assert world.copy("verify", blocks) == [SlotStatus.GOOD] * world.chunks
    assert world.copy("audit", blocks) == [SlotStatus.GOOD] * world.chunks


def test_scatter_writes_those_blocks_and_nothing_else(world: World) -> None:
    source, target = world.some_blocks(), world.some_blocks()
    payloads = [world.payload(blocks) for blocks in source]
    world.slots = [world.slot_like_the_host(blocks, n) for n, blocks in enumerate(source)]
    expected = world.expect_scatter(target, payloads)
    assert world.copy("scatter", target) == [SlotStatus.GOOD] * world.chunks
    assert np.array_equal(world.memory, expected)


def test_narrower_accesses_move_the_same_bytes(small: World) -> None:
    blocks = small.some_blocks()
    for piece in (8, 4):
        small.gather(blocks, piece=piece)
        for chunk, of_chunk in enumerate(blocks):
            assert np.array_equal(small.slots[chunk], small.slot_like_the_host(of_chunk, chunk))


def test_the_host_copier_makes_and_reads_the_same_slot(small: World) -> None:
    case, blocks = small.case, small.some_blocks()
    pages = _native.Pages(
        [small.kv[n].ctypes.data for n in range(case.layers)],
        *(case.blocks, case.heads, case.tokens, case.run),
        *(small.strides["b"], small.strides["h"], small.strides["t"]),
        *(case.planes, small.strides["p"]),
    )
    copier = _native.Copier(small.layout, pages, case.per_chunk)
    small.gather(blocks)
    for chunk, slot in enumerate(small.slots):
        key, generation = small.keys[chunk], small.generations[chunk]
        hosts = aligned(small.used)
        copier.gather(hosts.ctypes.data, key, generation, blocks[chunk])
        assert np.array_equal(slot, hosts)
        status = copier.scatter(slot.ctypes.data, key, generation, blocks[chunk])
        assert status == SlotStatus.GOOD
        assert copier.audit(slot.ctypes.data, blocks[chunk])


def test_scatter_leaves_a_skipped_block_alone_and_checks_its_bytes(small: World) -> None:
    source, target = small.some_blocks(), small.some_blocks()
    payloads = [small.payload(blocks) for blocks in source]
    small.slots = [small.slot_like_the_host(blocks, n) for n, blocks in enumerate(source)]
    target[0][0] = target[1][2] = SKIPPED_BLOCK
    expected = small.expect_scatter(target, payloads)
    assert small.copy("scatter", target) == [SlotStatus.GOOD] * 2
    assert np.array_equal(small.memory, expected)
    small.slots[0][small.layout.payload_offset] ^= 1  # in the block that is skipped
    assert small.copy("scatter", target) == [SlotStatus.DIGEST, SlotStatus.GOOD]


def test_a_reader_of_some_layers_and_heads() -> None:
    """A holder's slot has 3 layers of 4 heads; the reader has layers 1 and 2, heads 1 and 2."""
    holder = World(Case(3, 2, 4, 4, 4, 64, "lbthp", 2))
    source = holder.some_blocks()
    holder.gather(source)
    reader = World(Case(2, 2, 5, 3, 4, 64, "lpbht", 2), seed=2)
    reader.slots, expected = holder.slots, reader.memory.copy()
    twin = reader.view(expected)
    twin[:, :, [4, 0], 1:3] = holder.kv[1:3, :, source[0], 1:3]  # as the reader's heads 1 and 2
    which = {"slot_heads": 4, "first_segment": 1 * 4 + 1, "slot_segments": 12}
    scatter = lambda: reader.copy("scatter", [[4, 0]], heads=slice(1, 3), **which)  # noqa: E731
    assert scatter() == [SlotStatus.GOOD]
    assert np.array_equal(reader.memory, expected)
    read = {layer * 4 + head for layer in (1, 2) for head in (1, 2)}
    for segment in range(12):
        at = holder.layout.payload_offset + segment * holder.segment_bytes
        holder.slots[0][at] ^= 1
        assert scatter() == [SlotStatus.DIGEST if segment in read else SlotStatus.GOOD], segment
        holder.slots[0][at] ^= 1
    # The pages have it now: header and table alone are enough to judge them by.
    holder.slots[0][holder.layout.payload_offset :] = 0
    audit = lambda: reader.copy("audit", [[4, 0]], heads=slice(1, 3), **which)  # noqa: E731
    assert audit() == [SlotStatus.GOOD]
    reader.kv[0, 1, 4, 2, 3, 63] ^= 1
    assert audit() == [SlotStatus.DIGEST]
    reader.kv[0, 1, 4, 2, 3, 63] ^= 1
    reader.kv[0, 1, 4, 0] ^= 1  # a head that is not in it
    assert audit() == [SlotStatus.GOOD]
    holder.slots[0][64] ^= 1  # segment 0 is not read, but the table is not the header's any more
    assert audit() == scatter() == [SlotStatus.DIGEST]


def test_every_verdict(small: World) -> None:
    blocks = small.some_blocks()
    assert small.copy("scatter", blocks) == [SlotStatus.GONE] * 2  # 0xEE is no header
    small.put_headers(publish=False)
    assert small.copy("scatter", blocks) == [SlotStatus.GONE] * 2
    small.gather(blocks)

    def both(first: int) -> None:
        for copy in ("scatter", "verify", "audit"):
            assert small.copy(copy, blocks) == [first, SlotStatus.GOOD], copy

    both(SlotStatus.GOOD)
    for offset in (8, 40, 48, 56, 64, 64 + 8 * small.segments - 1):
        small.slots[0][offset] ^= 1
        both(SlotStatus.DIGEST)
        small.slots[0][offset] ^= 1
    small.slots[0][4] ^= 1  # version
    both(SlotStatus.INCOMPATIBLE)
    small.slots[0][4] ^= 1
    small.generations[0] += 1
    both(SlotStatus.GONE)
    small.generations[0] -= 1
    small.keys[0] = bytes(16)
    both(SlotStatus.GONE)
    small.keys[0] = small.keys[1]
    small.slots[0] = small.slot_like_the_host(blocks[1], 0)
    assert small.copy("audit", blocks)[0] == SlotStatus.DIGEST  # good, of other blocks
    assert small.copy("verify", blocks)[0] == SlotStatus.GOOD


def test_a_new_table_and_payload_under_an_old_header(small: World) -> None:
    """Each segment has the table's digest, but the table is another chunk's."""
    blocks = small.some_blocks()
    small.gather(blocks)
    small.slots[0][64:] = small.slot_like_the_host(blocks[1])[64:]
    for copy in ("scatter", "verify"):
        assert small.copy(copy, blocks) == [SlotStatus.DIGEST, SlotStatus.GOOD]


def test_every_byte_of_a_segment_counts(small: World) -> None:
    blocks = small.some_blocks()
    small.gather(blocks)
    for at in range(small.layout.payload_offset, small.used, 61):
        small.slots[1][at] ^= 0x10
        assert small.copy("verify", blocks) == [SlotStatus.GOOD, SlotStatus.DIGEST], at
        small.slots[1][at] ^= 0x10


@pytest.mark.parametrize("copy", ["scatter", "audit", "verify"])
def test_a_slot_that_is_not_wanted_is_not_read(small: World, copy: str) -> None:
    """Of another generation, or retired: no byte of a block changes."""
    blocks = small.some_blocks()
    small.gather(blocks)
    small.memory ^= 0xFF
    before = small.memory.copy()
    small.generations[0] += 1
    small.slots[1][:8] = 0
    assert small.copy(copy, blocks) == [SlotStatus.GONE] * 2
    assert np.array_equal(small.memory, before)


def test_before_publish_nobody_reads_the_slot(small: World) -> None:
    blocks = small.some_blocks()
    small.gather(blocks)
    small.put_headers(publish=False)
    small.copy("gather", blocks)
    assert small.copy("verify", blocks) == [SlotStatus.GONE] * 2
    small.put_headers(publish=True)
    assert small.copy("verify", blocks) == [SlotStatus.GOOD] * 2


@pytest.mark.parametrize("teams", [1, 2, 5, 64])
@pytest.mark.parametrize("threads", [1, 3])
def test_any_number_of_teams_makes_the_same_slots(teams: int, threads: int) -> None:
    world = World(kv("teams", "lbthp", 64, 4, heads=3), chunks=2, teams=teams)
    world.launch.threads = threads  # real ones: who ends a chunk is decided by them
    blocks = world.some_blocks()
    world.gather(blocks)
    for chunk, of_chunk in enumerate(blocks):
        assert np.array_equal(world.slots[chunk], world.slot_like_the_host(of_chunk, chunk))
    assert world.copy("scatter", blocks) == [SlotStatus.GOOD] * 2


@st.composite
def cases(draw: st.DrawFn) -> Case:
    per_chunk = draw(st.integers(1, 4))
    piece = draw(st.sampled_from([4, 8, 16]))
    gap = piece * draw(st.integers(0, 3))
    return Case(
        layers=draw(st.integers(1, 3)),
        planes=draw(st.integers(1, 2)),
        blocks=2 * per_chunk + draw(st.integers(0, 2)),
        heads=draw(st.integers(1, 3)),
        tokens=draw(st.integers(1, 19)),
        run=piece * draw(st.integers(1, 40)),
        order="".join(draw(st.permutations("lpbht"))),
        per_chunk=per_chunk,
        gap=gap,
        offset=piece * draw(st.integers(0, 5)),
    )


@given(cases(), st.integers(0, 2**32), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_whatever_the_layout(case: Case, seed: int, teams: int) -> None:
    world = World(case, 2, seed, teams)
    source, target = world.some_blocks(), world.some_blocks()
    world.gather(source)
    for chunk, blocks in enumerate(source):
        assert np.array_equal(world.slots[chunk], world.slot_like_the_host(blocks, chunk))
    expected = world.expect_scatter(target, [world.payload(blocks) for blocks in source])
    assert world.copy("audit", source) == [SlotStatus.GOOD] * 2
    assert world.copy("scatter", target) == [SlotStatus.GOOD] * 2
    assert np.array_equal(world.memory, expected)


@pytest.mark.parametrize("tokens", [16, 32, 240, 256])
@pytest.mark.parametrize("piece", [16, 4])
def test_hashes_are_blake3s(tokens: int, piece: int) -> None:
    """150 chunks of several prompts, anywhere in memory: more than two teams take at once."""
    random = np.random.default_rng(tokens)
    prompts = [aligned(n * tokens * 4 + 64, offset=piece) for n in (1, 70, 79)]
    for prompt in prompts:
        prompt[:] = random.integers(0, 256, prompt.size, np.uint8)
    chunks = [
        prompt[at : at + tokens * 4]
        for prompt in prompts
        for at in range(0, prompt.size - tokens * 4 + 1, tokens * 4)
    ]
    assert len(chunks) >= 150
    digests = b"".join(blake3(chunk.tobytes()).digest() for chunk in chunks)
    for teams in (1, 2, 4):
        assert hash_chunks(chunks, piece, teams=teams, seed=teams) == digests


def test_a_division_by_multiplication() -> None:
    lib = library()
    assert lib is not None
    random = np.random.default_rng(2)
    divisors = [*range(1, 70), *(2**k + d for k in range(7, 31) for d in (-1, 0, 1))]
    for divisor in divisors:
        q = random.integers(0, 2**31 // divisor, 5).tolist()
        near = [n * divisor + d for n in q for d in (-1, 0, 1)] + [2**31 - 1, 0, divisor]
        for n in near:
            if 0 <= n < 2**31:
                assert lib.lmkv_test_quotient(n, divisor) == n // divisor, (n, divisor)


def test_the_widest_access() -> None:
    lib = library()
    assert lib is not None
    widest = [lib.lmkv_test_widest_piece(int(bits)) for bits in addresses([48, 24, 20, 18, 1])]
    assert widest == [16, 8, 4, 0, 0]
