"""A worker without vLLM: its KV is numpy's, its agent a DEALER; pool, copies and mover are real.

The contract holds for a host's copies and for a GPU's, whose driver is a fake one.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import os
import pickle
import resource
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import zmq
from lmkv import _native
from lmkv.core import config, geometry, wire
from lmkv.core.messages import (
    Alarm,
    Attach,
    Check,
    Checked,
    Forget,
    Message,
    Ping,
    PullPeer,
    PullResult,
    Stored,
    StoredOk,
    WorkerState,
)
from lmkv.core.steps import SKIPPED, Load, LoadChunk, LoadResult, StepPlan, Store
from lmkv.worker.copiers import HostCopiers, Slot
from lmkv.worker.gpu_copiers import GpuCopiers
from lmkv.worker.worker import Worker

from tests.fakecuda.build import COMPILER
from tests.fakecuda.fake import FakeCuda
from tests.fakecuda.raw import Driver

LAYERS, HEADS, BLOCKS, PAGE = 2, 2, 8, 4096  # a chunk is two blocks
EPOCH = 0x1_0000_0007
DEADLINE = 60.0
FATBIN = b"\x50\xed\x55\xba" + bytes(60)


@dataclass
class Kv:
    """One rank's KV and what a worker wants to know of it."""

    array: np.ndarray  # layer, block, head, byte
    layout: str
    slot: _native.SlotLayout
    pages: _native.Pages
    layers: tuple[str, ...]
    blocks_per_chunk: int = 2
    kernel_blocks: int = 1

    def copier(self) -> _native.Copier:
        return _native.Copier(self.slot, self.pages, 2)

    def chunk(self, a: int, b: int) -> np.ndarray:
        return self.array[:, [a, b]].copy()


def kv(seed: int, first: int = 0, heads: int = HEADS) -> Kv:
    """Of a rank with these of the model's heads."""
    rng = np.random.default_rng(seed)
    array = rng.integers(0, 256, (LAYERS, BLOCKS, heads, PAGE), np.uint8)
    layers = [array[n].ctypes.data for n in range(LAYERS)]
    pages = _native.Pages(layers, BLOCKS, heads, 1, PAGE, heads * PAGE, PAGE)
    names = ["model.layers.0.attn", "model.layers.1.attn"]
    text = geometry.Layout(
        16, "bfloat16", "cpu:vec:8", 0, names, 128, HEADS, first, heads, pages.segment_bytes(2)
    ).text()
    return Kv(array, text, geometry.slot_layout(text), pages, tuple(names))


def place(slot: int) -> bytes:
    return struct.pack("<IBBH", 16 * slot, 16, 0, 0)


def key(n: int) -> bytes:
    return n.to_bytes(2, "little") * 8


def store(n: int, blocks: list[int]) -> Store:
    """Job n: chunk n into slot n, as counter n."""
    return Store(n, key(n), place(n), n, blocks)


def chunk(n: int, blocks: list[int], peer: int = -1) -> LoadChunk:
    return LoadChunk(key(n), place(n), (EPOCH & 0xFFFFFFFF) << 32 | n, blocks, peer)


