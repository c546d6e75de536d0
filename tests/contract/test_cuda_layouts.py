"""Every layout that vLLM's code makes of a CUDA backend's KV, through a GPU's copiers and a fake
driver: a slot holds the tokens, whatever engine it was gathered from and is scattered to."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from lmkv import _native
from lmkv._native import SlotStatus
from lmkv.worker import cuda_pages
from lmkv.worker.copiers import Slot
from lmkv.worker.gpu_copiers import GpuCopiers
from lmkv.worker.page_layout import PageLayout

from tests.cuda_engines import CudaEngine
from tests.fakecuda.fake import FakeCuda, needs_compiler
from tests.kernels.bodies import aligned
from tests.unit.test_cuda_pages import (
    ATTENTION_SIZES,
    DTYPES,
    MLA_SHARING,
    MLA_SIZES,
    SHARING,
    Hybrid,
    accepted,
    engine_of,
    orders,
)

pytestmark = needs_compiler
FATBIN = b"\x50\xed\x55\xba" + bytes(60)
KEY, GENERATION = bytes(range(16)), 7
EACH = 4  # of how many engines in a row one is made of each content
BLOCKS = {256: (16, 32, 64, 128, 256), 192: (48, 96, 192)}  # by the chunk that they divide


class Card:
    """A fake GPU that engines' KV is on."""

    def __init__(self, fake: FakeCuda) -> None:
        self.fake = fake
        self.gpu = _native.Gpu(0, str(fake.path))
        self.gpu.load(FATBIN)

    def copiers(self, engine: CudaEngine, layout: PageLayout, staged: bool) -> GpuCopiers:
        self.fake.adopt(engine.memory)
        made = GpuCopiers(self.gpu, [layout], lambda: 0, 8, 1)
        made.stage_stores = made.stage_loads = staged
        return made


@pytest.fixture
def card() -> Iterator[Card]:
    with FakeCuda() as fake:
        card = Card(fake)
        yield card
        del card.gpu


class Side:
    """An engine, its copiers, and a chunk of blocks."""

    def __init__(self, card: Card, engine: CudaEngine, chunk_tokens: int, staged: bool) -> None:
        self.card, self.engine = card, engine
        self.layout = engine.layout(chunk_tokens)
        self.copiers = card.copiers(engine, self.layout, staged)

    def scattered(self, seed: int) -> list[int]:
        """A chunk's blocks, in any order."""
        blocks = np.random.default_rng(seed).permutation(self.engine.config.num_blocks)
        return blocks[: self.layout.blocks_per_chunk].tolist()

    def gather(self, room: np.ndarray, blocks: list[int]) -> None:
        slot = Slot(room.ctypes.data, KEY, GENERATION, blocks)
        self.copiers.gather(0, [slot], self.copiers.mark())

    def scatter(self, room: np.ndarray, blocks: list[int]) -> list[int]:
        slot = Slot(room.ctypes.data, KEY, GENERATION, blocks)
        return self.copiers.scatter(0, [slot], None, self.copiers.mark())

    def end(self) -> None:
        self.card.fake.disown(self.engine.memory.ctypes.data)


def room_for(card: Card, layout: PageLayout) -> np.ndarray:
    room = aligned(layout.slot.used_bytes)
    card.gpu.register_host(room.ctypes.data, room.nbytes)
    return room


def check_slot(room: np.ndarray, side: Side, blocks: list[int]) -> None:
    """It has the oracle's bytes, and is what a reader accepts."""
    slot, expected = side.layout.slot, side.engine.payload(blocks)
    payload = room[slot.payload_offset :][: slot.payload_bytes].reshape(slot.segments, -1)
    assert np.array_equal(payload[:, : expected.shape[1]], expected)
    assert not payload[:, expected.shape[1] :].any()
    status = _native.check_slot(room.ctypes.data, slot, KEY, GENERATION)
    assert status == SlotStatus.GOOD


def pass_on(card: Card, engines: Sequence[CudaEngine], chunk_tokens: int) -> None:
    """A chunk of each goes to the next one, and the last one's to the first."""
    sides = [Side(card, e, chunk_tokens, bool(n % 2)) for n, e in enumerate(engines)]
    assert len({side.layout.layout for side in sides}) == 1
    room = room_for(card, sides[0].layout)
    for n, (mine, theirs) in enumerate(zip(sides, [*sides[1:], sides[0]])):
        source, target = mine.scattered(n), theirs.scattered(n + 1)
        mine.gather(room, source)
        check_slot(room, mine, source)
        if theirs is mine:
            target = source
        expected = theirs.engine.kv.copy()
        expected[:, :, theirs.engine.slots_of(target)] = mine.engine.kv[
            :, :, mine.engine.slots_of(source)
        ]
        assert theirs.scatter(room, target) == [SlotStatus.GOOD]
        theirs.engine.kv = expected
        assert np.array_equal(theirs.engine.now(), expected), "those tokens, and no other"
    card.gpu.unregister_host(room.ctypes.data)
    for side in sides:
        side.end()


accepts = functools.cache(accepted)


