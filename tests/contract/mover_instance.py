"""One rank of an instance without vLLM: a real pool, a real mover, and its agent's socket."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import struct
import threading
import time
from pathlib import Path

import numpy as np
import zmq
from lmkv import _native
from lmkv.core import geometry, wire
from lmkv.core.messages import (
    Alarm,
    Attach,
    GpuSegment,
    HostIdentity,
    Message,
    MoverState,
    Pull,
    Pulled,
    PullPeer,
    RankInfo,
)
from lmkv.worker.supervise import MoverSettings, Supervisor

TEXT = geometry.Layout(
    chunk_tokens=256,
    dtype="bfloat16",
    page_format="tokens",
    group=0,
    layers=("model.layers.0.attn", "model.layers.1.attn"),
    head_size=16,
    kv_heads=2,
    first_head=0,
    heads=2,
    segment_bytes=16384,
).text()
LAYOUT = geometry.slot_layout(TEXT)
SLOTS, SEGMENT_SLOTS = 24, 8
HERE = HostIdentity("boot", 1, 1)
READY = 60.0  # seconds; a probe of a GPU's memory is among them


def place(slot: int, tier: int = geometry.HOST) -> bytes:
    return struct.pack("<IBBH", 16 * slot, 16, tier, 0)


def counters(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


def key(n: int) -> bytes:
    return n.to_bytes(2, "little") * 8


def payload(n: int, layout: _native.SlotLayout = LAYOUT) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, layout.payload_bytes, dtype=np.uint8)


def generation(epoch: int, counter: int) -> int:
    return (epoch & 0xFFFFFFFF) << 32 | counter


def pulled(instance: Instance, job: int) -> tuple[Pulled, list[int]]:
    """The answer to a pull, after what its mover has to say of the peer."""
    answer, frames = instance.receive()
    while isinstance(answer, Alarm):
        answer, frames = instance.receive()
    assert isinstance(answer, Pulled) and answer.job == job, answer
    (results,) = frames
    return answer, list(results)


class Instance:
    """`with Instance(name, run_dir) as a:` has an attached mover that is ready. Its pool, of slots
    of the layout `text`, is its own unless one with all segments is given, which may be a (fake)
    GPU's, told as `segment`. Another rank of the same instance has its epoch; `heads` are first and
    number."""

    def __init__(
        self,
        name: str,
        run_dir: str,
        segments: int = 3,
        text: str = TEXT,
        pool: _native.Pool | _native.GpuPool | None = None,
        rank: int = 0,
        heads: tuple[int, int] | None = None,
        epoch: int = 0,
        segment: GpuSegment | None = None,
        image: bytes = b"",
        **settings: object,
    ) -> None:
        self.name, self.rank, self.heads = name, rank, heads or geometry.rank_heads(text)
        self.epoch = epoch or secrets.randbits(64) | 1
        self._all_heads = geometry.slot_layout(text), geometry.rank_heads(text)[1]
        self.text = geometry.with_heads(text, self.heads)
        self.layout = geometry.slot_layout(self.text)
        self._own = pool is None
        self.pool = pool or _native.Pool(self.layout.granule_bytes, SLOTS, SEGMENT_SLOTS)
        while pool is None and self.pool.segments < segments:
            self.pool.add_segment()
        self.states: list[MoverState | None] = []
        self._changed = threading.Condition()
        self.supervisor = Supervisor(
            self.pool,
            rank,
            secrets.token_hex(4),
            MoverSettings(run_dir, (self.text,), **settings),  # type: ignore[arg-type]
            self._on_state,
            gpu=segment,
            image=image,
        )
        self.agent = zmq.Context.instance().socket(zmq.DEALER)
        self.agent.linger = 0
        self._connected = ""

    def _on_state(self, state: MoverState | None) -> None:
        with self._changed:
            self.states.append(state)
            self._changed.notify_all()

    def __enter__(self) -> Instance:
        self.supervisor.attach(self.name, self.epoch)
        self.supervisor.start()
        self.state(lambda s: s.nixl_metadata or s.error, READY)
        self.attach()
        return self

    def __exit__(self, *exc: object) -> None:
        self.supervisor.stop()
        self.agent.close()
        if self._own:
            self.pool.close()

    def state(self, wanted, deadline: float = 20.0) -> MoverState:
        """The first state from now, or the present one, that is as `wanted`."""
        end = time.monotonic() + deadline
        with self._changed:
            while not (self.states and self.states[-1] and wanted(self.states[-1])):
                assert self._changed.wait(end - time.monotonic()), self.states[-1:]
            return self.states[-1]

    def deaths(self) -> int:
        return self.states.count(None)

    def attach(self) -> MoverState:
        """Speak to the present mover."""
        if self._connected:
            with contextlib.suppress(zmq.ZMQError):
                self.agent.disconnect(self._connected)
        self._connected = f"ipc://{self.supervisor.control_socket}"
        self.agent.connect(self._connected)
        self.send(Attach(self.name, self.epoch))
        answer, _ = self.receive()
        assert isinstance(answer, MoverState), answer
        return answer

    def send(self, message: Message, *arrays: bytes) -> None:
        self.agent.send_multipart(wire.encode(message, *arrays))

    def receive(self, deadline: float = 20.0) -> tuple[Message, list[bytes]]:
        assert self.agent.poll(int(deadline * 1000)), "no answer from the mover"
        return wire.decode(self.agent.recv_multipart())

    def at(self, slot: int) -> int:
        return self.pool.slot_address(place(slot, self.pool.tier))

    def write(self, slot: int, n: int, counter: int) -> None:
        """Slot `slot` holds chunk `n`, admitted as `counter`."""
        _native.write_slot(
            self.at(slot),
            self.layout,
            key(n),
            generation(self.epoch, counter),
            self.payload(n),
        )

    def check(self, slot: int, n: int, counter: int) -> int:
        return _native.check_slot(
            self.at(slot),
            self.layout,
            key(n),
            generation(self.epoch, counter),
        )

    def payload(self, n: int) -> np.ndarray:
        """What this rank's heads have of chunk `n`."""
        (layout, heads), (first, count) = self._all_heads, self.heads
        pages = payload(n, layout).reshape(layout.segments // heads, heads, -1)
        return np.ascontiguousarray(pages[:, first : first + count]).ravel()

    def bytes_of(self, slot: int) -> np.ndarray:
        """A view of the slot's payload in the pool."""
        import ctypes

        address = self.at(slot) + self.layout.payload_offset
        buffer = (ctypes.c_uint8 * self.layout.payload_bytes).from_address(address)
        return np.frombuffer(buffer, np.uint8)

    def peer(self, **changes: object) -> PullPeer:
        """What the controller would tell others of this rank."""
        state = self.state(lambda s: True)
        info = RankInfo(
            self.rank,
            HERE,
            state.pool_address or self.pool.address,
            self.layout.granule_bytes,
            16 * self.pool.slots,
            16 * self.pool.segment_slots,
            self.pool.segments,
            self.supervisor.share_socket,
            state.nixl_metadata,
            tier=self.pool.tier,
            heads=[self.heads],
        )
        for name, value in changes.items():
            setattr(info, name, value)
        return PullPeer(self.name, self.epoch, 1, info)

    def pull(
        self,
        job: int,
        peer: PullPeer,
        chunks: list[tuple[int, int, int]],
        own: list[tuple[int, int]],
        deadline: float = 10.0,
        fingerprint: int | None = None,
        others: list[PullPeer] | None = None,
    ) -> None:
        """`chunks`: (chunk, remote slot, remote counter); `own`: (slot, counter)."""
        fingerprint = self.layout.fingerprint if fingerprint is None else fingerprint
        self.send(
            Pull(job, peer, deadline, fingerprint, others or []),
            b"".join(key(n) for n, _, _ in chunks),
            b"".join(place(slot, peer.info.tier) for _, slot, _ in chunks),
            counters(*(counter for _, _, counter in chunks)),
            b"".join(place(slot, self.pool.tier) for slot, _ in own),
            counters(*(counter for _, counter in own)),
        )


def stop(pid: int, deadline: float = 10.0) -> None:
    """SIGSTOP, until no thread runs any more: one that does would still answer a READ."""
    os.kill(pid, signal.SIGSTOP)
    end = time.monotonic() + deadline
    tasks = Path(f"/proc/{pid}/task")
    while any(_state(task) != "T" for task in tasks.iterdir()):
        assert time.monotonic() < end, f"{pid} does not stop"
        time.sleep(0.001)


def _state(task: Path) -> str:
    return (task / "stat").read_text().rpartition(")")[2].split()[0]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
