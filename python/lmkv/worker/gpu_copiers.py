"""A GPU's copiers: many chunks in a launch, on streams of their own, behind the engine's work.

The pool is host memory that is registered with the GPU segment by segment, and so are mapped peers'
pools where the driver takes read-only mappings. Slots cross the link in one of two ways, each
measured once for reads and for writes (gpu_paths.py): kernels read and write them where they are,
or they are copied as a whole and the kernels work in the GPU's memory. What is not registered (yet)
is copied; so are compressed slots, once they are full ones again in memory of the host. Slots in a
GPU's memory, ours or a peer's, are used where they are.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmkv import _native
from lmkv.core.geometry import DEVICE
from lmkv.worker.copiers import Pool, Slot
from lmkv.worker.expanded import Expanded

if TYPE_CHECKING:
    from lmkv.core.config import InstanceConfig
    from lmkv.worker.page_layout import PageLayout

log = logging.getLogger("lmkv.worker")

CHUNKS_AT_ONCE = 256
EXPANDED = 4  # compressed slots that are expanded in the host's memory at once
LANES = 2  # of a channel; each has staging for one slot at least
Segment = tuple[int, int]  # address, bytes


def gpu_copiers(pages: Sequence[PageLayout], config: InstanceConfig, folder: Path) -> GpuCopiers:
    """Of the GPU that vLLM's KV is on. RuntimeError: a sentence on why there are none."""
    import torch  # already there: the KV is its

    from lmkv.worker import gpu_paths, kernels

    device = torch.device(pages[0].device)
    gpu = kernels.open_gpu(device.index or 0)
    copiers = GpuCopiers(
        gpu,
        pages,
        lambda: torch.cuda.current_stream(device).cuda_stream,
        config.gpu_multiprocessors,
        config.gpu_staging_mib << 20,
    )
    gpu_paths.choose(copiers, pages, config.gpu_path, folder)
    return copiers


