"""`python -m lmkv.mover.gpu_probe`: how fast NIXL reads a GPU's memory here, and whether rightly.

Of GPU 0 as it sees it, with a mover's environment, between two agents of its own like a mover's
(`core/ucx.py` leaves UCX no way between them that ends at this host). In a process of its own: UCX
may end one that it cannot serve. Its last line is JSON, a `Measured`.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import secrets
import time
from collections.abc import Callable

import msgspec

from lmkv import _native
from lmkv.core.geometry import DEVICE, HOST
from lmkv.mover import transport
from lmkv.mover.measured import Measured

BYTES = 64 << 20  # of a READ
PIECE = 2 << 20
REPEATS = 3
DEADLINE = 8.0  # seconds, for each READ


def main() -> None:
    _native.die_with_parent()
    try:
        found = measure()
    except (transport.NixlError, RuntimeError, ValueError) as error:
        found = Measured(error=str(error))
    print("\n" + msgspec.json.encode(found).decode(), flush=True)
    os._exit(0)  # as the mover ends


def measure(size: int = BYTES, clock: Callable[[], float] = time.monotonic) -> Measured:
    """RuntimeError and NixlError: a sentence on what does not work."""
    library = transport.find_library()
    gpu = _native.Gpu(0)
    source, target = _native.GpuMemory(gpu, size), _native.GpuMemory(gpu, size)
    agents = transport.open_agents(library, f"lmkv-gpu-probe-{secrets.token_hex(8)}")
    agents.serve.register(source.address, size, DEVICE)
    agents.pull.register(target.address, size, DEVICE)
    host = mmap.mmap(-1, 2 * size)
    held = ctypes.c_char.from_buffer(host)
    theirs = ctypes.addressof(held)
    ours = theirs + size
    agents.serve.register(theirs, size)
    agents.pull.register(ours, size)
    peer = agents.pull.connect(agents.serve.metadata())
    pattern = secrets.token_bytes(PIECE)
    for at in range(0, size, PIECE):
        source.write(at, pattern)
    gpu_rate = _rate(agents.pull, peer, target.address, source.address, size, DEVICE, clock)
    if any(target.read(at, PIECE) != pattern for at in range(0, size, PIECE)):
        raise RuntimeError(f"NIXL's READ of the memory of {gpu.name} brought other bytes")
    host_rate = _rate(agents.pull, peer, ours, theirs, size, HOST, clock)
    return Measured(gpu_rate, host_rate)


def _rate(
    pull: _native.Transport,
    peer: str,
    local: int,
    remote: int,
    size: int,
    tier: int,
    clock: Callable[[], float],
) -> float:
    """Bytes a second of the best READ; the first one, which connects, is not counted."""
    offsets = range(0, size, PIECE)
    least = DEADLINE
    for turn in range(1 + REPEATS):
        began = clock()
        number = pull.read(
            peer,
            [local + at for at in offsets],
            [remote + at for at in offsets],
            [PIECE] * len(offsets),
            tier,
        )
        while (state := pull.poll(number)) == _native.TransferState.PENDING:
            if clock() - began > DEADLINE:
                what = "a GPU's memory" if tier == DEVICE else "the host's memory"
                raise RuntimeError(
                    f"NIXL's READ of {size} bytes of {what} took over {DEADLINE:g} s"
                )
        if state != _native.TransferState.DONE:
            raise RuntimeError("NIXL's READ of its own agent failed")
        if turn:
            least = min(least, clock() - began)
    return size / max(least, 1e-9)


if __name__ == "__main__":
    main()
