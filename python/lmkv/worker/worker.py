"""The worker's side of an instance, in each of vLLM's worker processes: pool, copies, mover.

start() -> the agent attaches -> plans are carried out, step by step -> stop(). The pool's segments
are made in the background and become usable one by one; vLLM's thread only queues copies, and waits
only where it is about to overwrite a block that is still being read. Threads: filler (segments),
control (the agent's socket), copies, and the supervisor's.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
from typing import Any

import msgspec
import zmq

from lmkv import _native
from lmkv.core import geometry, identity, wire
from lmkv.core.config import InstanceConfig
from lmkv.core.messages import (
    Alarm,
    Attach,
    Message,
    MoverState,
    PullResult,
    RankInfo,
    Stored,
    WorkerState,
)
from lmkv.core.steps import Load, LoadChunk, LoadResult, StepPlan, Store
from lmkv.worker.copies import Copies
from lmkv.worker.mapped import MapError, MappedPeers
from lmkv.worker.page_layout import PageLayout
from lmkv.worker.supervise import MoverSettings, Supervisor

log = logging.getLogger("lmkv.worker")

GRANULES_A_SLOT = 16
STOP_DEADLINE = 2.0
UCX_TLS = {"": "", "tcp": "tcp,self", "cma": "cma,tcp,self"}


class Worker:
    """Raises geometry.DoesNotFit, ValueError, OSError or RuntimeError with a sentence."""

    def __init__(
        self,
        config: InstanceConfig,
        instance: str,
        engine_id: str,
        rank: int,
        ranks_on_host: int,
        pages: PageLayout,
    ) -> None:
        self._config = config
        self._rank = rank
        self._pages = pages
        folder = identity.run_dir(config.run_dir or None)
        slot = pages.slot
        slots = geometry.pool_slots(config.pool_gib, ranks_on_host, slot.slot_bytes)
        segment_slots = geometry.segment_slots(slots, slot.slot_bytes)
        self.pool = _native.Pool(slot, slots, segment_slots)
        self._copier = pages.copier()
        self._mapped = MappedPeers(slot, config.connect_deadline)
        self._info = RankInfo(
            rank,
            identity.host_identity(folder),
            pool_address=self.pool.address,
            granule_bytes=slot.granule_bytes,
            granules=slots * GRANULES_A_SLOT,
            segment_granules=segment_slots * GRANULES_A_SLOT,
        )
        name = identity.socket_name(instance, engine_id, rank, "worker")
        self._path = str(folder / name)
        settings = MoverSettings(
            str(folder),
            config.data_interface,
            config.data_ports,
            UCX_TLS[config.nixl_tls],
            limbo_seconds=config.limbo_seconds,
            limbo_share=config.limbo_share,
        )
        tag = name.partition("-")[0]
        self.supervisor = Supervisor(self.pool, rank, tag, settings, self._mover_changed)
        self._copies = Copies(self._copy_load, self._copy_store, self._stored, config.load_deadline)
        self._lock = threading.Lock()  # of the state below
        self._instance, self._epoch, self._data_version = instance, 0, 0
        self._mover: MoverState | None = None
        self._gathers = 0
        self._out: queue.SimpleQueue[list[bytes]] = queue.SimpleQueue()
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._control, name="lmkv-control", daemon=True),
            threading.Thread(target=self._fill, name="lmkv-filler", daemon=True),
        ]

    def handshake(self) -> dict[str, Any]:
        """What the agent must know of this rank before anything else, as plain data."""
        return {
            "rank": self._rank,
            "info": self._info,
            "control": f"ipc://{self._path}",
            "layout": self._pages.layout,
            "slots": self.pool.slots,
            "payload_bytes": self._pages.slot.payload_bytes,
        }

    def start(self) -> None:
        self._copies.start()
        self.supervisor.start()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ends threads and mover, within a few seconds; harmless when repeated."""
        if self._stopping:
            return
        self._stopping = True
        self._wake()
        self._copies.stop(STOP_DEADLINE)
        self.supervisor.stop()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(STOP_DEADLINE)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)

    # ------------------------------------------------------------ vLLM's steps

    def handle_preemptions(self, plan: StepPlan) -> None:
        """Before a step's forward: stores whose source blocks it overwrites must have ended."""
        self._copies.wait(plan.wait_for, self._config.copy_deadline)

    def submit_loads(self, plan: StepPlan) -> None:
        for load in plan.loads:
            self._copies.load(load)

    def submit_stores(self, plan: StepPlan) -> None:
        """After the step's forward."""
        for store in plan.stores:
            self._copies.store(store, plan.epoch)

    def take_finished(self) -> dict[str, LoadResult]:
        """Loads that have ended since the last call, by request; each is told exactly once."""
        return self._copies.take_loads()

    def take_failed_blocks(self) -> set[int]:
        """Blocks that ended loads did not fill."""
        return self._copies.take_failed_blocks()

    # ------------------------------------------------------------ the copy thread

    def _copy_load(self, load: Load) -> LoadResult:
        for i, chunk in enumerate(load.chunks):
            status = self._scatter(load, chunk)
            if status != PullResult.GOOD:
                return LoadResult(i, status)
        return LoadResult(len(load.chunks), bytes=len(load.chunks) * self._pages.slot.payload_bytes)

    def _scatter(self, load: Load, chunk: LoadChunk) -> int:
        if chunk.peer < 0:
            address = self.pool.slot_address(chunk.place)
            return self._copier.scatter(address, chunk.key, chunk.generation, chunk.blocks)
        peer = load.peers[chunk.peer][self._rank]
        try:
            with self._mapped.map(peer) as pool:
                address = pool.slot_address(chunk.place)
                return self._copier.scatter(address, chunk.key, chunk.generation, chunk.blocks)
        except (MapError, ValueError) as error:
            log.info("lmkv: %s cannot be mapped: %s", peer.instance, error)
            cause = getattr(error, "cause", "incompatible")
            return PullResult.CAUSES.index(cause)

    def _copy_store(self, store: Store, epoch: int) -> bool:
        address = self.pool.slot_address(store.place)
        generation = (epoch & 0xFFFFFFFF) << 32 | store.counter
        self._copier.gather(address, store.key, generation, store.blocks)
        self._gathers += 1
        every = self._config.audit_every
        if every and self._gathers % every == 0 and not self._copier.audit(address, store.blocks):
            self._send(
                Alarm(self._rank, "audit", f"chunk {store.key.hex()} gathered twice differs")
            )
            return False
        return True

    def _stored(self, store: Store, good: bool, seconds: float) -> None:
        counter = store.counter.to_bytes(4, "little")
        result = b"\x01" if good else b"\x00"
        self._send(Stored(self._rank, store.job, seconds), store.place, counter, result)

    # ------------------------------------------------------------ filler, supervisor

    def _fill(self) -> None:
        try:
            while (
                not self._stopping
                and self.pool.segments * self.pool.segment_slots < self.pool.slots
            ):
                self.pool.add_segment()
                self.supervisor.segment_added()
                self._changed()
        except RuntimeError as error:
            log.warning("lmkv: rank %d's pool stays at %d segments: %s", self._rank,
                        self.pool.segments, error)  # fmt: skip

    def _mover_changed(self, state: MoverState | None) -> None:
        with self._lock:
            known, self._mover = self._mover, state
        if state is not None and state.error and (known is None or known.error != state.error):
            log.warning("lmkv: rank %d: %s", self._rank, state.error)
        self._changed()

    # ------------------------------------------------------------ the control thread

    def _changed(self) -> None:
        with self._lock:
            self._data_version += 1
        self._send(self._state())

    def _state(self) -> WorkerState:
        with self._lock:
            mover, epoch, version = self._mover, self._epoch, self._data_version
        info = msgspec.structs.replace(
            self._info,
            usable_segments=mover.segments if mover else 0,
            share_socket=mover.share_socket if mover else "",
            nixl_metadata=mover.nixl_metadata if mover else b"",
        )
        return WorkerState(
            self._rank,
            epoch,
            version,
            info,
            f"ipc://{self.supervisor.control_socket}" if mover else "",
            self.supervisor.generation,
            local_segments=self.pool.segments,
        )

    def _send(self, message: Message, *arrays: bytes) -> None:
        self._out.put(wire.encode(message, *arrays))
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"1")

    def _control(self) -> None:
        router: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
        router.setsockopt(zmq.LINGER, 0)
        router.bind(f"ipc://{self._path}")
        os.chmod(self._path, 0o600)
        poller = zmq.Poller()
        poller.register(router, zmq.POLLIN)
        poller.register(self._wake_read, zmq.POLLIN)
        agent: bytes | None = None
        while not self._stopping:
            ready = dict(poller.poll(1000))
            if self._wake_read in ready:
                os.read(self._wake_read, 4096)
            if router in ready:
                sender, *frames = router.recv_multipart()
                if self._attached(frames):
                    agent = sender
                    router.send_multipart([agent, *wire.encode(self._state())])
            while agent is not None and not self._out.empty():
                router.send_multipart([agent, *self._out.get()])
        router.close()

    def _attached(self, frames: list[bytes]) -> bool:
        """Whether this is an agent's Attach, which is carried out."""
        try:
            message, _ = wire.decode(frames)
        except wire.WireError as error:
            log.info("lmkv: rank %d's control socket: %s", self._rank, error)
            return False
        if not isinstance(message, Attach):
            return False
        with self._lock:
            new = message.epoch != self._epoch
            self._instance, self._epoch = message.instance, message.epoch
        if new:
            self.supervisor.attach(message.instance, message.epoch, message.data_version)
        return True
