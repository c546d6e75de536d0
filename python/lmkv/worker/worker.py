"""The worker's side of an instance, in each of vLLM's worker processes: pool, copies, mover.

start() -> the agent attaches -> plans are carried out, step by step -> stop(). The pool's segments
are made in the background and become usable one by one; vLLM's thread only queues copies, and waits
only where it is about to overwrite a block that is still being read. Threads: filler (segments,
and later the maps of dead peers), control (the agent's socket), copies, the checker's once it is
asked, and the supervisor's.
"""

from __future__ import annotations

import logging
import resource
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar

import msgspec

from lmkv import _native
from lmkv.core import geometry, identity, pool_size, ucx, zstd
from lmkv.core.config import InstanceConfig
from lmkv.core.geometry import DEVICE, GRANULES_A_SLOT
from lmkv.core.messages import (
    Alarm,
    Attach,
    Checked,
    GpuSegment,
    MoverState,
    RankInfo,
    Stored,
    WorkerState,
)
from lmkv.core.rank_sockets import place
from lmkv.core.steps import Load, LoadResult, StepPlan, Store
from lmkv.worker import gpu_room
from lmkv.worker.checker import Checker
from lmkv.worker.control import Control
from lmkv.worker.copiers import Copiers, HostCopiers, Slot
from lmkv.worker.copies import Copies, Once
from lmkv.worker.loader import Loader
from lmkv.worker.mapped import MappedPeers
from lmkv.worker.page_layout import PageLayout
from lmkv.worker.supervise import MoverSettings, Supervisor, remove_stale_sockets

log = logging.getLogger("lmkv.worker")

STOP_DEADLINE = 2.0
LOOK_EVERY = 5.0  # seconds between looks for peers that have died

P = ParamSpec("P")
R = TypeVar("R")
StepCall = Callable[Concatenate["Worker", P], R]


