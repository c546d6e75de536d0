"""The connector's worker side on a CUDA engine, whose tensors only say that they are on a GPU and
whose driver is a fake one: a life of stores and loads, steps that overlap, and what is refused."""

from __future__ import annotations

import ctypes
import gc
import pickle
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import zmq

vllm = pytest.importorskip("vllm", reason="vllm is not installed")

from lmkv.connector import LmkvConnector  # noqa: E402
from lmkv.connector_metadata import LmkvMetadata, LmkvWorkerMetadata  # noqa: E402
from lmkv.core import wire  # noqa: E402
from lmkv.core.messages import (  # noqa: E402
    Attach,
    PullPeer,
    PullResult,
    Stored,
    StoredOk,
    WorkerState,
)
from lmkv.core.steps import SKIPPED, Load, LoadChunk, LoadResult, StepPlan, Store  # noqa: E402
from lmkv.worker import gpu_paths, kernels  # noqa: E402
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole  # noqa: E402

from tests.cuda_engines import CudaEngine, OnCuda, torch  # noqa: E402
from tests.fakecuda.fake import FakeCuda, needs_compiler  # noqa: E402
from tests.fakecuda.raw import NUMBERS, Driver  # noqa: E402
from tests.vllm.test_connector import answers_like_an_empty_cache  # noqa: E402

pytestmark = needs_compiler
FATBIN = b"\x50\xed\x55\xba" + bytes(60)
EPOCH, DEADLINE = 0x1_0000_0007, 20.0
CHUNK = 64  # tokens


def place(n: int, tier: int = 0) -> bytes:
    return struct.pack("<IBBH", 16 * n, 16, tier, 0)


def key(n: int) -> bytes:
    return n.to_bytes(2, "little") * 8


def store(n: int, blocks: list[int], tier: int = 0) -> Store:
    """Job n: chunk n into slot n, as counter n."""
    return Store(n, key(n), place(n, tier), n, blocks)


def chunk(n: int, blocks: list[int], peer: int = -1, tier: int = 0) -> LoadChunk:
    return LoadChunk(key(n), place(n, tier), (EPOCH & 0xFFFFFFFF) << 32 | n, blocks, peer)


class Card:
    """A fake GPU, with the stream that vLLM's thread has as its current one."""

    def __init__(self, fake: FakeCuda, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fake, self.monkeypatch = fake, monkeypatch
        self.driver = Driver(fake)
        self.context = self.driver.begin()
        self.stream = self.driver.stream()
        (folder / kernels.FATBIN).write_bytes(FATBIN)
        (folder / kernels.SOURCE).write_text("")
        self.open_gpu = kernels.open_gpu
        self.has(folder=folder, library=str(fake.path))
        monkeypatch.setattr(
            torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=self.stream)
        )

    def has(self, **arguments: Any) -> None:
        """What open_gpu is told."""
        self.monkeypatch.setattr(kernels, "open_gpu", partial(self.open_gpu, **arguments))

    def as_vllm(self, work: Callable[[], object]) -> threading.Thread:
        """Another thread that plays vLLM's."""

        def run() -> None:
            self.driver.good(self.driver.set_current(self.context))
            work()

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def close(self) -> None:
        gc.collect()
        if self.fake.live():  # else the context was lost, and all was reset
            self.driver.good(self.driver.stream_destroy(self.stream))
            self.driver.good(self.driver.primary_release(0))


@pytest.fixture
def card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Iterator[Card]:
    with FakeCuda(device_name="Card") as fake:
        card = Card(fake, tmp_path, monkeypatch)
        yield card
        caplog.get_records("call").clear()  # errors that were logged hold on to their frames
        card.close()