def kinds(backends: Sequence[str]) -> list[tuple[str, str]]:
    return [(backend, order) for backend in backends for order in orders(backend)]


def engines(
    backends: Sequence[str], chunk_tokens: int, first: int, **content: Any
) -> list[CudaEngine]:
    """Every EACH-th kind from `first` on, with the block sizes taken in turn."""
    made = []
    for n, (backend, order) in list(enumerate(kinds(backends)))[first % EACH :: EACH]:
        sizes = BLOCKS[chunk_tokens]
        turn = [sizes[(n + first + k) % len(sizes)] for k in range(len(sizes))]
        block = next((size for size in turn if accepts(backend, order, size)), 0)
        if block:
            made.append(CudaEngine(backend, order, block_tokens=block, layers=2, seed=n, **content))
    return made


BESIDE = sorted(name for name in cuda_pages.BESIDE if not name.endswith("DIFFKV"))
DIFFKV = sorted(cuda_pages.BESIDE - {*BESIDE})
FAMILIES: dict[str, tuple[list[str], list[dict[str, int]]]] = {
    "tokens": ([*BESIDE, *cuda_pages.APART], [{"head_size": size} for size in ATTENTION_SIZES]),
    "diffkv": (
        DIFFKV,
        [{"head_size": k, "head_size_v": v} for k, v in ((192, 128), (72, 36), (36, 24))],
    ),
    "latent": (sorted(cuda_pages.LATENT), [{"head_size": size} for size in MLA_SIZES]),
}


@pytest.mark.parametrize("chunk_tokens", BLOCKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_layout_gives_and_takes_tokens(card: Card, family: str, chunk_tokens: int) -> None:
    backends, sizes = FAMILIES[family]
    contents, seen = list(itertools.product(sizes, DTYPES)), set()
    for n, (size, dtype) in enumerate(contents):
        made = engines(backends, chunk_tokens, n, **size, cache_dtype=dtype)
        seen |= {(engine.backend.get_name(), engine.order) for engine in made}
        pass_on(card, made, chunk_tokens)
    assert chunk_tokens == 192 or seen == {*kinds(backends)}
    pieces = {name.rpartition("_")[2] for name in card.fake.launches()}
    assert pieces == {"4", "8", "16"}


@pytest.mark.parametrize("dtype", ["bfloat16", "fp8"])
def test_every_kernel_block_size(card: Card, dtype: str) -> None:
    made = [engine_of(case, n, cache_dtype=dtype) for n, case in enumerate(SHARING)]
    made += [
        CudaEngine("TRITON_ATTN", order, block_tokens=block, kernel_tokens=kernel)
        for order in ("LBHNC", "LBNHC")
        for block in (64, 128, 256)
        for kernel in (16, 32, 64, 128)
        if kernel <= block and dtype == "bfloat16"
    ]
    pass_on(card, made, 256)


def test_every_order_of_mla(card: Card) -> None:
    pass_on(card, [engine_of(c, n, head_size=576) for n, c in enumerate(MLA_SHARING)], 256)


@pytest.mark.parametrize(("heads", "layers"), [(1, 1), (8, 1), (3, 2)])
def test_few_and_many_heads(card: Card, heads: int, layers: int) -> None:
    made = [
        CudaEngine("FLASH_ATTN", order, heads=heads, layers=layers, seed=n)
        for n, order in enumerate(orders("FLASH_ATTN"))
    ]
    pass_on(card, made, 256)


@pytest.mark.parametrize("staged", [False, True])
def test_states_beside_attention(card: Card, staged: bool) -> None:
    """A group of each at the same addresses: a slot of states is one block's."""
    engine = Hybrid()
    layouts = [engine.layout(group=group) for group in (0, 1)]
    engine.memory[:] = np.random.default_rng(2).integers(0, 256, engine.memory.size, np.uint8)
    card.fake.adopt(engine.memory)
    copiers = GpuCopiers(card.gpu, layouts, lambda: 0, 8, 1)
    copiers.stage_stores = copiers.stage_loads = staged
    room = room_for(card, layouts[1])
    copiers.gather(1, [Slot(room.ctypes.data, KEY, GENERATION, [7])], copiers.mark())
    slot = layouts[1].slot
    payload = room[slot.payload_offset :][: slot.payload_bytes].reshape(slot.segments, -1)
    before = engine.memory.copy()
    states = [engine.caches[layer][:, 0, 0].numpy().view(np.uint8) for layer in layouts[1].layers]
    for of_layer, segment in zip(states, payload):
        assert np.array_equal(segment[: of_layer.shape[1]], of_layer[7])
    target = Slot(room.ctypes.data, KEY, GENERATION, [3])
    assert copiers.scatter(1, [target], None, copiers.mark()) == [SlotStatus.GOOD]
    for of_layer in states:
        assert np.array_equal(of_layer[3], of_layer[7])
        of_layer[3] = before[of_layer[3].ctypes.data - engine.memory.ctypes.data :][
            : of_layer.shape[1]
        ]
    assert np.array_equal(engine.memory, before)
    card.gpu.unregister_host(room.ctypes.data)
