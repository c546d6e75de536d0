"""How fast copies are on a card, beside what the card can: a copy in its memory, and the link.

Each rate is taken after its bytes were compared with the oracle's, in turn with its limit, so that
both see the same clocks. A rate is payload by seconds; a device copy of as many bytes reads and
writes them once, as gather and scatter do.

- Slots on the card: one launch on all multiprocessors, by the card's clock.
- Slots in host memory: GpuCopier's calls from beginning to end, by the host's clock, on some of the
  multiprocessors; the link is one copy of each slot's payload to or from the same pinned memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from lmkv import _native
from lmkv._native import SlotStatus

from bench.harness import measure
from tests.gpu.cards import PATHS, OnFake, OnReal, pages
from tests.gpu.launches import Launcher
from tests.gpu.report import DEFAULT_MULTIPROCESSORS, TARGET, TARGET_RUN, Rate
from tests.kernels.bodies import Case, World

KIB, MIB = 1 << 10, 1 << 20
BLOCKS_A_MULTIPROCESSOR = 2


@dataclass(frozen=True)
class Sizes:
    """As a model of 32 layers and 8 heads of 128 values of bf16 has them: a segment is K and V of
    256 tokens, in runs of a page. 512 MiB in all is ten times what a card's caches hold."""

    layers: int = 32
    heads: int = 8
    segment: int = 128 * KIB
    chunks: int = 16
    runs: tuple[int, ...] = tuple(KIB << n for n in range(8))  # to 128 KiB
    link_runs: tuple[int, ...] = (KIB, 8 * KIB, 64 * KIB)
    multiprocessors: tuple[int, ...] = (4, 8, 16, 32)
    staging: int = 64 * MIB  # as config.gpu_staging_mib; two slots at least
    rounds: int = 11
    link_rounds: int = 7
    warm_up_s: float = 0.5

    def world(self, run: int, chunks: int) -> World:
        """Of pages [layer, block, head], as vLLM's LBHNC has them."""
        per_chunk = self.segment // run
        blocks = chunks * per_chunk
        case = Case(self.layers, 1, blocks, self.heads, 1, run, "lbhpt", per_chunk, offset=0)
        return World(case, chunks)


SMALL = Sizes(  # for a card that is played
    layers=2,
    heads=2,
    segment=8 * KIB,
    chunks=3,
    runs=(KIB, 8 * KIB),
    link_runs=(8 * KIB,),
    multiprocessors=(4, 8),
    staging=1,
    rounds=2,
    link_rounds=2,
    warm_up_s=0,
)


class WrongBytes(Exception):
    """A copy was not the oracle's; it has no rate."""


def equal(what: str, found: np.ndarray, expected: np.ndarray) -> None:
    if not np.array_equal(found, expected):
        raise WrongBytes(f"{what}: not the oracle's bytes")


def all_good(what: str, verdicts: Sequence[int]) -> None:
    if any(verdict != SlotStatus.GOOD for verdict in verdicts):
        raise WrongBytes(f"{what}: verdicts {list(verdicts)}")


def rates(device: OnFake | OnReal, sizes: Sizes) -> Iterator[Rate]:
    for run in sizes.runs:
        with Launcher(device) as launcher:
            yield from OnCard(device, launcher, sizes, run).rates()
    for run in sizes.link_runs:
        with Launcher(device) as launcher:
            yield from OnLink(device, launcher, sizes, sizes.world(run, sizes.chunks)).rates()
    with Launcher(device) as launcher:
        yield from overhead(device, launcher, sizes)


class OnCard:
    def __init__(self, device: OnFake | OnReal, launcher: Launcher, sizes: Sizes, run: int) -> None:
        self.launcher, self.sizes, self.world = launcher, sizes, sizes.world(run, sizes.chunks)
        self.multiprocessors = device.gpu().multiprocessors
        self.alone = launcher.of(self.world, BLOCKS_A_MULTIPROCESSOR * self.multiprocessors)
        self.blocks = self.world.some_blocks()
        self.bytes = self.world.memory.nbytes
        self.other = launcher.alloc(self.bytes)

    def check(self) -> None:
        world, alone = self.world, self.alone
        alone.gather(self.blocks)
        for n, of_chunk in enumerate(self.blocks):
            payload = alone.slot(n)[world.layout.payload_offset :].reshape(world.segments, -1)
            equal("gather on the card", payload, world.payload(of_chunk))
        clear_pages(self.launcher, alone.kv, self.bytes)
        all_good("scatter on the card", alone.copy("scatter", self.blocks))
        equal("scatter on the card", alone.memory(), world.memory)

    def copy(self) -> None:
        self.launcher.enqueue_copy(self.other, self.alone.kv, self.bytes)

    def fill(self) -> None:
        """Long enough for what the host does meanwhile, and the card's caches are another's."""
        self.launcher.fill(self.other, 0, self.bytes)

    def warm_up(self) -> None:
        """A card at rest has slow clocks."""
        until = time.monotonic() + self.sizes.warm_up_s
        while time.monotonic() < until:
            self.launcher.seconds(self.copy)

    def rates(self) -> Iterator[Rate]:
        self.check()
        self.warm_up()
        run = self.world.case.run
        for copy in ("gather", "scatter"):
            lmkv, limit = measure(
                self.alone.prepared(copy),
                self.copy,
                rounds=self.sizes.rounds,
                figure=lambda seconds: self.bytes / 1e9 / seconds,
                clock=partial(self.launcher.seconds, behind=self.fill),
            )
            if copy == "scatter":  # one that refuses slots is fast
                all_good("scatter on the card", self.alone.verdicts())
            target = TARGET if run >= TARGET_RUN else None
            yield Rate(copy, "on the card", run, self.multiprocessors, "GB/s", lmkv, limit, target)