class Engine:
    """A rank as vLLM's model runner drives it."""

    def __init__(
        self,
        card: Card,
        run_dir: str,
        name: str = "a",
        order: str = "LBNHC",
        block_tokens: int = 16,
        seed: int = 1,
        **settings: object,
    ) -> None:
        self.card, self.name, self.device = card, name, "cuda"
        self.kv = CudaEngine("FLASH_ATTN", order, layers=2, block_tokens=block_tokens, seed=seed)
        card.fake.adopt(self.kv.memory)
        inline = {"run_dir": run_dir, "pool_gib": 0.25, "chunk_tokens": CHUNK, "instance_id": name}
        inline |= {"audit_every": 1, "gpu_staging_mib": 1} | settings
        self.config = self.kv.vllm_config
        self.config.model_config.enable_sleep_mode = False
        self.config.kv_transfer_config = SimpleNamespace(
            kv_connector_extra_config=inline, kv_load_failure_policy="fail", engine_id=name
        )
        vars(self.config.parallel_config).update(
            rank=0, world_size=1, data_parallel_size_local=1, data_parallel_index=0
        )
        self.agent: zmq.Socket[bytes] | None = None
        self.finished: dict[str, LoadResult] = {}
        self.failed_blocks: set[int] = set()

    def connector(self, role: KVConnectorRole = KVConnectorRole.WORKER) -> LmkvConnector:
        platform = SimpleNamespace(device_type=self.device)
        with mock.patch.object(vllm.platforms, "current_platform", platform):
            return LmkvConnector(self.config, role, self.kv.config)

    def register(self) -> None:
        self.worker = self.connector()
        self.worker.register_kv_caches({n: OnCuda(t) for n, t in self.kv.caches.items()})

    def start(self) -> Engine:
        """Registered, and attached by an agent."""
        self.register()
        assert not self.worker._off
        shake = self.worker.get_handshake_metadata()
        self.agent = zmq.Context.instance().socket(zmq.DEALER)
        self.agent.linger = 0
        self.agent.connect(shake.rank["control"])
        self.send(Attach(self.name, EPOCH))
        while not (isinstance(state := self.hear(), WorkerState) and state.local_segments):
            pass
        return self

    def send(self, message: Any) -> None:
        assert self.agent
        self.agent.send_multipart(wire.encode(message))

    def hear(self) -> Any:
        assert self.agent and self.agent.poll(1000 * DEADLINE), "the worker says nothing"
        message, self.frames = wire.decode(self.agent.recv_multipart())
        return message

    def peer(self) -> PullPeer:
        """As another instance knows it, once its mover shares its pool."""
        self.send(Attach(self.name, EPOCH, 1))
        while True:
            state = self.hear()
            if not isinstance(state, WorkerState):
                continue
            if state.info.share_socket and state.info.usable_segments:
                return PullPeer(self.name, EPOCH, state.data_version, state.info)

    def stored(self) -> tuple[int, bool]:
        while not isinstance(message := self.hear(), Stored):
            pass
        self.send(StoredOk(message.job))
        return message.job, self.frames[2] == b"\x01"

    def step(self, plan: StepPlan | None = None, forward: Callable[[], None] | None = None) -> None:
        """As vLLM's model runner: its forward is put into the stream, and may run later."""
        metadata = pickle.loads(pickle.dumps(LmkvMetadata(plan or StepPlan(EPOCH))))
        self.worker.handle_preemptions(metadata)
        if forward is not None:
            self.card.driver.call(self.card.stream, forward)
        self.worker.bind_connector_metadata(metadata)
        self.worker.start_load_kv(None)
        self.worker.wait_for_save()
        results = self.worker.get_transfer_results(set())
        assert not results.failed_recving and not results.finished_sending
        self.failed_blocks |= self.worker.get_block_ids_with_load_errors()
        answer = self.worker.build_connector_worker_meta()
        told = answer.loads if isinstance(answer, LmkvWorkerMetadata) else {}
        assert set(told) == (results.finished_recving or set())
        self.finished |= {request: result for request, (_, result) in told.items()}
        self.worker.clear_connector_metadata()

    def until_loaded(self, request: str = "r") -> LoadResult:
        end = time.monotonic() + DEADLINE
        while request not in self.finished:
            assert time.monotonic() < end, "the load does not end"
            time.sleep(0.001)
            self.step()
        return self.finished.pop(request)

    def save(self, n: int, blocks: list[int]) -> None:
        self.step(stores(store(n, blocks)))
        assert self.stored() == (n, True)

    def load(self, *chunks: LoadChunk, peers: list[list[PullPeer]] | None = None) -> LoadResult:
        self.step(loads(*chunks, peers=peers))
        return self.until_loaded()

    def tokens(self, blocks: list[int]) -> np.ndarray:
        """[layer, plane, token, head, byte]"""
        return self.kv.now()[:, :, self.kv.slots_of(blocks)]

    def put(self, blocks: list[int], tokens: np.ndarray) -> None:
        slots = self.kv.slots_of(blocks)
        block, token = (axis[slots] for axis in self.kv.places())
        for values, tensor in zip(tokens, self.kv.caches.values()):
            for of_plane, plane in zip(values, self.kv.planes(tensor)):
                plane[block, token] = of_plane

    def some(self, seed: int, blocks: int) -> np.ndarray:
        """Other bytes for so many blocks."""
        like = self.tokens([*range(blocks)])
        return np.random.default_rng(seed).integers(0, 256, like.shape, np.uint8)

    def until_queued(self) -> None:
        """A copy thread has put its work into a stream, where it waits for the engine's."""
        fake, end = self.card.fake, time.monotonic() + DEADLINE
        while not any(fake.pending(s) for s in fake.streams() if s != self.card.stream):
            assert time.monotonic() < end, "no copy is under way"
            time.sleep(0.001)
        assert fake.settle()

    def launches(self, kind: str) -> int:
        found = self.card.fake.launches().items()
        return sum(count for name, count in found if name.startswith(f"lmkv_{kind}"))

    def close(self) -> None:
        if self.agent is not None:
            self.agent.close()
        self.worker.shutdown()


