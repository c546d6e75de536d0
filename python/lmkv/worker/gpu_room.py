"""A GPU's memory for slots, taken before vLLM measures what is left for its own KV.

    sized_around(worker, gib, determine)   vLLM's worker, about to profile (plugin.py)
    take(ordinal)                          the connector, once the KV's layout is known

vLLM takes what its process holds beyond torch's memory for taken, so its KV is sized around ours.
Where that cannot be, take() says why; vLLM's own start is never in the way.
"""

from __future__ import annotations

import logging
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lmkv import _native
from lmkv.core.descriptors import readable
from lmkv.core.pool_size import GIB, DoesNotFit
from lmkv.worker.visible import one_gpu

if TYPE_CHECKING:
    from lmkv.worker.page_layout import PageLayout

log = logging.getLogger("lmkv.worker")

LIBRARY = "libcuda.so.1"
MULTIPLE = 2 << 20  # bytes: less might share an IPC handle with other memory
PROBE_BYTES = 16
CONTEXT_BYTES = 512 << 20  # what a mover takes where that cannot be measured; a guess
CONTEXTS = range(1 << 20, 4 << 30)  # bytes that a measured one may have: others use the card too
CONTEXT_DEADLINE = 20.0
CONTEXT = [sys.executable, "-m", "lmkv.mover.gpu_context"]
STARTUP_PLAN = "VLLM_ENABLE_STARTUP_PLAN"
SCOPE = (
    "pool_device: instances of this host open the pool in the GPU's memory; it is pulled from and"
    " into over the network once NIXL's READs of such memory are tried, and found fast enough"
)

_rooms: dict[int, _native.GpuMemory | str] = {}  # by the GPU's number; or why there is none


def sized_around(worker: Any, gib: float, determine: Callable[[], int], mover: bool = False) -> int:
    """`determine` is vLLM's `determine_available_memory` of this worker; what a `mover` takes is
    left out of it. Where nothing is left for vLLM's KV, the memory is given back, and vLLM gets
    all."""
    if worker.device.type != "cuda":
        return determine()
    ordinal = worker.device.index or 0
    _rooms.pop(ordinal, None)  # of an engine that came to nothing
    try:
        _refuse(worker)
        mover_bytes = mover_takes(ordinal) if mover else 0
        _rooms[ordinal] = _reserve(ordinal, gib)
    except (RuntimeError, ValueError) as error:
        _rooms[ordinal] = str(error)
        return determine()
    try:
        left = determine()
    except Exception as error:  # torch's, which this module does not import
        if type(error).__name__ != "OutOfMemoryError":
            raise
        _give_back(ordinal, gib)
        return determine()
    if left > mover_bytes:
        worker.available_kv_cache_memory_bytes -= mover_bytes
        return left - mover_bytes
    size = _give_back(ordinal, gib)
    worker.available_kv_cache_memory_bytes += size
    return left + size


def mover_takes(ordinal: int) -> int:
    """Bytes of this GPU that a mover's own context will take."""
    gpu = _native.Gpu(ordinal, LIBRARY)
    return context_bytes(lambda: gpu.memory()[0], CONTEXT, os.environ | one_gpu(ordinal))


def context_bytes(
    free: Callable[[], int], command: Sequence[str], environment: Mapping[str, str]
) -> int:
    """By how much `free()` is less while a process of this command has a context."""
    before, why = free(), "it did not begin"
    try:
        with subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            try:
                if readable(process.stdout.fileno(), CONTEXT_DEADLINE):
                    why = process.stdout.readline().strip() or "it ended"
                taken = before - free()
            finally:
                process.kill()
    except OSError as error:
        why, taken = str(error), 0
    if why == "ready" and taken in CONTEXTS:
        log.info("lmkv: a mover's context takes %d MiB of the GPU", taken >> 20)
        return taken
    log.info(
        "lmkv: %d MiB of the GPU are left to a mover's context, which could not be measured: %s",
        CONTEXT_BYTES >> 20,
        f"{taken} bytes" if why == "ready" else why,
    )
    return CONTEXT_BYTES


def take(ordinal: int) -> _native.GpuMemory:
    """The room, which is the caller's from now on. RuntimeError: there is none, and why."""
    room = _rooms.pop(ordinal, None)
    if room is None:
        raise RuntimeError(
            "pool_device: vLLM has sized its KV before memory of the GPU was taken; lmkv's plugin"
            " is not loaded (VLLM_PLUGINS names those that are)"
        )
    if isinstance(room, str):
        raise RuntimeError(room)
    return room


def cut(room: _native.GpuMemory, slot_bytes: int, granule_bytes: int) -> _native.GpuPool:
    """As many slots as it has room for. DoesNotFit."""
    slots = (room.size - PROBE_BYTES) // slot_bytes
    if slots == 0:
        raise DoesNotFit(
            f"gpu_pool_gib: {room.size / GIB:.2f} GiB hold no slot of {slot_bytes} bytes"
        )
    return _native.GpuPool(room, granule_bytes, slots)


def write_probe(room: _native.GpuMemory, end: int) -> bytes:
    """What whoever opens the pool must find behind its last slot. RuntimeError: it is not there."""
    probe = secrets.token_bytes(PROBE_BYTES)
    room.write(end, probe)
    if room.read(end, PROBE_BYTES) != probe:
        raise RuntimeError("gpu_pool_gib: the GPU gives back other bytes than were written")
    return probe


def ordinal_of(pages: Sequence[PageLayout]) -> int:
    """The GPU that vLLM's KV is on; ValueError when it is on none."""
    kind, _, number = pages[0].device.partition(":")
    if kind != "cuda":
        raise ValueError(f"pool_device: KV on {kind} is not on a GPU, allowed is host")
    return int(number or 0)


def _refuse(worker: Any) -> None:
    """ValueError: vLLM does not size its KV by what is left, or may give it away."""
    cache = worker.cache_config
    if cache.kv_cache_memory_bytes:
        raise ValueError(
            f"pool_device: with kv_cache_memory_bytes = {cache.kv_cache_memory_bytes} vLLM does not"
            " size its KV around a pool in the GPU's memory; allowed is none"
        )
    if os.environ.get(STARTUP_PLAN, "0") not in ("", "0"):
        raise ValueError(
            f"pool_device: with {STARTUP_PLAN} vLLM may take a KV size that was measured without"
            " the pool in the GPU's memory; allowed is 0"
        )


def _reserve(ordinal: int, gib: float) -> _native.GpuMemory:
    gpu = _native.Gpu(ordinal, LIBRARY)
    size = max(MULTIPLE, int(gib * GIB) // MULTIPLE * MULTIPLE)
    free, total = gpu.memory()
    if size > free:
        raise DoesNotFit(
            f"gpu_pool_gib: {gib:g} GiB are more than the {free / GIB:.2f} GiB of"
            f" {total / GIB:.2f} GiB that GPU {ordinal}, {gpu.name}, has free"
        )
    return _native.GpuMemory(gpu, size)


def _give_back(ordinal: int, gib: float) -> int:
    room = _rooms[ordinal]
    assert not isinstance(room, str)
    size = room.size
    room.close()
    why = f"gpu_pool_gib: a pool of {gib:g} GiB leaves no memory of the GPU for vLLM's own KV"
    _rooms[ordinal] = why
    return size