class Rank:
    """A started worker, and the agent that speaks to it."""

    def __init__(
        self,
        name: str,
        run_dir: str,
        seed: int,
        rank: int = 0,
        heads: tuple[int, int] = (0, HEADS),
        gpu: Gpu | None = None,
        **settings: object,
    ) -> None:
        self.name = name
        self.kv = kv(seed, *heads)
        inline = {"run_dir": run_dir, "pool_gib": 0.25, **settings}
        self.worker = Worker(
            config.load(config.InstanceConfig, inline),
            name,
            "engine",
            rank,
            1,
            [self.kv],  # type: ignore[list-item]
            copiers=gpu.copiers(self.kv) if gpu else None,
        )
        self.hello = pickle.loads(pickle.dumps(self.worker.handshake()))
        assert self.hello["layers"] == [list(self.kv.layers)]
        self.heard: list[tuple[Message, list[bytes]]] = []
        self.agent = zmq.Context.instance().socket(zmq.DEALER)
        self.agent.linger = 0
        self.agent.connect(self.hello["control"])
        self.worker.start()

    def send(self, message: Message) -> None:
        self.agent.send_multipart(wire.encode(message))

    def receive(self) -> tuple[Message, list[bytes]]:
        assert self.agent.poll(1000 * DEADLINE), "the worker says nothing"
        self.heard.append(wire.decode(self.agent.recv_multipart()))
        return self.heard[-1]

    def state(self, wanted: Callable[[WorkerState], object]) -> WorkerState:
        while True:
            message, _ = self.receive()
            if isinstance(message, WorkerState) and wanted(message):
                return message

    def ready(self) -> WorkerState:
        """Attached, with a mover that shares the whole pool."""
        self.send(Attach(self.name, EPOCH))
        return self.state(lambda s: s.info.share_socket and s.info.usable_segments)

    def stored(self) -> tuple[int, bytes]:
        while True:
            message, frames = self.receive()
            if isinstance(message, Stored):
                self.send(StoredOk(message.job))
                assert [len(f) for f in frames] == [8, 4, 1]
                assert (frames[0], frames[1][0]) == (place(message.job), message.job)
                return message.job, frames[2]

    def save(self, n: int, blocks: list[int]) -> None:
        self.worker.submit_stores(StepPlan(EPOCH, [store(n, blocks)]))
        assert self.stored() == (n, b"\x01")

    def load(
        self, *chunks: LoadChunk, peers: list[PullPeer] | list[list[PullPeer]] | None = None
    ) -> LoadResult:
        """`peers` have one rank, or are lists of ranks."""
        mine = [peer if isinstance(peer, list) else [peer] for peer in peers or []]
        plan = StepPlan(EPOCH, loads=[Load("r", list(chunks), mine)])
        self.worker.handle_preemptions(plan)
        self.worker.submit_loads(plan)
        return self.finished()["r"]

    def finished(self) -> dict[str, LoadResult]:
        end = time.monotonic() + DEADLINE
        while not (found := self.worker.take_finished()):
            assert time.monotonic() < end, "the load does not end"
            time.sleep(0.001)
        return found

    def close(self) -> None:
        self.agent.close()
        self.worker.stop()


class Gpu:
    """A fake one, with a stream that plays the engine's."""

    def __init__(self, fake: FakeCuda, path: str) -> None:
        self.fake, self.path = fake, path
        self.driver = Driver(fake)
        self.driver.begin()
        self.stream = self.driver.stream()

    def copiers(self, kv: Kv) -> GpuCopiers:
        self.fake.adopt(kv.array)
        gpu = _native.Gpu(0, str(self.fake.path))
        gpu.load(FATBIN)
        made = GpuCopiers(gpu, [kv], lambda: self.stream, 8, 1 << 20)  # type: ignore[list-item]
        made.stage_stores = made.stage_loads = self.path == "staged"
        return made

    def close(self) -> None:
        gc.collect()  # copiers and marks that a worker's threads have kept
        self.driver.good(self.driver.stream_destroy(self.stream))
        self.driver.good(self.driver.primary_release(0))