class OnLink:
    """Slots in pinned host memory."""

    def __init__(
        self, device: OnFake | OnReal, launcher: Launcher, sizes: Sizes, world: World
    ) -> None:
        self.launcher, self.sizes, self.world, self.gpu = launcher, sizes, world, device.gpu()
        self.bytes = world.memory.nbytes
        self.kv = launcher.put(world.memory)
        first = world.memory.ctypes.data
        self.pages = pages(world, [self.kv + layer.ctypes.data - first for layer in world.kv])
        self.blocks = world.some_blocks()
        self.payloads = [world.payload(of_chunk) for of_chunk in self.blocks]
        self.other = launcher.alloc(world.layout.payload_bytes)
        staging = max(sizes.staging, 2 * (world.used + 4096))
        self.stores = _native.GpuChannel(self.gpu, urgent=False, staging_bytes=staging)
        self.loads = _native.GpuChannel(self.gpu, urgent=True, staging_bytes=staging)

    def rates(self) -> Iterator[Rate]:
        self.register()
        try:
            for path in PATHS:
                for multiprocessors in self.sizes.multiprocessors:
                    yield from self.of(path, multiprocessors)
        finally:
            self.unregister()

    def register(self) -> None:
        for slot in self.world.slots:
            self.gpu.register_host(slot.ctypes.data, slot.nbytes)

    def unregister(self) -> None:
        for slot in self.world.slots:
            self.gpu.unregister_host(slot.ctypes.data)

    def copies(self, path: str, multiprocessors: int) -> dict[str, Callable[[], object]]:
        world, staged = self.world, PATHS[path]
        copier = _native.GpuCopier(
            self.gpu,
            world.layout,
            self.pages,
            world.case.per_chunk,
            multiprocessors=multiprocessors,
        )
        chunks = [
            (slot.ctypes.data, world.keys[n], world.generations[n], self.blocks[n])
            for n, slot in enumerate(world.slots)
        ]
        return {
            "gather": lambda: copier.gather(self.stores, chunks, staged=staged),
            "scatter": lambda: all_good(
                f"scatter, {path}", copier.scatter(self.loads, chunks, staged=staged)
            ),
        }

    def check(self, path: str, copies: dict[str, Callable[[], object]]) -> None:
        world, at = self.world, self.world.layout.payload_offset
        for slot in world.slots:
            slot[:] = 0
        copies["gather"]()
        for slot, payload in zip(world.slots, self.payloads):
            equal(f"gather, {path}", slot[at:].reshape(world.segments, -1), payload)
        clear_pages(self.launcher, self.kv, self.bytes)
        copies["scatter"]()
        found = self.launcher.read(self.kv, np.empty_like(world.memory))
        equal(f"scatter, {path}", found, world.memory)

    def across(self, to_card: bool) -> None:
        """The bare link: one copy a slot."""
        layout = self.world.layout
        for slot in self.world.slots:
            payload = slot.ctypes.data + layout.payload_offset
            ends = (self.other, payload) if to_card else (payload, self.other)
            self.launcher.enqueue_copy(*ends, layout.payload_bytes)
        self.launcher.driver.wait(self.launcher.stream)

    def of(self, path: str, multiprocessors: int) -> Iterator[Rate]:
        copies = self.copies(path, multiprocessors)
        self.check(path, copies)
        run = self.world.case.run
        # Scatter first: the bare link from the card leaves other bytes in the slots.
        for copy in ("scatter", "gather"):
            lmkv, limit = measure(
                copies[copy],
                partial(self.across, to_card=copy == "scatter"),
                rounds=self.sizes.link_rounds,
                figure=lambda seconds: self.bytes / 1e9 / seconds,
            )
            yield Rate(copy, path, run, multiprocessors, "GB/s", lmkv, limit)


def overhead(device: OnFake | OnReal, launcher: Launcher, sizes: Sizes) -> Iterator[Rate]:
    """One chunk of 64 KiB: what a call costs beside the bytes. The limit is a launch that clears
    one header, with its wait."""
    run, small = 4 * KIB, Sizes(layers=4, heads=2, segment=8 * KIB, staging=sizes.staging)
    link = OnLink(device, launcher, small, small.world(run, 1))
    clear = launcher.of(link.world).headers("clear")

    def bare() -> None:
        clear()
        launcher.driver.wait(launcher.stream)

    link.register()
    try:
        for path in PATHS:
            copies = link.copies(path, 8)
            link.check(path, copies)
            for copy, function in copies.items():
                lmkv, limit = measure(
                    function, bare, rounds=sizes.rounds, figure=lambda seconds: seconds * 1e6
                )
                multiprocessors = DEFAULT_MULTIPROCESSORS
                yield Rate(copy, f"{path}, one chunk", run, multiprocessors, "us", lmkv, limit)
    finally:
        link.unregister()


def clear_pages(launcher: Launcher, at: int, size: int) -> None:
    launcher.fill(at, 0, size)
    launcher.driver.wait(launcher.stream)
