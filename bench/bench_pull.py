"""A pull (READ, check, reseal) beside a bare NIXL READ of the same bytes, round by round.

One process each for holder and reader, their UCX set up as a mover's. The reader has both: an
engine over its pool, and another agent that reads the same slots in one READ of 2 MiB descriptors.
Figures are GB/s; target: DESIGN's 0.95.
"""

from __future__ import annotations

import json
import os
import select
import struct
import subprocess
import sys
import time

from bench.harness import Figure, Row

TARGET = 0.95
SLOT_SEGMENTS, SEGMENT_BYTES = 32, 65536  # slots of 2 MiB
SLOTS, ROUNDS = 128, 15
EPOCH = 7
PIECE = 2 << 20


def _place(slot: int) -> bytes:
    return struct.pack("<IBBH", 16 * slot, 16, 0, 0)


def _key(n: int) -> bytes:
    return struct.pack("<QQ", n, ~n & (1 << 64) - 1)


def _pool():
    from lmkv import _native

    layout = _native.SlotLayout(SLOT_SEGMENTS, SEGMENT_BYTES, 1, 42)
    pool = _native.Pool(layout.granule_bytes, SLOTS, SLOTS)
    pool.add_segment()
    return layout, pool


def _hold() -> None:
    """The holder's process: prints what a reader must know, and serves until its stdin ends."""
    import random

    from lmkv import _native
    from lmkv.mover import transport

    layout, pool = _pool()
    agent = transport.open_agents(transport.find_library(), f"bench-{os.getpid()}").serve
    agent.register(pool.address, SLOTS * layout.slot_bytes)
    for slot in range(SLOTS):
        data = random.Random(slot).randbytes(layout.payload_bytes)
        at = pool.slot_address(_place(slot))
        _native.write_slot(at, layout, _key(slot), EPOCH << 32 | slot + 1, data)
    print(json.dumps([pool.address, agent.metadata().hex()]), flush=True)
    sys.stdin.read()
    os._exit(0)


class _Reader:
    def __init__(self, address: int, metadata: bytes) -> None:
        from lmkv import _native
        from lmkv.mover import transport

        self.native = _native
        self.layout, pool = _pool()
        self.pool = _native.PoolMap(self.layout.granule_bytes, SLOTS, SLOTS, 0, writable=True)
        self.pool.add_segment(pool.segment_fd(0))
        library = transport.find_library()
        self.bare = transport.open_agents(library, f"bare-{os.getpid()}").pull
        pulls = transport.open_agents(library, f"pull-{os.getpid()}").pull
        for agent in (self.bare, pulls):
            agent.register(self.pool.address, SLOTS * self.layout.slot_bytes)
        self.engine = _native.PullEngine(pulls, self.pool)
        self.agent = self.bare.connect(metadata)
        granules = 16 * SLOTS
        self.peer = _native.PullPeer(
            "holder", metadata, address, self.layout.granule_bytes, granules, granules
        )
        self.address = address
        self.read_bytes = self.layout.used_bytes
        self.bytes = SLOTS * self.read_bytes
        self.job = 0

    def read(self) -> None:
        local, remote, lengths = [], [], []
        for slot in range(SLOTS):
            start = slot * self.layout.slot_bytes
            for at in range(0, self.read_bytes, PIECE):
                local.append(self.pool.address + start + at)
                remote.append(self.address + start + at)
                lengths.append(min(PIECE, self.read_bytes - at))
        transfer = self.bare.read(self.agent, local, remote, lengths)
        while (state := self.bare.poll(transfer)) == self.native.TransferState.PENDING:
            pass
        assert state == self.native.TransferState.DONE

    def pull(self) -> None:
        self.job += 1
        counters = struct.pack(f"<{SLOTS}I", *range(1, SLOTS + 1))
        places = b"".join(_place(slot) for slot in range(SLOTS))
        keys = b"".join(_key(slot) for slot in range(SLOTS))
        self.engine.pull(
            self.job, self.peer, self.layout, EPOCH, EPOCH + 1,
            keys, places, counters, places, counters, 60.0,
        )  # fmt: skip
        while True:
            assert select.select([self.engine.fd], [], [], 60)[0]
            for event in self.engine.take():
                assert event.results == bytes(SLOTS), event.error
                return

    def check(self) -> None:
        import ctypes
        import random

        for slot in range(SLOTS):
            at = self.pool.slot_address(_place(slot))
            ours = (EPOCH + 1) << 32 | slot + 1
            status = self.native.check_slot(at, self.layout, _key(slot), ours)
            assert status == self.native.SlotStatus.GOOD
            payload = ctypes.string_at(at + self.layout.payload_offset, self.layout.payload_bytes)
            assert payload == random.Random(slot).randbytes(self.layout.payload_bytes)


def _read() -> None:
    """The reader's process: both ways in turn, after each has been checked."""
    from bench.harness import measure

    address, metadata = json.loads(sys.stdin.readline())
    reader = _Reader(address, bytes.fromhex(metadata))
    reader.read()
    reader.pull()
    reader.check()
    figures = measure(
        reader.pull, reader.read, rounds=ROUNDS, figure=lambda s: reader.bytes / s / 1e9
    )
    print(json.dumps([[f.median, f.low, f.high] for f in figures]), flush=True)
    os._exit(0)


def _row(name: str, tls: str) -> Row:
    from lmkv.worker.supervise import MoverSettings, environment

    env = environment(MoverSettings("", nixl_tls=tls), os.environ)
    command = [sys.executable, "-m", "bench.bench_pull"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": env, "text": True}
    with (
        subprocess.Popen([*command, "hold"], **pipes) as holder,
        subprocess.Popen([*command, "read"], **pipes) as reader,
    ):
        out, _ = reader.communicate(holder.stdout.readline(), timeout=300)
        time.sleep(0.1)  # UCX's last words
        holder.stdin.close()
    ours, limit = (Figure(*figure) for figure in json.loads(out))
    note = f"{SLOTS} slots of 2 MiB, READ + check + reseal beside one bare READ, {tls or 'cma'}"
    return Row(name, "GB/s", ours, limit, TARGET, note=note)


def rows() -> list[Row]:
    from lmkv.mover.transport import NixlError, find_library

    try:
        find_library()
    except NixlError as error:
        print(f"bench_pull: skipped: {error}", file=sys.stderr)
        return []
    return [_row("NIXL pull", ""), _row("NIXL pull, TCP", "tcp,self")]


if __name__ == "__main__":
    {"hold": _hold, "read": _read}[sys.argv[1]]()