def stores(*each: Store) -> StepPlan:
    return StepPlan(EPOCH, list(each))


def loads(*chunks: LoadChunk, peers: list[list[PullPeer]] | None = None) -> StepPlan:
    return StepPlan(EPOCH, loads=[Load("r", list(chunks), peers or [])])


@pytest.fixture
def make(card: Card, run_dir: str) -> Iterator[Callable[..., Engine]]:
    engines: list[Engine] = []

    def make(name: str = "a", **more: Any) -> Engine:
        engines.append(Engine(card, run_dir, name, **{"gpu_path": "direct"} | more))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()
        del engine.worker


# ---------------------------------------------------------------- a connector's life


@pytest.mark.parametrize("path", ["direct", "staged", "auto"])
def test_what_was_stored_is_loaded_into_other_blocks(make: Any, path: str) -> None:
    engine = make(gpu_path=path).start()
    first, second = engine.tokens([0, 1, 2, 3]), engine.tokens([7, 5, 6, 4])
    engine.step(stores(store(1, [0, 1, 2, 3]), store(2, [7, 5, 6, 4])))
    assert sorted(engine.stored() for _ in range(2)) == [(1, True), (2, True)]
    before = engine.kv.now()
    result = engine.load(chunk(1, [20, 21, 22, 23]), chunk(2, [SKIPPED, 11, SKIPPED, 10]))
    assert (result.good, result.result) == (2, PullResult.GOOD)
    assert np.array_equal(engine.tokens([20, 21, 22, 23]), first)
    assert np.array_equal(
        engine.tokens([11, 10]),
        np.delete(second, np.s_[0:16], 2)[:, :, [*range(16), *range(32, 48)]],
    )
    others = [n for n in range(24) if n not in (20, 21, 22, 23, 11, 10)]
    slots = engine.kv.slots_of(others)
    assert np.array_equal(engine.tokens(others), before[:, :, slots])
    assert engine.failed_blocks == set()


def test_a_flipped_bit_is_a_load_that_failed(make: Any) -> None:
    engine = make().start()
    engine.save(1, [0, 1, 2, 3])
    pool = engine.worker._worker.pool
    at = pool.slot_address(place(1)) + engine.worker._worker._pages[0].slot.payload_offset
    ctypes.c_uint8.from_address(at + 99).value ^= 8
    result = engine.load(chunk(1, [20, 21, SKIPPED, 23]))
    assert (result.good, result.result) == (0, PullResult.DIGEST)
    assert engine.failed_blocks == {20, 21, 23}


@pytest.mark.parametrize("path", ["direct", "staged"])
def test_an_engine_of_another_order_and_block_size_loads_from_a_mapped_pool(
    make: Any, path: str
) -> None:
    here = make("a", order="LBHNC", block_tokens=64, seed=1, gpu_path=path).start()
    there = make("b", seed=2, gpu_path=path).start()
    there.save(1, [9, 3, 4, 5])
    expected = there.tokens([9, 3, 4, 5])
    peers = [[there.peer()]]
    for known in (False, True):
        result = here.load(chunk(1, [4], peer=0), peers=peers)
        assert (result.good, result.result) == (1, PullResult.GOOD)
        assert np.array_equal(here.tokens([4]), expected)
        here.put([4], 0 * expected)
        if not known:
            calls = here.card.fake.calls("host_register")
            here.worker._worker._look_after_peers()
            assert here.card.fake.calls("host_register") == calls + 1