@pytest.fixture(params=["host", "direct", "staged"])
def gpu(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[Gpu | None]:
    if request.param == "host":
        yield None
        return
    if COMPILER is None:
        pytest.skip("no C++ compiler for the fake driver")
    with FakeCuda() as fake:
        gpu = Gpu(fake, request.param)
        yield gpu
        caplog.get_records("call").clear()  # errors that were logged hold on to their frames
        gpu.close()


@pytest.fixture
def start(run_dir: str, gpu: Gpu | None) -> Iterator[Callable[..., Rank]]:
    yield from starter(run_dir, gpu)


@pytest.fixture
def start_host(run_dir: str) -> Iterator[Callable[..., Rank]]:
    yield from starter(run_dir, None)


def starter(run_dir: str, gpu: Gpu | None) -> Iterator[Callable[..., Rank]]:
    with contextlib.ExitStack() as stack:

        def make(name: str = "a", seed: int = 1, **settings: object) -> Rank:
            rank = Rank(name, run_dir, seed, gpu=gpu, **settings)  # type: ignore[arg-type]
            stack.callback(rank.close)
            return rank

        yield make


def test_handshake_says_how_much_there_will_be_and_attach_how_much_there_is(start_host) -> None:
    rank = start_host()
    info, slot = rank.hello["info"], rank.kv.slot
    assert rank.hello["slots"] == (1 << 28) // slot.slot_bytes
    assert rank.hello["payload_bytes"] == [slot.payload_bytes]
    assert rank.hello["layouts"] == [rank.kv.layout]
    assert (info.usable_segments, info.share_socket) == (0, "")
    state = rank.ready()
    assert (state.epoch, state.rank, state.local_segments) == (EPOCH, 0, 1)
    assert state.info.usable_segments == 1
    assert state.info.granules == 16 * rank.hello["slots"]
    assert state.mover_socket == f"ipc://{rank.worker.supervisor.control_socket}"
    versions = [m.data_version for m, _ in rank.heard if isinstance(m, WorkerState)]
    assert versions == sorted(set(versions))


def test_a_new_epoch_is_answered_with_the_state(start_host) -> None:
    rank = start_host()
    before = rank.ready()
    rank.send(Attach("a", EPOCH + 1))
    after = rank.state(lambda s: s.epoch == EPOCH + 1)
    assert after.data_version >= before.data_version


def test_frames_that_mean_nothing_are_passed_over(start_host) -> None:
    rank = start_host()
    rank.agent.send_multipart([b"\xff\xff"])
    rank.agent.send_multipart([b""])
    rank.send(Ping(1))
    rank.send(Forget("nobody", 1))
    assert rank.ready().local_segments == 1


def test_what_was_stored_is_loaded_back_byte_by_byte(start) -> None:
    rank = start()
    rank.ready()
    first, second = rank.kv.chunk(0, 1), rank.kv.chunk(2, 3)
    rank.save(1, [0, 1])
    rank.save(2, [2, 3])
    rank.kv.array[:] = 0
    result = rank.load(chunk(1, [7, 6]), chunk(2, [SKIPPED, 4]))
    assert (result.good, result.result) == (2, PullResult.GOOD)
    assert result.bytes == 2 * rank.kv.slot.payload_bytes
    assert np.array_equal(rank.kv.chunk(7, 6), first)
    assert np.array_equal(rank.kv.array[:, 4], second[:, 1])
    assert not rank.kv.array[:, [0, 1, 2, 3, 5]].any()
    assert rank.worker.take_failed_blocks() == set()
    stats = rank.worker.take_stats()
    assert stats["gather_bytes"] == stats["load_bytes"] == 2 * rank.kv.slot.payload_bytes
    assert stats["gather_seconds"] > 0
    assert stats["load_seconds"] > 0
    assert not any(rank.worker.take_stats().values())


def peer_of(rank: Rank, state: WorkerState) -> PullPeer:
    return PullPeer(rank.name, EPOCH, state.data_version, state.info)


def test_a_neighbours_pool_is_loaded_from_where_it_lies(start) -> None:
    here, there = start("a", 1), start("b", 2)
    here.ready()
    peer = peer_of(there, there.ready())
    there.save(1, [3, 5])
    result = here.load(chunk(1, [0, 1], peer=0), peers=[peer])
    assert (result.good, result.result) == (1, PullResult.GOOD)
    assert np.array_equal(here.kv.chunk(0, 1), there.kv.chunk(3, 5))
    assert len(here.worker._mapped) == 1
    here.send(Forget("b", EPOCH))
    here.send(Attach("a", EPOCH + 1))
    here.state(lambda s: s.epoch == EPOCH + 1)  # so it has read the Forget before it
    assert len(here.worker._mapped) == 0


def two_ranks(start, name: str) -> tuple[list[Rank], list[PullPeer]]:
    ranks = [start(name, 2 + n, rank=n, heads=(n, 1)) for n in range(2)]
    return ranks, [peer_of(rank, rank.ready()) for rank in ranks]


def test_a_neighbour_of_two_ranks_gives_a_head_each(start) -> None:
    here = start("a", 1)
    here.ready()
    (first, second), peers = two_ranks(start, "b")
    for rank in (first, second):
        rank.save(1, [3, 5])
    before = here.kv.array.copy()
    result = here.load(chunk(1, [SKIPPED, 1], peer=0), peers=[peers])
    assert (result.good, result.result) == (1, PullResult.GOOD)
    before[:, 1, 0], before[:, 1, 1] = first.kv.array[:, 5, 0], second.kv.array[:, 5, 0]
    assert np.array_equal(here.kv.array, before)
    assert result.bytes == here.kv.slot.payload_bytes


def test_each_of_two_ranks_takes_its_head_of_a_neighbour_s(start) -> None:
    there = start("b", 1)
    peer = peer_of(there, there.ready())
    there.save(1, [3, 5])
    for n, rank in enumerate(two_ranks(start, "a")[0]):
        result = rank.load(chunk(1, [6, 7], peer=0), peers=[peer])
        assert (result.good, result.result) == (1, PullResult.GOOD)
        assert np.array_equal(rank.kv.chunk(6, 7)[:, :, 0], there.kv.chunk(3, 5)[:, :, n])


def test_a_chunk_that_one_of_two_ranks_lacks_is_not_loaded(start) -> None:
    here = start("a", 1)
    here.ready()
    (first, second), peers = two_ranks(start, "b")
    for rank in (first, second):
        rank.save(1, [3, 5])
    first.save(2, [0, 1])
    second.save(3, [0, 1])
    for n in (2, 3):
        result = here.load(chunk(1, [0, 1], 0), chunk(n, [2, 3], 0), peers=[peers])
        assert (result.good, result.result) == (1, PullResult.GONE), n
        assert here.worker.take_failed_blocks() == {2, 3}
    result = here.load(chunk(1, [0, 1], 0), peers=[peers[:1]])
    assert (result.good, result.result) == (0, PullResult.INCOMPATIBLE)
    peers[0].info.heads = [(0, 1 << 31)]  # a lie
    assert here.load(chunk(1, [0, 1], 0), peers=[peers]).result == PullResult.INCOMPATIBLE


def test_a_flipped_bit_at_a_neighbour_fails_the_rest_of_the_load(start) -> None:
    here, there = start("a", 1), start("b", 2)
    here.ready()
    peer = peer_of(there, there.ready())
    for n in (1, 2, 3):
        there.save(n, [n, n + 1])
    address = there.worker.pool.slot_address(place(2)) + there.kv.slot.payload_offset
    ctypes.c_uint8.from_address(address + 5000).value ^= 4
    chunks = [chunk(1, [0, 1], 0), chunk(2, [2, SKIPPED], 0), chunk(3, [4, 5], 0)]
    result = here.load(*chunks, peers=[peer])
    assert (result.good, result.result) == (1, PullResult.DIGEST)
    assert here.worker.take_failed_blocks() == {2, 4, 5}
    assert here.worker.take_failed_blocks() == set()
    assert here.worker.take_finished() == {}


def test_a_dead_neighbour_and_its_next_life(start) -> None:
    here, there = start("a", 1), start("b", 2)
    here.ready()
    peer = peer_of(there, there.ready())
    there.save(1, [0, 1])
    earlier = PullPeer("b", EPOCH - 1, 0, peer.info)
    result = here.load(chunk(1, [0, 1], 0), peers=[earlier])
    assert (result.good, result.result) == (0, PullResult.PEER_DEAD)
    assert here.worker.take_failed_blocks() == {0, 1}
    assert here.load(chunk(1, [0, 1], 0), peers=[peer]).result == PullResult.GOOD
    here.load(chunk(1, [0, 1], 0), peers=[earlier])
    assert len(here.worker._mapped) == 0  # the map of the other life went


def test_a_place_beyond_the_pool_is_gone_and_a_bad_block_is_no_crash(start) -> None:
    rank = start()
    rank.ready()
    rank.save(1, [0, 1])
    beyond = LoadChunk(key(1), place(rank.hello["slots"]), 1, [0, 1])
    assert rank.load(beyond).result == PullResult.GONE
    # The pool's last granule: a reader that trusted it would read past the end of the mapping.
    at = 16 * rank.hello["slots"] - 1
    there = struct.pack("<IBBH", at, 1, 0, 0)
    last = LoadChunk(key(1), there, chunk(1, []).generation, [0, 1])
    whole = rank.worker.pool.slot_address(last.place)
    size = min(4096, rank.kv.slot.payload_offset)
    ctypes.memmove(whole, rank.worker.pool.slot_address(place(1)), size)
    assert rank.load(last).result == PullResult.GONE
    result = rank.load(chunk(1, [0, 1]), chunk(1, [0, BLOCKS]))
    in_one_launch = rank.worker._copiers.at_once > 1
    assert (result.good, result.result) == (0 if in_one_launch else 1, PullResult.MOVER_DOWN)
    rank.worker.submit_stores(StepPlan(EPOCH, [store(2, [0, BLOCKS])]))
    assert rank.stored() == (2, b"\x00")
    assert rank.load(chunk(1, [0, 1])).result == PullResult.GOOD  # the thread lives


class Gate:
    """Copiers whose gathers wait at a gate, and whose second look may differ."""

    def __init__(self, copiers: HostCopiers, same: bool = True) -> None:
        self.mark, self.forget = copiers.mark, copiers.forget
        self.clear, self.check = copiers.clear, copiers.check
        self.fence, self.hold = copiers.fence, copiers.hold
        self._copiers, self._same = copiers, same
        self.entered, self.open = threading.Event(), threading.Event()

    def gather(self, *arguments: object) -> None:
        self.entered.set()
        assert self.open.wait(DEADLINE)
        self._copiers.gather(*arguments)  # type: ignore[arg-type]

    def audit(self, *arguments: object) -> bool:
        return self._same


def test_a_step_waits_for_a_gather_that_reads_its_blocks(start_host) -> None:
    rank = start_host(copy_deadline=0.05)
    rank.ready()
    gate = rank.worker._copiers = Gate(rank.worker._copiers)
    rank.worker.submit_stores(StepPlan(EPOCH, [store(n, [n, n + 1]) for n in (1, 2, 3)]))
    assert gate.entered.wait(DEADLINE)
    done = threading.Event()

    def step() -> None:
        rank.worker.handle_preemptions(StepPlan(EPOCH, wait_for=[1, 2]))
        done.set()

    waiting = threading.Thread(target=step)
    waiting.start()
    assert not done.wait(0.2)  # past the deadline: the gather in progress is waited for
    gate.open.set()
    waiting.join(DEADLINE)
    assert done.is_set()
    # 2 had not begun when the deadline passed, and is given up; 3 was not waited for.
    assert sorted(rank.stored() for _ in range(3)) == [(1, b"\x01"), (2, b"\x00"), (3, b"\x01")]


def test_an_audit_that_finds_a_difference_is_an_alarm(start_host) -> None:
    rank = start_host(audit_every=2)
    rank.ready()
    gate = rank.worker._copiers = Gate(rank.worker._copiers, same=False)
    gate.open.set()
    rank.save(1, [0, 1])
    rank.worker.submit_stores(StepPlan(EPOCH, [store(2, [2, 3])]))
    assert rank.stored() == (2, b"\x00")
    (alarm,) = [m for m, _ in rank.heard if isinstance(m, Alarm)]
    assert alarm.kind == "audit"
    assert key(2).hex() in alarm.text
    assert rank.load(chunk(2, [0, 1])).result == PullResult.GONE


class Fault:
    """Copiers after whose gathers something goes wrong; their audits are real ones."""

    def __init__(self, copiers: HostCopiers, fault: Callable[[int], None]) -> None:
        self.mark, self.forget = copiers.mark, copiers.forget
        self.clear, self.check = copiers.clear, copiers.check
        self.fence, self.hold = copiers.fence, copiers.hold
        self._copiers, self._fault = copiers, fault
        self.audits = 0

    def gather(
        self, group: int, slots: Sequence[Slot], after: object = None, fence: object = None
    ) -> None:
        self._copiers.gather(group, slots, after)
        self._fault(slots[0].address)

    def audit(self, *arguments: object) -> bool:
        self.audits += 1
        return self._copiers.audit(*arguments)  # type: ignore[arg-type]


def test_the_audit_runs_once_in_so_many_stores_and_finds_nothing_where_nothing_is(
    start_host,
) -> None:
    rank = start_host(audit_every=3)
    rank.ready()
    fault = rank.worker._copiers = Fault(rank.worker._copiers, lambda address: None)
    for n in range(1, 8):
        rank.save(n, [n % BLOCKS, (n + 1) % BLOCKS])
    assert fault.audits == 2
    assert not [m for m, _ in rank.heard if isinstance(m, Alarm)]


@pytest.mark.parametrize("where", ["block", "table", "payload"])
def test_a_fault_between_two_gathers_is_an_alarm_and_no_slot(start_host, where: str) -> None:
    """A block that is overwritten while it is gathered, or a bit of the pool that turns over."""
    rank = start_host(audit_every=1)
    rank.ready()
    offset = {"table": 64 + 9, "payload": rank.kv.slot.payload_offset + 9000}

    def fault(address: int) -> None:
        if where == "block":
            rank.kv.array[1, 3, 1, 77] ^= 1
        else:
            ctypes.c_uint8.from_address(address + offset[where]).value ^= 1

    rank.worker._copiers = Fault(rank.worker._copiers, fault)
    rank.worker.submit_stores(StepPlan(EPOCH, [store(2, [2, 3])]))
    assert rank.stored() == (2, b"\x00")
    (alarm,) = [m for m, _ in rank.heard if isinstance(m, Alarm)]
    assert (alarm.rank, alarm.kind) == (0, "audit")
    assert key(2).hex() in alarm.text
    assert rank.worker.take_stats()["gathers_failed"] == 1
    assert rank.load(chunk(2, [0, 1])).result == PullResult.GONE  # nor is it there for a peer


def test_a_killed_mover_is_told_and_the_next_one_too(start_host) -> None:
    rank = start_host()
    before = rank.ready()
    rank.save(1, [0, 1])
    os.kill(rank.worker.supervisor.pid, 9)
    without = rank.state(lambda s: not s.mover_socket)
    assert (without.info.share_socket, without.info.nixl_metadata) == ("", b"")
    assert without.local_segments == 1
    after = rank.state(lambda s: s.info.usable_segments)
    assert after.mover_generation > before.mover_generation
    assert after.mover_socket not in ("", before.mover_socket)
    assert rank.load(chunk(1, [2, 3])).result == PullResult.GOOD


def test_stop_leaves_no_socket_and_no_process(start_host, run_dir: str) -> None:
    others = {*threading.enumerate()}
    rank = start_host()
    rank.ready()
    pid = rank.worker.supervisor.pid
    rank.worker.stop()
    rank.worker.stop()
    assert not os.listdir(run_dir)
    assert rank.worker.pool.segments == 0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    names = {t.name for t in {*threading.enumerate()} - others}
    assert not names & {"lmkv-copies", "lmkv-control", "lmkv-filler", "lmkv-supervisor"}
    rank.worker.submit_loads(StepPlan(EPOCH, loads=[Load("late", [chunk(1, [0, 1])])]))
    assert rank.worker.take_finished()["late"].result == PullResult.MOVER_DOWN


def test_stop_leaves_no_descriptor(run_dir: str) -> None:
    def lives(count: int) -> int:
        for _ in range(count):
            with contextlib.closing(Rank("a", run_dir, 1)) as rank:
                rank.ready()
            del rank
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    once = lives(1)
    assert lives(2) <= once


def test_what_the_host_lacks_is_one_line(
    run_dir: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (65536, 65536))
    caplog.set_level(logging.INFO, "lmkv.worker")
    Rank("a", run_dir, 1).close()
    (line,) = [text for text in caplog.messages if "RLIMIT_MEMLOCK" in text]
    assert line.startswith("lmkv: rank 0's pool of 0.25 GiB: ")


def test_what_a_dead_peer_left_in_run_dir_is_cleared_away(
    start_host: Callable[..., Rank], run_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rank = start_host()
    rank.ready()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(f"{run_dir}/89abcdef-0.worker")
    mine = set(os.listdir(run_dir)) - {"89abcdef-0.worker"}
    rank.worker._look_after_peers()
    assert "89abcdef-0.worker" in os.listdir(run_dir), "nobody has died"
    monkeypatch.setattr(rank.worker._mapped, "drop_dead", lambda: 1)
    rank.worker._look_after_peers()
    assert set(os.listdir(run_dir)) == mine


# ---------------------------------------------------------------- slots digested again


def checked(rank: Rank, *numbers: int, job: int = 1) -> list[int]:
    """PullResult's of the slots that these chunks were stored in."""
    counters = b"".join(n.to_bytes(4, "little") for n in numbers)
    arrays = b"".join(map(key, numbers)), b"".join(map(place, numbers)), counters
    rank.agent.send_multipart(wire.encode(Check(job, EPOCH), *arrays))
    while True:
        message, frames = rank.receive()
        if isinstance(message, Checked):
            assert (message.rank, message.job) == (0, job)
            return list(frames[0])


def test_slots_are_digested_again(start_host) -> None:
    rank = start_host()
    rank.ready()
    for n in (1, 2, 3):
        rank.save(n, [0, 1])
    assert checked(rank, 1, 2, 3) == [PullResult.GOOD] * 3
    address = rank.worker.pool.slot_address(place(2)) + rank.kv.slot.payload_offset + 100
    ctypes.memset(address, ctypes.string_at(address, 1)[0] ^ 1, 1)
    assert checked(rank, 1, 2, 3, job=2) == [PullResult.GOOD, PullResult.DIGEST, PullResult.GOOD]
    _native.clear_slot(rank.worker.pool.slot_address(place(3)))
    assert checked(rank, 3, 60_000, job=3) == [PullResult.GONE] * 2


def test_a_check_that_is_torn_is_refused(start_host) -> None:
    rank = start_host()
    rank.ready()
    rank.save(1, [0, 1])
    rank.agent.send_multipart(wire.encode(Check(1, EPOCH), key(1), place(1)))
    while not any(isinstance(message, Alarm) for message, _ in rank.heard):
        rank.receive()
    assert "check: 2 frames behind" in rank.heard[-1][0].text
    assert checked(rank, 1) == [PullResult.GOOD]
