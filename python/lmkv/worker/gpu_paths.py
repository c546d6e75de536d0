"""Which way slots cross the link, for stores and for loads: measured at the worker's start.

It is kept in `run_dir` for the next start on the same GPU with the same layouts and settings.

A gather and a scatter of the same blocks, which gives them back as they were, are timed on both
paths, before the engine has a request. What is faster depends on the card, its link, the size of
runs, and how many multiprocessors may be taken.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec

from lmkv import _native
from lmkv.core.clock import Clock, monotonic
from lmkv.core.geometry import SLOT_ALIGN
from lmkv.worker.copiers import Slot

if TYPE_CHECKING:
    from lmkv.worker.gpu_copiers import GpuCopiers
    from lmkv.worker.page_layout import PageLayout

log = logging.getLogger("lmkv.worker")

FILE = "gpu-paths.json"
MEASURED_BYTES = 64 << 20
REPEATS = 3


Rate = Annotated[float, msgspec.Meta(gt=0)]  # bytes a second


class Rates(msgspec.Struct, frozen=True):
    direct: Rate
    staged: Rate

    @property
    def faster(self) -> str:
        return "staged" if self.staged > self.direct else "direct"

    def told(self) -> str:
        rates = f"direct {self.direct / 1e9:.1f} GB/s, staged {self.staged / 1e9:.1f} GB/s"
        return f"{self.faster} ({rates})"


class Paths(msgspec.Struct, frozen=True):
    stores: Rates
    loads: Rates


def choose(
    copiers: GpuCopiers,
    pages: Sequence[PageLayout],
    path: str,
    folder: Path,
    clock: Clock = monotonic,
) -> None:
    """`path`: direct, staged or auto. RuntimeError: of the driver, as it is measured."""
    if path != "auto":
        copiers.stage_stores = copiers.stage_loads = path == "staged"
        return
    group = max(range(len(pages)), key=lambda n: pages[n].slot.used_bytes)
    if _blocks(pages[group]) < pages[group].blocks_per_chunk:
        return  # there is no chunk to be shared, nor measured
    name = _name(copiers, pages)
    known = _read(folder / FILE)
    paths = known.get(name)
    if paths is None:
        paths = measure(copiers, pages, group, clock)
        _write(folder / FILE, known | {name: paths})
    copiers.stage_stores = paths.stores.faster == "staged"
    copiers.stage_loads = paths.loads.faster == "staged"
    stores, loads = paths.stores.told(), paths.loads.told()
    log.info("lmkv: %s: stores %s; loads %s", copiers.gpu.name, stores, loads)


def measure(
    copiers: GpuCopiers, pages: Sequence[PageLayout], group: int, clock: Clock = monotonic
) -> Paths:
    """Of this cache group's slots."""
    stores: dict[str, float] = {}
    loads: dict[str, float] = {}
    after = copiers.mark()
    with _slots(copiers.gpu, pages[group]) as slots:
        moved = len(slots) * pages[group].slot.payload_bytes
        for path in ("direct", "staged"):
            copiers.stage_stores = copiers.stage_loads = path == "staged"

            def load() -> None:
                if {*copiers.scatter(group, slots, None, after)} != {_native.SlotStatus.GOOD}:
                    raise RuntimeError(f"slots that {copiers.gpu.name} has made are not good")

            stores[path] = moved / _least(lambda: copiers.gather(group, slots, after), clock)
            loads[path] = moved / _least(load, clock)
    return Paths(Rates(**stores), Rates(**loads))


def _least(copy: Callable[[], object], clock: Clock) -> float:
    seconds = []
    for _ in range(1 + REPEATS):  # the first makes room, and is not counted
        began = clock()
        copy()
        seconds.append(clock() - began)
    return max(min(seconds[1:]), 1e-9)


def _blocks(pages: PageLayout) -> int:
    """vLLM's."""
    return pages.pages.blocks // pages.kernel_blocks


@contextlib.contextmanager
def _slots(gpu: _native.Gpu, pages: PageLayout) -> Iterator[list[Slot]]:
    """Of the group's last blocks, in memory of their own that is like a pool's."""
    blocks, each = _blocks(pages), pages.blocks_per_chunk
    size = -(-pages.slot.used_bytes // SLOT_ALIGN) * SLOT_ALIGN
    count = min(max(1, MEASURED_BYTES // size), blocks // each)
    with mmap.mmap(-1, count * size) as room:
        held = ctypes.c_char.from_buffer(room)
        address = ctypes.addressof(held)
        gpu.register_host(address, count * size)
        try:
            first = blocks - count * each
            yield [
                Slot(
                    address + n * size,
                    n.to_bytes(16, "little"),
                    1,
                    list(range(first + n * each, first + (n + 1) * each)),
                )
                for n in range(count)
            ]
        finally:
            gpu.unregister_host(address)
            del held


def _name(copiers: GpuCopiers, pages: Sequence[PageLayout]) -> str:
    gpu, layouts = copiers.gpu, [group.layout for group in pages]
    what = (gpu.name, gpu.bus_id, gpu.driver_version, copiers.multiprocessors, layouts)
    return _native.blake3(repr(what).encode())[:8].hex()


def _read(file: Path) -> dict[str, Paths]:
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, Paths])
    except (OSError, ValueError):  # none, or not ours: measured again
        return {}


def _write(file: Path, paths: dict[str, Paths]) -> None:
    part = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        part.write_bytes(msgspec.json.encode(paths))
        part.replace(file)
    except OSError as error:
        log.info("lmkv: %s is not written: %s", file, error)