def test_the_paths_are_measured_once_for_all_lives(
    make: Any, run_dir: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "lmkv.worker")
    for life in range(2):
        engine = make(gpu_path="auto", seed=5)
        before, launches = engine.kv.now(), engine.launches("")
        engine.start()
        assert np.array_equal(engine.kv.now(), before)
        assert (engine.launches("") > launches) == (life == 0)
        engine.close()
    assert (Path(run_dir) / gpu_paths.FILE).exists()
    assert len([line for line in caplog.messages if "lmkv: Card: stores " in line]) == 2


def test_settings_reach_the_card(make: Any) -> None:
    engine = make(gpu_multiprocessors=1, gpu_path="direct").start()
    engine.save(1, [0, 1, 2, 3])
    assert engine.card.fake.grids("lmkv_gather_16") == [2]  # of four segments


# ---------------------------------------------------------------- steps that overlap


def test_the_last_step_is_still_in_the_stream_when_the_next_one_is_planned(make: Any) -> None:
    """Step N computes chunk 1 in blocks 0 to 3, and the last token of a request that has ended in
    block 8. Step N+1 gives block 8 to a load of chunk 2, and blocks 0 to 3 to another request."""
    engine = make().start()
    fake = engine.card.fake
    chunk1, late, chunk2, other = (
        engine.some(n, count) for n, count in ((1, 4), (2, 1), (3, 4), (4, 4))
    )
    engine.put([12, 13, 14, 15], chunk2)
    engine.save(2, [12, 13, 14, 15])
    gathers, scatters = engine.launches("gather"), engine.launches("scatter")
    fake.hold(engine.card.stream)

    def forward_n() -> None:
        engine.put([0, 1, 2, 3], chunk1)
        engine.put([8], late)

    engine.step(stores(store(1, [0, 1, 2, 3])), forward_n)
    plan = loads(chunk(2, [8, 9, 10, 11]))
    plan.wait_for = [1]
    next_step = engine.card.as_vllm(
        lambda: engine.step(plan, lambda: engine.put([0, 1, 2, 3], other))
    )
    engine.until_queued()
    next_step.join(0.2)
    assert next_step.is_alive()  # in handle_preemptions
    assert (engine.launches("gather"), engine.launches("scatter")) == (gathers, scatters)
    fake.release(engine.card.stream)
    next_step.join(DEADLINE)
    assert not next_step.is_alive()
    assert engine.stored() == (1, True)
    assert engine.until_loaded().good == 1
    assert np.array_equal(engine.tokens([8, 9, 10, 11]), chunk2)
    assert fake.drain()
    assert np.array_equal(engine.tokens([0, 1, 2, 3]), other)
    assert engine.load(chunk(1, [20, 21, 22, 23])).good == 1
    assert np.array_equal(engine.tokens([20, 21, 22, 23]), chunk1)


@pytest.mark.parametrize("path", ["direct", "staged"])
def test_the_stream_waits_for_a_gather_and_no_thread_does(make: Any, path: str) -> None:
    """Step N+1 overwrites blocks that step N's gather, which is slow, has yet to read. All but the
    engine's stream is held: without a wait in that, the gather would find the other bytes."""
    engine = make(audit_every=0, gpu_path=path).start()
    fake, own = engine.card.fake, engine.card.stream
    chunk1, other = engine.some(1, 4), engine.some(2, 4)
    engine.put([0, 1, 2, 3], chunk1)
    lanes = [stream for stream in fake.streams() if stream != own]
    for stream in lanes:
        fake.hold(stream)
    try:
        engine.step(stores(store(1, [0, 1, 2, 3])))
        engine.until_queued()
        plan = StepPlan(EPOCH)
        plan.wait_for = [1]
        step = engine.card.as_vllm(
            lambda: engine.step(plan, lambda: engine.put([0, 1, 2, 3], other))
        )
        step.join(DEADLINE)
        assert not step.is_alive()  # though nothing was gathered
        assert fake.settle() and fake.pending(own) > 0
        assert np.array_equal(engine.tokens([0, 1, 2, 3]), chunk1)
    finally:
        for stream in lanes:
            fake.release(stream)
    assert engine.stored() == (1, True)
    assert fake.drain()
    assert np.array_equal(engine.tokens([0, 1, 2, 3]), other)
    assert engine.load(chunk(1, [20, 21, 22, 23])).good == 1
    assert np.array_equal(engine.tokens([20, 21, 22, 23]), chunk1)