def _isolated(otherwise: Callable[[], R]) -> Callable[[StepCall[P, R]], StepCall[P, R]]:
    """A step's call: whatever fails in it costs vLLM nothing, and answers `otherwise()`."""

    def wrap(call: StepCall[P, R]) -> StepCall[P, R]:
        def isolated(self: Worker, /, *args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return call(self, *args, **kwargs)
            except Exception as error:
                self._once.exception(getattr(call, "__name__", "a step"), error)
                return otherwise()

        isolated.__doc__ = call.__doc__
        return isolated

    return wrap


class Worker:
    """`instance` and `engine_id` name the sockets; `stage` is the rank's, of the pipeline. Raises
    DoesNotFit, ValueError, OSError, RuntimeError or zmq.ZMQError with a sentence; nothing is left
    behind then."""

    def __init__(
        self,
        config: InstanceConfig,
        instance: str,
        engine_id: str,
        rank: int,
        ranks_on_host: int,
        pages: Sequence[PageLayout],  # by cache group
        stage: int = 0,
        copiers: Copiers | None = None,  # a host's
        room: _native.GpuMemory | None = None,  # the pool's, in a GPU's memory
    ) -> None:
        self._config = config
        self._rank = rank
        self._pages = list(pages)
        where = place(config)
        folder = identity.run_dir(config.run_dir or None)
        slot = max((group.slot for group in pages), key=lambda slot: slot.granule_bytes)
        self._room = room
        self._copiers = copiers or HostCopiers(pages)
        gpu = self._copiers.gpu
        shared: GpuSegment | None = None  # what is told of it
        self.pool: _native.Pool | _native.GpuPool
        if room is None:
            self.pool = self._host_pool(ranks_on_host, slot)
        else:
            self.pool = gpu_room.cut(room, slot.slot_bytes, slot.granule_bytes)
            assert gpu is not None
            probe = gpu_room.write_probe(room, self.pool.slots * self.pool.slot_bytes)
            shared = GpuSegment(room.handle(), room.size, probe, gpu.bus_id)
            log.info("lmkv: %s", gpu_room.SCOPE)
        try:
            zstd.load()
        except zstd.ZstdError as error:
            log.warning("lmkv: rank %d: %s", rank, error)
        self._before: Any = None  # a mark: what the step's loads come after
        self._mapped = MappedPeers(
            slot.granule_bytes,
            config.connect_deadline,
            closing=self._copiers.forget,
            open_gpu=self._copiers.open,
        )
        self._info = RankInfo(
            rank,
            identity.host_identity(folder),
            pool_address=self.pool.address,
            granule_bytes=slot.granule_bytes,
            granules=self.pool.slots * GRANULES_A_SLOT,
            segment_granules=self.pool.segment_slots * GRANULES_A_SLOT,
            stage=stage,
            tier=self.pool.tier,
            heads=[geometry.rank_heads(group.layout) for group in pages],
        )
        name = identity.socket_name(instance, engine_id, rank, "worker")
        settings = MoverSettings(
            str(folder),
            tuple(group.layout for group in pages),
            config.data_interface,
            config.data_ports,
            ucx.TLS[config.nixl_tls],
            limbo_seconds=config.limbo_seconds,
            limbo_share=config.limbo_share,
            control=where,
            gpu=gpu.ordinal if gpu is not None and shared else None,
            gpu_pulls=config.gpu_pulls,
        )
        tag = name.partition("-")[0]
        self._run_dir = str(folder)
        image = gpu.image if gpu is not None and shared else b""
        self.supervisor = Supervisor(
            self.pool, rank, tag, settings, self._mover_changed, gpu=shared, image=image
        )
        self._once = Once()
        self._loader = Loader(
            self.pool, self._mapped, self._pages, self._info, self._copiers, self._once
        )
        self._copies = Copies(
            self._copy_load,
            self._copy_stores,
            self._stored,
            config.load_deadline,
            self._copiers.at_once,
            self._copiers.apart,
            fence=self._fence,
        )
        self._checker = Checker(self.pool, len(pages), self._copiers.check, self._checked)
        self._lock = threading.Lock()  # of the state below
        self._attached = Attach(instance, 0)
        self._data_version = 0
        self._mover: MoverState | None = None
        self._error = ""
        self._stats = _no_stats()
        self._gathers = 0
        self._stopping = threading.Event()
        self._filler = threading.Thread(target=self._keep_up, name="lmkv-filler", daemon=True)
        self._control = Control(
            str(folder / name),
            self._state,
            self._on_attach,
            self._mapped.forget,
            self.supervisor.replace,
            self._checker.ask,
            where=where,
        )

    def _host_pool(self, ranks_on_host: int, slot: _native.SlotLayout) -> _native.Pool:
        slots = pool_size.pool_slots(self._config.pool_gib, ranks_on_host, slot.slot_bytes)
        self._say_what_is_lacking(slots * slot.slot_bytes)
        segment_slots = pool_size.segment_slots(slots, slot.slot_bytes)
        return _native.Pool(slot.granule_bytes, slots, segment_slots)

    def _say_what_is_lacking(self, pool_bytes: int) -> None:
        memlock = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
        lacking = pool_size.lacks(pool_bytes, memlock)
        if lacking:
            gib, sentence = pool_bytes / pool_size.GIB, "; ".join(lacking)
            log.info("lmkv: rank %d's pool of %.2f GiB: %s", self._rank, gib, sentence)

    def handshake(self) -> dict[str, Any]:
        """What the agent must know of this rank before anything else, as plain data."""
        return {
            "rank": self._rank,
            "info": self._info,
            "control": self._control.address,
            "layouts": [group.layout for group in self._pages],
            "layers": [list(group.layers) for group in self._pages],
            "slots": self.pool.slots,
            "payload_bytes": [group.slot.payload_bytes for group in self._pages],
        }

    def start(self) -> None:
        self._copies.start()
        self.supervisor.start()
        self._control.start()
        self._filler.start()

    def stop(self) -> None:
        """Ends threads and mover, within 3 s unless a copy hangs; harmless when repeated."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        ended = self._copies.stop(STOP_DEADLINE)
        ended &= self._checker.stop(STOP_DEADLINE)
        self.supervisor.stop()
        ended &= self._control.stop(STOP_DEADLINE)
        if self._filler.ident is not None:
            self._filler.join(STOP_DEADLINE)
        self._mapped.close()
        if ended and not self._filler.is_alive():  # else a copy would fault
            self._copiers.forget(self.pool)
            self.pool.close()

    # ------------------------------------------------------------ vLLM's steps

    @_isolated(lambda: None)
    def handle_preemptions(self, plan: StepPlan) -> None:
        """Before a step's forward: stores whose source blocks it overwrites must have read them, or
        on a GPU the forward is put behind that. Its loads come after the steps before it, which may
        still use their blocks, not after it."""
        if plan.loads:
            self._before = self._copiers.mark()
        self._copies.wait(plan.wait_for, self._config.copy_deadline, self._copiers.hold)

    @_isolated(lambda: None)
    def submit_loads(self, plan: StepPlan) -> None:
        for load in plan.loads:
            self._copies.load(load, self._before)

    @_isolated(lambda: None)
    def submit_stores(self, plan: StepPlan) -> None:
        """After the step's forward."""
        after = self._copiers.mark() if plan.stores else None
        for store in plan.stores:
            self._copies.store(store, plan.epoch, after)

    @_isolated(dict[str, LoadResult])
    def take_finished(self) -> dict[str, LoadResult]:
        """Loads that have ended since the last call, by request; each is told exactly once."""
        return self._copies.take_loads()

    @_isolated(set[int])
    def take_failed_blocks(self) -> set[int]:
        """Blocks that the loads told by `take_finished` did not fill; ask after it."""
        return self._copies.take_failed_blocks()

    @_isolated(dict[str, float])
    def take_stats(self) -> dict[str, float]:
        """Of the copies that ended well since the last call: `gather_seconds`, `gather_bytes`,
        `load_seconds`, `load_bytes`; and `gathers_failed`, `loads_failed`."""
        with self._lock:
            stats, self._stats = self._stats, _no_stats()
        return stats

    # ------------------------------------------------------------ the copy thread

    def _copy_load(self, load: Load, after: Any) -> LoadResult:
        began = time.monotonic()
        result = self._loader.load(load, after)
        with self._lock:
            self._stats["load_seconds"] += time.monotonic() - began
            self._stats["load_bytes"] += result.bytes
            self._stats["loads_failed"] += result.good < len(load.chunks)
        return result

    def _fence(self, stores: Sequence[tuple[Store, int]]) -> _native.GpuFence | None:
        """An audit reads the blocks once more."""
        every = self._config.audit_every
        if every and self._gathers % every + len(stores) >= every:
            return None
        return self._copiers.fence(len({store.group for store, _ in stores}))

    def _copy_stores(
        self, stores: Sequence[tuple[Store, int]], after: Any, fence: Any = None
    ) -> list[bool]:
        """Of which the slots are good; one launch for those of a cache group."""
        slots = [self._slot(store, epoch) for store, epoch in stores]
        groups = {store.group for store, _ in stores}
        for group in groups:
            mine = [slot for slot, (store, _) in zip(slots, stores) if store.group == group]
            self._copiers.gather(group, mine, after, fence)
        return [self._audited(store, slot) for slot, (store, _) in zip(slots, stores)]

    def _slot(self, store: Store, epoch: int) -> Slot:
        generation = (epoch & 0xFFFFFFFF) << 32 | store.counter
        address = self.pool.slot_address(store.place)
        if not isinstance(self.pool, _native.GpuPool):
            self.pool.clear(store.place)
        return Slot(address, store.key, generation, store.blocks, self.pool.tier == DEVICE)

    def _audited(self, store: Store, slot: Slot) -> bool:
        """A store that has just been made; one in `audit_every` is looked at once more."""
        self._gathers += 1
        every = self._config.audit_every
        if not every or self._gathers % every or not (wrong := self._audit(store.group, slot)):
            return True
        self._copiers.clear(store.group, slot)
        self._control.send(Alarm(self._rank, "audit", f"chunk {store.key.hex()} {wrong}"))
        return False

    def _audit(self, group: int, slot: Slot) -> str:
        """What is wrong, "" if nothing is."""
        if not self._copiers.audit(group, slot):
            return "differs when it is gathered twice"
        good = self._copiers.check(group, slot) == _native.SlotStatus.GOOD
        return "" if good else "is not in the slot as it was gathered"

    def _stored(self, store: Store, good: bool, seconds: float) -> None:
        with self._lock:
            self._stats["gather_seconds"] += seconds
            size = self._pages[store.group].slot.payload_bytes
            self._stats["gather_bytes"] += size if good else 0
            self._stats["gathers_failed"] += not good
        counter = (store.counter & 0xFFFFFFFF).to_bytes(4, "little")
        result = b"\x01" if good else b"\x00"
        report = Stored(self._rank, store.job, seconds)
        self._control.report(store.job, report, store.place, counter, result)

    def _checked(self, job: int, results: bytes) -> None:
        self._control.send(Checked(self._rank, job), results)

    # ------------------------------------------------------------ filler, supervisor, control

    def _keep_up(self) -> None:
        self._fill()
        while not self._stopping.wait(LOOK_EVERY):
            self._look_after_peers()

    def _look_after_peers(self) -> None:
        try:
            if self._mapped.drop_dead():  # it may have left its sockets, too
                remove_stale_sockets(self._run_dir)
            self._mapped.visit(partial(self._copiers.know, readonly=True))
        except Exception as error:  # the thread must live on
            self._once.exception("looking after mapped peers", error)

    def _fill(self) -> None:
        pool = self.pool
        try:
            while not self._stopping.is_set() and isinstance(pool, _native.Pool):
                if pool.segments * pool.segment_slots >= pool.slots:
                    return
                pool.add_segment()
                self._copiers.know(pool, readonly=False)
                self.supervisor.segment_added()
                self._changed()
        except RuntimeError as error:
            text = f"rank {self._rank}'s pool stays at {pool.segments} segments: {error}"
            log.warning("lmkv: %s", text)
            self._changed(text)

    def _mover_changed(self, state: MoverState | None) -> None:
        with self._lock:
            known, self._mover = self._mover, state
        if state is not None and state.error and (known is None or known.error != state.error):
            log.warning("lmkv: rank %d: %s", self._rank, state.error)
        self._changed()

    def _changed(self, error: str = "") -> None:
        with self._lock:
            self._data_version += 1
            self._error = error or self._error
        self._control.wake()

    def _on_attach(self, message: Attach) -> None:
        with self._lock:
            known, self._attached = self._attached, message
        if message != known:
            self.supervisor.attach(message.instance, message.epoch, message.data_version)

    def _state(self) -> WorkerState:
        with self._lock:
            mover, epoch, version = self._mover, self._attached.epoch, self._data_version
            error = self._error
        info = msgspec.structs.replace(
            self._info,
            usable_segments=mover.segments if mover else 0,
            # A mover that is not told of this life yet would answer as nobody, or as the last one.
            share_socket=mover.share_socket if mover and mover.epoch == epoch else "",
            nixl_metadata=mover.nixl_metadata if mover else b"",
            stream_address=mover.stream_address if mover else "",
            rdma=mover.rdma if mover else False,
            pool_address=(mover.pool_address if mover else 0) or self._info.pool_address,
        )
        return WorkerState(
            self._rank,
            epoch,
            version,
            info,
            mover.control if mover else "",
            self.supervisor.generation,
            local_segments=self.pool.segments,
            error=error,
        )


def _no_stats() -> dict[str, float]:
    names = ("gather_seconds", "gather_bytes", "gathers_failed")
    return dict.fromkeys((*names, "load_seconds", "load_bytes", "loads_failed"), 0)
