"""`python -m tests.gpu.nixl_pair hold|pull fake|real`: two processes on one card, one of which
pulls slots from the other's memory of the card into its own, by NIXL, as movers do.

The holder prints `held METADATA ADDRESS` and waits; the puller is given both, prints `pulled
RESULTS BYTES`, or either prints `not here: WHY` where this NIXL takes no such memory.
"""

from __future__ import annotations

import ctypes
import os
import select
import struct
import sys

from lmkv import _native
from lmkv.mover import transport

DEVICE = 1  # as in core/geometry.py, which imports more than a machine with a card may have
LAYOUT = _native.SlotLayout(4, 64 << 10, 1, 99)
SLOTS = 4
SIZE = -(-SLOTS * LAYOUT.slot_bytes // (2 << 20)) * (2 << 20)
HELD, PULLED, LACKS = "held", "pulled", "not here:"


def key(n: int) -> bytes:
    return bytes([n]) * 16


def payload(n: int) -> bytes:
    return bytes((n + i * 37) % 251 for i in range(256)) * (LAYOUT.payload_bytes // 256)


def places() -> bytes:
    return b"".join(struct.pack("<IBBH", 16 * n, 16, DEVICE, 0) for n in range(SLOTS))


def counters() -> bytes:
    return struct.pack("<I", 1) * SLOTS


def opened(kind: str) -> _native.Gpu:
    from tests.gpu.cards import FATBIN, real_image

    gpu = _native.Gpu(0)
    if kind == "fake":
        gpu.load(FATBIN)
    else:
        real_image(gpu)
    return gpu


def hold(gpu: _native.Gpu) -> None:
    memory = _native.GpuMemory(gpu, SIZE)
    slots = bytearray(SLOTS * LAYOUT.slot_bytes + 4096)
    held = (ctypes.c_char * len(slots)).from_buffer(slots)
    first = -ctypes.addressof(held) % 4096
    for n in range(SLOTS):
        at = ctypes.addressof(held) + first + n * LAYOUT.slot_bytes
        _native.write_slot(at, LAYOUT, key(n), 7 << 32 | 1, payload(n))
    memory.write(0, bytes(slots[first : first + SLOTS * LAYOUT.slot_bytes]))
    agent = _native.Transport(
        "nixl", f"gpu-holder-{os.getpid()}", transport.find_library().path, progress=True
    )
    agent.register(memory.address, SIZE, DEVICE)
    print(f"\n{HELD} {agent.metadata().hex()} {memory.address}", flush=True)
    sys.stdin.read()


def pull(gpu: _native.Gpu, metadata: bytes, address: int) -> None:
    memory = _native.GpuMemory(gpu, SIZE)
    pool = _native.GpuPool(memory, LAYOUT.granule_bytes, SLOTS)
    agent = _native.Transport("nixl", f"gpu-puller-{os.getpid()}", transport.find_library().path)
    agent.register(memory.address, SIZE, DEVICE)
    engine = _native.PullEngine(agent, pool, gpu, 2)
    usable = 16 * SLOTS
    peer = _native.PullPeer("h", metadata, address, LAYOUT.granule_bytes, usable, usable, DEVICE)
    keys = b"".join(key(n) for n in range(SLOTS))
    engine.pull(1, peer, LAYOUT, 7, 8, keys, places(), counters(), places(), counters(), 30.0)
    assert select.select([engine.fd], [], [], 40.0)[0], "the engine reports nothing"
    (event,) = engine.take()
    right = all(
        memory.read(n * LAYOUT.slot_bytes + LAYOUT.payload_offset, LAYOUT.payload_bytes)
        == payload(n)
        for n in range(SLOTS)
    )
    print(f"\n{PULLED} {[*event.results]} {right} {event.error or engine.lost}", flush=True)


def main(words: list[str]) -> None:
    what, kind, *more = words
    try:
        gpu = opened(kind)
        if what == "hold":
            hold(gpu)
        else:
            pull(gpu, bytes.fromhex(more[0]), int(more[1]))
    except (transport.NixlError, RuntimeError) as error:
        print(f"\n{LACKS} {error}", flush=True)
    os._exit(0)  # as movers end


if __name__ == "__main__":
    main(sys.argv[1:])