def test_a_load_waits_for_the_steps_before_it_and_not_for_its_own(make: Any) -> None:
    engine = make().start()
    fake, stream = engine.card.fake, engine.card.stream
    late, mine, other = engine.some(2, 1), engine.tokens([0, 1, 2, 3]), engine.some(4, 1)
    engine.save(1, [0, 1, 2, 3])
    engine.load(chunk(1, [20, 21, 22, 23]))  # an earlier step's mark is of no use
    scatters = engine.launches("scatter")
    fake.hold(stream)
    engine.step(forward=lambda: engine.put([8], late))
    engine.step(loads(chunk(1, [8, 9, 10, 11])), lambda: engine.put([16], other))
    engine.until_queued()
    assert engine.launches("scatter") == scatters
    assert fake.step(stream)  # the forward of the step before
    assert np.array_equal(engine.tokens([8]), late)
    while engine.launches("scatter") == scatters:
        assert fake.step(stream) and fake.settle()  # the mark
        assert not np.array_equal(engine.tokens([16]), other)
    assert engine.until_loaded().good == 1
    assert np.array_equal(engine.tokens([8, 9, 10, 11]), mine)
    assert fake.pending(stream)
    fake.release(stream)
    assert fake.drain() and np.array_equal(engine.tokens([16]), other)
    assert np.array_equal(engine.tokens([8, 9, 10, 11]), mine)


def test_a_store_waits_for_its_own_forward_and_not_for_the_next(make: Any) -> None:
    engine = make().start()
    fake, stream = engine.card.fake, engine.card.stream
    mine, other = engine.some(1, 4), engine.some(2, 1)
    fake.hold(stream)
    engine.step(stores(store(1, [0, 1, 2, 3])), lambda: engine.put([0, 1, 2, 3], mine))
    engine.step(forward=lambda: engine.put([16], other))
    engine.until_queued()
    assert not engine.launches("gather")
    while not engine.launches("gather"):
        assert fake.step(stream) and fake.settle()
    assert engine.stored() == (1, True)
    assert fake.pending(stream) and not np.array_equal(engine.tokens([16]), other)
    fake.release(stream)
    assert fake.drain()
    assert engine.load(chunk(1, [20, 21, 22, 23])).good == 1
    assert np.array_equal(engine.tokens([20, 21, 22, 23]), mine)


def test_what_is_not_waited_for_goes_on_beside_a_forward(make: Any) -> None:
    """A step without loads and waits does not look at the GPU."""
    engine = make().start()
    engine.card.fake.hold(engine.card.stream)
    engine.step(stores(store(1, [0, 1, 2, 3])), lambda: None)
    for _ in range(3):
        engine.step(forward=lambda: None)
    engine.card.fake.release(engine.card.stream)
    assert engine.stored() == (1, True)


# ---------------------------------------------------------------- what is refused


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [text for text in caplog.messages if text.startswith("lmkv")]


def shares_nothing(engine: Engine, why: str, caplog: pytest.LogCaptureFixture) -> None:
    """One sentence, which the scheduler's side says; and vLLM's calls are answered."""
    assert why in engine.worker._off
    scheduler = engine.connector(KVConnectorRole.SCHEDULER)
    shake = engine.worker.get_handshake_metadata()
    assert shake.error == engine.worker._off
    scheduler.set_xfer_handshake_metadata_pp_aware({(0, 0): pickle.loads(pickle.dumps(shake))})
    assert scheduler._off == engine.worker._off
    assert answers_like_an_empty_cache(scheduler)
    for _ in range(3):
        engine.step(stores(store(1, [0, 1, 2, 3])))
        engine.step(loads(chunk(1, [0, 1, 2, 3])))
    assert (engine.finished, engine.failed_blocks) == ({}, set())
    engine.worker.shutdown()
    scheduler.shutdown()
    assert lines(caplog) == [f"lmkv shares nothing here: {engine.worker._off}"]


