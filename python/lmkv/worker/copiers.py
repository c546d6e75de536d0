"""What carries a worker's copies out: a host's copiers here, a GPU's in gpu_copiers.py.

Of each cache group: gather() fills reserved slots from vLLM's blocks, scatter() fills blocks from
slots that are in the pool or mapped, audit() digests blocks once more. mark() is called by vLLM's
thread; what it gives is the `after` of copies that come after the engine's work so far. A host's
engine has done its work when it calls us, and memory need not be made known to it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from lmkv import _native
from lmkv.core.geometry import GRANULES_A_SLOT
from lmkv.worker.affinity import unpin

if TYPE_CHECKING:
    from lmkv.core.config import InstanceConfig
    from lmkv.worker.page_layout import PageLayout


DECODERS = min(4, os.cpu_count() or 1)  # threads


def copiers_of(pages: Sequence[PageLayout], config: InstanceConfig, folder: Path) -> Copiers:
    """For the device that vLLM's KV is on; `folder` is `run_dir`. RuntimeError: a sentence on what
    is wrong with a GPU or its driver."""
    if pages[0].device == "cpu":
        return HostCopiers(pages)
    from lmkv.worker.gpu_copiers import gpu_copiers

    return gpu_copiers(pages, config, folder)


@dataclass(frozen=True)
class Slot:
    """Where a chunk lies, and what it is."""

    address: int
    key: bytes
    generation: int
    blocks: list[int]
    device: bool = False  # it is in a GPU's memory
    room: int = 0  # bytes, of a compressed one; 0: it is a full slot


Pool: TypeAlias = "_native.Pool | _native.PoolMap | _native.GpuPool"


def short_room(place: bytes, pool: Pool) -> int:
    """The `room` of a slot at this place."""
    return place[4] * pool.granule_bytes if place[4] < GRANULES_A_SLOT else 0


class Copiers(Protocol):
    """Thread-safe: a load and a store at a time. RuntimeError: of a GPU's driver."""

    at_once: int  # slots in a call, at most
    short_at_once: int  # the same where all are compressed
    apart: bool  # loads and stores wait for a GPU, each in a thread of its own

    @property
    def gpu(self) -> _native.Gpu | None:
        """With its kernels."""
        ...

    def mark(self) -> Any: ...
    def fence(self, gathers: int) -> _native.GpuFence | None:
        """Told by so many gathers when they have read their blocks; None: only their ends do."""
        ...

    def hold(self, fence: _native.GpuFence, seconds: float) -> bool:
        """The engine's work from now on comes after them; False: that is not sure, so wait."""
        ...

    def gather(
        self, group: int, slots: Sequence[Slot], after: Any = None, fence: Any = None
    ) -> None: ...
    def audit(self, group: int, slot: Slot) -> bool: ...
    def check(self, group: int, slot: Slot) -> int:
        """SlotStatus of the slot's own bytes; no block is read."""
        ...

    def clear(self, group: int, slot: Slot) -> None:
        """No reader accepts it from here on."""
        ...

    def scatter(
        self,
        group: int,
        slots: Sequence[Slot],
        part: _native.SlotPart | None = None,
        after: Any = None,
    ) -> list[int]:
        """SlotStatus of each; blocks hold rubbish unless it is GOOD."""
        ...

    def know(self, pool: Pool, readonly: bool) -> None:
        """The pool's usable segments, new ones too, may be reached faster from now on."""
        ...

    def open(self, handle: bytes, size: int) -> _native.GpuMemory:
        """A peer's, by its CUDA IPC handle. RuntimeError: it cannot be reached from here."""
        ...

    def forget(self, pool: Pool) -> None:
        """Before it is closed."""
        ...


class HostCopiers:
    """Chunk by chunk, by the calling thread; compressed ones, whose decoding takes longer than the
    copy, by threads that begin with the first of them."""

    at_once = 1
    short_at_once = 4 * DECODERS
    apart = False
    gpu: _native.Gpu | None = None

    def __init__(self, pages: Sequence[PageLayout]) -> None:
        self._copiers = [group.copier() for group in pages]
        self._layouts = [group.slot for group in pages]
        self._decoders: ThreadPoolExecutor | None = None

    def mark(self) -> None: ...

    def fence(self, gathers: int) -> None: ...

    def hold(self, fence: _native.GpuFence, seconds: float) -> bool:
        return False

    def gather(
        self, group: int, slots: Sequence[Slot], after: Any = None, fence: Any = None
    ) -> None:
        for slot in slots:
            self._copiers[group].gather(slot.address, slot.key, slot.generation, slot.blocks)

    def audit(self, group: int, slot: Slot) -> bool:
        return self._copiers[group].audit(slot.address, slot.blocks)

    def check(self, group: int, slot: Slot) -> int:
        layout = self._layouts[group]
        return _native.check_slot(slot.address, layout, slot.key, slot.generation, slot.room)

    def clear(self, group: int, slot: Slot) -> None:
        _native.clear_slot(slot.address)

    def scatter(
        self,
        group: int,
        slots: Sequence[Slot],
        part: _native.SlotPart | None = None,
        after: Any = None,
    ) -> list[int]:
        copier = self._copiers[group]

        def one(s: Slot) -> int:
            if part is None:
                return copier.scatter(s.address, s.key, s.generation, s.blocks, s.room)
            return copier.scatter_part(s.address, part, s.key, s.generation, s.blocks, s.room)

        if len(slots) == 1:
            return [one(slots[0])]
        if self._decoders is None:
            self._decoders = ThreadPoolExecutor(DECODERS, "lmkv-decode", initializer=unpin)
        try:
            return list(self._decoders.map(one, slots))
        except Exception:  # blocks may be another request's as soon as a load has ended
            self._decoders.shutdown(cancel_futures=True)
            self._decoders = None
            raise

    def know(self, pool: Pool, readonly: bool) -> None: ...

    def open(self, handle: bytes, size: int) -> _native.GpuMemory:
        raise RuntimeError("this engine's KV is not on a GPU")

    def forget(self, pool: Pool) -> None: ...