class GpuCopiers:
    """`stream()` is the engine's current one, as vLLM's thread sees it. RuntimeError: of the
    driver, or there is no room in the GPU's memory."""

    at_once = short_at_once = CHUNKS_AT_ONCE
    apart = True

    def __init__(
        self,
        gpu: _native.Gpu,
        pages: Sequence[PageLayout],
        stream: Callable[[], int],
        multiprocessors: int,
        staging_bytes: int,
    ) -> None:
        self.gpu = gpu
        self.multiprocessors = multiprocessors
        self._stream = stream
        slot = max(group.slot.slot_bytes for group in pages)
        self._staging = max(staging_bytes, LANES * slot)  # of loads
        self._stores = _native.GpuChannel(gpu, urgent=False, staging_bytes=self._staging)
        self._loads = _native.GpuChannel(gpu, urgent=True, staging_bytes=self._staging)
        self._copiers = [
            _native.GpuCopier(
                gpu,
                group.slot,
                group.pages,
                group.blocks_per_chunk,
                group.kernel_blocks,
                multiprocessors,
            )
            for group in pages
        ]
        self._layouts = [group.slot for group in pages]
        self.stage_stores = self.stage_loads = True  # until it is known what is faster
        self._lock = threading.Lock()
        self._known: set[Segment] = set()
        self._refused = False  # the driver takes no read-only mappings

    def mark(self) -> _native.GpuMark | str:
        """Why it failed, else: so does every copy that comes after it."""
        try:
            return self.gpu.mark(self._stream())
        except RuntimeError as error:
            return str(error)

    def gather(
        self, group: int, slots: Sequence[Slot], after: Any = None, urgent: bool = False
    ) -> None:
        """`urgent`: on the loads' streams, by their thread."""
        channel = self._loads if urgent else self._stores
        self._copiers[group].gather(channel, _chunks(slots), _mark(after), self.stage_stores)

    def audit(self, group: int, slot: Slot) -> bool:
        (status,) = self._copiers[group].audit(self._stores, _chunks([slot]))
        return status == _native.SlotStatus.GOOD

    def check(self, group: int, slot: Slot) -> int:
        if not slot.device:
            layout = self._layouts[group]
            return _native.check_slot(slot.address, layout, slot.key, slot.generation, slot.room)
        (status,) = self._copiers[group].verify(self._stores, _chunks([slot]))
        return status

    def clear(self, group: int, slot: Slot) -> None:
        if slot.device:
            self._copiers[group].clear(self._stores, _chunks([slot]))
        else:
            _native.clear_slot(slot.address)

    def scatter(
        self,
        group: int,
        slots: Sequence[Slot],
        part: _native.SlotPart | None = None,
        after: Any = None,
    ) -> list[int]:
        if part is not None:
            self._make_room(part.theirs)
        results = [_native.SlotStatus.INCOMPATIBLE] * len(slots)
        full = [i for i, slot in enumerate(slots) if not slot.room]
        short = [i for i, slot in enumerate(slots) if slot.room and not slot.device]
        self._scatter(group, slots, full, part, after, results)
        layout = part.theirs if part is not None else self._layouts[group]
        for at in range(0, len(short), EXPANDED):
            batch = short[at : at + EXPANDED]
            with contextlib.closing(Expanded(layout, len(batch))) as room:
                there = {i: room.fill(n, slots[i]) for n, i in enumerate(batch)}
                for i, (status, _) in there.items():
                    results[i] = status
                good = [i for i in batch if results[i] == _native.SlotStatus.GOOD]
                moved = {i: there[i][1] for i in good}
                self._scatter(group, moved, good, part, after, results)
        return results

    def _scatter(
        self,
        group: int,
        slots: Sequence[Slot] | Mapping[int, Slot],
        which: Sequence[int],
        part: _native.SlotPart | None,
        after: Any,
        results: list[int],
    ) -> None:
        """Of `which` of the slots, none of them compressed."""
        if not which:
            return
        chunks, copier = _chunks([slots[i] for i in which]), self._copiers[group]
        found = copier.scatter(self._loads, chunks, part, _mark(after), self.stage_loads)
        for i, status in zip(which, found):
            results[i] = status

    def _make_room(self, slot: _native.SlotLayout) -> None:
        """In the loads' staging: a peer's rank with more heads has larger slots than ours."""
        staging = LANES * slot.slot_bytes
        if staging > self._staging:
            self._loads = _native.GpuChannel(self.gpu, urgent=True, staging_bytes=staging)
            self._staging = staging

    def know(self, pool: Pool, readonly: bool) -> None:
        if pool.tier == DEVICE or (readonly and self._refused):
            return
        for segment in _segments(pool):
            with self._lock:
                if segment in self._known:
                    continue
            try:
                self.gpu.register_host(*segment, readonly=readonly)
            except RuntimeError as error:
                self._refused |= readonly
                log.info(
                    "lmkv: %d bytes are copied through the driver's own: %s", segment[1], error
                )
                return
            with self._lock:
                self._known.add(segment)

    def open(self, handle: bytes, size: int) -> _native.GpuMemory:
        return _native.GpuMemory(self.gpu, size, handle)

    def forget(self, pool: Pool) -> None:
        for segment in _segments(pool):
            with self._lock:
                known = segment in self._known
                self._known.discard(segment)
            if known:
                self.gpu.unregister_host(segment[0])


def _segments(pool: Pool) -> list[Segment]:
    return [pool.segment(n) for n in range(pool.segments)]


def _chunks(slots: Sequence[Slot]) -> list[tuple[int, bytes, int, list[int], bool]]:
    return [(s.address, s.key, s.generation, s.blocks, s.device) for s in slots]


def _mark(after: Any) -> _native.GpuMark:
    if isinstance(after, str):
        raise RuntimeError(f"the engine's stream could not be marked: {after}")
    assert isinstance(after, _native.GpuMark)
    return after