def test_sleep_mode_is_refused_by_name(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    engine = make()
    engine.config.model_config.enable_sleep_mode = True
    engine.register()
    shares_nothing(engine, "opted_out: an engine with enable_sleep_mode is not shared", caplog)


def test_kv_that_vllm_zeroes_is_refused_by_name(
    make: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make()
    monkeypatch.setattr(type(engine.kv.config), "needs_kv_cache_zeroing", True)
    engine.register()
    shares_nothing(engine, "opted_out: KV whose blocks vLLM zeroes (Mamba,", caplog)


def test_neither_matters_on_a_cpu(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make()
    engine.config.model_config.enable_sleep_mode = True
    monkeypatch.setattr(type(engine.kv.config), "needs_kv_cache_zeroing", True)
    engine.device = "cpu"
    engine.worker = engine.connector()
    assert not engine.worker._off


def test_a_layout_that_is_not_known_is_refused_by_name(
    make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make()
    engine.kv.vllm_config.compilation_config.static_forward_context.clear()
    engine.register()
    shares_nothing(engine, "does not say which attention backend it has", caplog)


def test_no_driver(make: Any, card: Card, caplog: pytest.LogCaptureFixture) -> None:
    card.has(library="/nowhere/libcuda.so.1")
    engine = make()
    engine.register()
    shares_nothing(engine, "there is no CUDA driver: /nowhere/libcuda.so.1", caplog)


def test_a_driver_that_is_too_old(
    make: Any, card: Card, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    card.fake.set(driver_version=11080)
    old = tmp_path / "libcuda.so.1"
    old.symlink_to(card.fake.path)  # under the other name it is loaded already
    card.has(library=str(old))
    engine = make()
    engine.register()
    shares_nothing(engine, "the CUDA driver is for CUDA 11.8, lmkv needs 12.0 or newer", caplog)


def test_a_card_that_is_too_old(make: Any, card: Card, caplog: pytest.LogCaptureFixture) -> None:
    card.fake.set(compute_major=7, compute_minor=5)
    engine = make()
    engine.register()
    shares_nothing(engine, "GPU 0, Card, has compute capability 7.5, lmkv needs 8.0", caplog)


@pytest.mark.parametrize("nth", [1, 2, 4])
def test_no_room_on_the_card(
    make: Any, card: Card, caplog: pytest.LogCaptureFixture, nth: int
) -> None:
    card.fake.fail("mem_alloc", nth, NUMBERS["OUT_OF_MEMORY"])
    engine = make()
    engine.register()
    shares_nothing(engine, "CUDA_ERROR_OUT_OF_MEMORY", caplog)


def test_no_kernels_for_it(
    make: Any, card: Card, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    (tmp_path / kernels.FATBIN).unlink()
    engine = make()
    caplog.set_level("WARNING", "lmkv.worker")
    engine.register()
    shares_nothing(engine, "built without nvcc, and CuPy is not there to compile them", caplog)


def test_no_pool_lets_the_card_go(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    """What fails behind the GPU's copiers leaves nothing of them."""
    engine = make(pool_gib=60000)
    engine.register()
    shares_nothing(engine, "pool_gib: 60000 GiB", caplog)
    gc.collect()
    assert not [one for one in engine.card.fake.live() if "module" in one or "event" in one]


def test_a_context_that_is_lost(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Copies fail, each kind of them said once; vLLM's calls are answered, and it can end."""
    engine = make().start()
    engine.save(1, [0, 1, 2, 3])
    engine.card.fake.lose_context()
    caplog.clear()
    for n in range(2, 5):
        engine.step(stores(store(n, [0, 1, 2, 3])))
        assert engine.stored() == (n, False)
        result = engine.load(chunk(1, [20, 21, 22, 23]))
        assert (result.good, result.result) == (0, PullResult.MOVER_DOWN)
    assert engine.failed_blocks == {20, 21, 22, 23}
    said = lines(caplog)
    assert len(said) == len(set(said)) == 2  # of stores and of loads
    assert all(text.endswith("; said once") for text in said)
    engine.close()
    engine.card.fake.reset()
