"""Pools in a GPU's memory, on a fake driver: taken before vLLM sizes its KV, stored to and loaded
from, and opened by an engine of another process through its real mover."""

from __future__ import annotations

import ctypes
import gc
import inspect
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

pytest.importorskip("vllm", reason="vllm is not installed")

from lmkv.core import wire
from lmkv.core.messages import Check, Checked, PullPeer, PullResult
from lmkv.core.pool_size import GIB
from lmkv.core.steps import SKIPPED
from lmkv.worker import gpu_room
from lmkv.worker.front import Front

from tests.fakecuda.build import ROOT
from tests.fakecuda.fake import needs_compiler
from tests.fakecuda.raw import NUMBERS
from tests.vllm.test_cuda_connector import (
    EPOCH,
    Card,
    Engine,
    card,
    chunk,
    key,
    loads,
    place,
    shares_nothing,
    store,
    stores,
)

__all__ = ["card"]
pytestmark = needs_compiler
POOL = 16 << 20  # bytes
BEGIN = 120.0  # seconds that another engine may take to begin
LEFT = 100 << 20  # that vLLM finds left for its KV without a pool


class GpuEngine(Engine):
    """Its worker's memory is measured as vLLM does it, before the KV is known."""

    def __init__(self, card: Card, run_dir: str, name: str = "a", **settings: Any) -> None:
        pools = {"pool_device": "cuda", "gpu_pool_gib": POOL / GIB, "pool_gib": None}
        super().__init__(card, run_dir, name, **(pools | settings))
        self.gib = settings.get("gpu_pool_gib", POOL / GIB)
        self.vllms_worker = SimpleNamespace(
            device=SimpleNamespace(type="cuda", index=0),
            cache_config=SimpleNamespace(kv_cache_memory_bytes=None),
            available_kv_cache_memory_bytes=0,
        )
        self.left = 0

    def determine(self) -> int:
        """vLLM's: what its process has taken of the card is not for its KV."""
        taken = sum(
            int(one.split()[3]) for one in self.card.fake.live() if one.startswith("an allocation")
        )
        self.vllms_worker.available_kv_cache_memory_bytes = LEFT - taken
        return LEFT - taken

    def profile(self) -> GpuEngine:
        self.left = gpu_room.sized_around(self.vllms_worker, self.gib, self.determine)
        return self

    def start(self) -> GpuEngine:
        self.profile()
        super().start()
        return self

    def flip(self, n: int, offset: int) -> None:
        """A bit of the payload of slot n, which the test can reach: the card's memory is the host's
        here."""
        worker = self.worker._worker
        at = worker.pool.slot_address(place(n, 1)) + worker._pages[0].slot.payload_offset + offset
        ctypes.c_uint8.from_address(at).value ^= 8


@pytest.fixture
def make(card: Card, run_dir: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    monkeypatch.setattr(gpu_room, "LIBRARY", str(card.fake.path))
    monkeypatch.setattr(gpu_room, "_rooms", {})
    engines: list[Engine] = []

    def make(name: str = "a", kind: type[Engine] = GpuEngine, **more: Any) -> Engine:
        engines.append(kind(card, run_dir, name, **{"gpu_path": "direct"} | more))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()
        del engine.worker


def on_gpu(n: int, blocks: list[int]) -> Any:
    return store(n, blocks, tier=1)


# ---------------------------------------------------------------- memory


def test_vllm_sizes_its_kv_around_the_pool(make: Any, caplog: Any) -> None:
    engine = make().profile()
    assert engine.left == LEFT - POOL
    with caplog.at_level("INFO", "lmkv.worker"):
        engine.start()
    assert gpu_room.SCOPE in caplog.text
    pool = engine.worker._worker.pool
    assert (pool.tier, pool.segments) == (1, 1)
    assert pool.slots == (POOL - gpu_room.PROBE_BYTES) // pool.slot_bytes
    assert engine.left == LEFT - POOL


def test_what_a_mover_takes_is_left_to_it(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make()
    here = engine.vllms_worker, engine.gib, engine.determine
    monkeypatch.setattr(gpu_room, "mover_takes", lambda ordinal: 1 << 20)
    assert gpu_room.sized_around(*here, mover=True) == LEFT - POOL - (1 << 20)
    assert engine.vllms_worker.available_kv_cache_memory_bytes == LEFT - POOL - (1 << 20)
    monkeypatch.setattr(gpu_room, "mover_takes", lambda ordinal: LEFT - POOL)
    assert gpu_room.sized_around(*here, mover=True) == LEFT  # nothing were left
    engine.register()
    engine.worker.shutdown()


def test_a_pool_that_leaves_nothing_for_vllm_is_given_back(make: Any, caplog: Any) -> None:
    engine = make(gpu_pool_gib=LEFT / GIB).profile()
    assert engine.left == LEFT == engine.vllms_worker.available_kv_cache_memory_bytes
    engine.register()
    shares_nothing(engine, "gpu_pool_gib: a pool of 0.0976562 GiB leaves no memory", caplog)


class OutOfMemoryError(RuntimeError):
    """As torch's."""


def test_a_pool_beside_which_vllm_runs_out_of_memory_is_given_back(make: Any, caplog: Any) -> None:
    engine = make()
    measured: list[int] = []

    def determine() -> int:
        measured.append(engine.determine())
        if measured[-1] < LEFT:
            raise OutOfMemoryError("CUDA out of memory")
        return measured[-1]

    assert gpu_room.sized_around(engine.vllms_worker, engine.gib, determine) == LEFT
    assert measured == [LEFT - POOL, LEFT]
    engine.register()
    shares_nothing(engine, "leaves no memory of the GPU for vLLM's own KV", caplog)


def test_what_else_fails_in_vllm_fails(make: Any) -> None:
    engine = make()

    def determine() -> int:
        raise ValueError("no such model")

    with pytest.raises(ValueError, match="no such model"):
        gpu_room.sized_around(engine.vllms_worker, engine.gib, determine)
    engine.register()
    engine.worker.shutdown()


@pytest.mark.parametrize(
    ("gib", "why"),
    [
        (2, "gpu_pool_gib: 2 GiB are more than the 1.00 GiB of 1.00 GiB that GPU 0, Card, has"),
        (1 / 1024, "gpu_pool_gib: 0.00 GiB hold no slot of"),
    ],
)
def test_a_size_that_does_not_fit(make: Any, caplog: Any, gib: float, why: str) -> None:
    engine = make(gpu_pool_gib=gib, chunk_tokens=64 if gib == 2 else 384)
    engine.profile().register()
    if gib == 2:
        assert engine.left == LEFT
        shares_nothing(engine, why, caplog)


def test_the_cards_own_words_when_it_has_no_room(make: Any, card: Card, caplog: Any) -> None:
    card.fake.fail("mem_alloc", 1, NUMBERS["OUT_OF_MEMORY"])
    engine = make().profile()
    assert engine.left == LEFT
    engine.register()
    shares_nothing(engine, "CUDA_ERROR_OUT_OF_MEMORY", caplog)


def test_a_kv_size_that_is_given_is_refused_by_name(make: Any, caplog: Any) -> None:
    engine = make()
    engine.vllms_worker.cache_config.kv_cache_memory_bytes = 1 << 20
    assert engine.profile().left == LEFT
    engine.register()
    shares_nothing(engine, "with kv_cache_memory_bytes = 1048576 vLLM does not size", caplog)


def test_a_startup_plan_is_refused_by_name(make: Any, caplog: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv(gpu_room.STARTUP_PLAN, "1")
    engine = make().profile()
    assert engine.left == LEFT
    engine.register()
    shares_nothing(engine, "with VLLM_ENABLE_STARTUP_PLAN vLLM may take a KV size", caplog)


def test_without_the_plugin_it_is_refused_by_name(make: Any, caplog: Any) -> None:
    engine = make()
    engine.register()
    shares_nothing(engine, "lmkv's plugin is not loaded (VLLM_PLUGINS names", caplog)


def test_no_driver(make: Any, caplog: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_room, "LIBRARY", "/nowhere/libcuda.so.1")
    engine = make().profile()
    assert engine.left == LEFT
    engine.register()
    shares_nothing(engine, "there is no CUDA driver: /nowhere/libcuda.so.1", caplog)


# ---------------------------------------------------------------- stores and loads


def test_what_was_stored_is_loaded_and_no_host_memory_holds_it(make: Any, card: Card) -> None:
    engine = make(audit_every=1).start()
    first, second = engine.tokens([0, 1, 2, 3]), engine.tokens([7, 5, 6, 4])
    before = card.fake.copied()
    engine.step(stores(on_gpu(1, [0, 1, 2, 3]), on_gpu(2, [7, 5, 6, 4])))
    assert sorted(engine.stored() for _ in range(2)) == [(1, True), (2, True)]
    result = engine.load(chunk(2, [20, 21, 22, 23], tier=1), chunk(1, [10, 11, 12, 13], tier=1))
    assert (result.good, result.result) == (2, PullResult.GOOD)
    assert np.array_equal(engine.tokens([20, 21, 22, 23]), second)
    assert np.array_equal(engine.tokens([10, 11, 12, 13]), first)
    crossed = card.fake.copied() - before
    assert crossed["h2d"] + crossed["d2h"] < engine.worker._worker._pages[0].slot.payload_bytes
    kinds = set(card.fake.launches())
    assert kinds >= {"lmkv_clear", "lmkv_gather_16", "lmkv_publish", "lmkv_verify_16"}


def test_a_place_of_the_other_tier_is_none(make: Any) -> None:
    engine = make().start()
    engine.step(stores(on_gpu(1, [0, 1, 2, 3])))
    assert engine.stored() == (1, True)
    result = engine.load(chunk(1, [20, 21, 22, 23], tier=0))
    assert (result.good, result.result) == (0, PullResult.GONE)


def test_a_flipped_bit_is_a_load_that_failed(make: Any) -> None:
    engine = make().start()
    engine.step(stores(on_gpu(1, [0, 1, 2, 3])))
    assert engine.stored() == (1, True)
    engine.flip(1, 99)
    result = engine.load(chunk(1, [20, 21, 22, 23], tier=1))
    assert (result.good, result.result) == (0, PullResult.DIGEST)


def test_a_store_that_the_audit_finds_wrong_is_read_by_nobody(make: Any, card: Card) -> None:
    """What is in the blocks changes between a gather and its audit."""
    engine = make(audit_every=1).start()
    copiers = engine.worker._worker._copiers
    gather = copiers.gather

    def and_then_changed(*arguments: Any) -> None:
        gather(*arguments)
        engine.put([2], engine.some(9, 1))

    copiers.gather = and_then_changed
    engine.step(stores(on_gpu(1, [0, 1, 2, 3])))
    assert engine.stored() == (1, False)
    result = engine.load(chunk(1, [20, 21, 22, 23], tier=1))
    assert (result.good, result.result) == (0, PullResult.GONE)


def test_what_was_in_a_slot_before_is_gone(make: Any, card: Card) -> None:
    engine = make(audit_every=0).start()
    engine.step(stores(on_gpu(1, [0, 1, 2, 3])))
    assert engine.stored() == (1, True)
    again = on_gpu(1, [4, 5, 6, 7])
    again.job, again.key = 9, b"k" * 16
    engine.step(stores(again))
    assert engine.stored() == (9, True)
    result = engine.load(chunk(1, [20, 21, 22, 23], tier=1))
    assert (result.good, result.result) == (0, PullResult.GONE)
    kinds = [one.name for one in card.fake.log() if one.kind == "launch"]
    assert kinds[:3] == kinds[3:6] == ["lmkv_clear", "lmkv_gather_16", "lmkv_publish"]


def test_slots_are_checked_where_they_are_when_somebody_asks(make: Any) -> None:
    engine = make(audit_every=0).start()
    engine.step(stores(on_gpu(1, [0, 1, 2, 3]), on_gpu(2, [4, 5, 6, 7])))
    assert sorted(engine.stored() for _ in range(2)) == [(1, True), (2, True)]
    engine.flip(2, 7)
    frames = [key(1) + key(2) + key(1), place(1, 1) + place(2, 1) + place(1, 0)]
    counters = b"".join(n.to_bytes(4, "little") for n in (1, 2, 1))
    assert engine.agent is not None
    engine.agent.send_multipart(wire.encode(Check(5, EPOCH), *frames, counters))
    while not isinstance(answer := engine.hear(), Checked):
        pass
    assert answer.job == 5
    assert [*engine.frames[-1]] == [PullResult.GOOD, PullResult.DIGEST, PullResult.GONE]


def test_a_lost_context_is_a_miss(make: Any, card: Card) -> None:
    engine = make().start()
    engine.step(stores(on_gpu(1, [0, 1, 2, 3])))
    assert engine.stored() == (1, True)
    card.fake.lose_context()
    engine.step(stores(on_gpu(2, [0, 1, 2, 3])))
    assert engine.stored() == (2, False)
    result = engine.load(chunk(1, [20, 21, 22, 23], tier=1))
    assert (result.good, result.result) == (0, PullResult.MOVER_DOWN)
    engine.close()
    card.fake.reset()


# ---------------------------------------------------------------- peers


HOLDER = """
import sys
from pathlib import Path
import msgspec, pytest
from lmkv.worker import gpu_room
from tests.fakecuda.fake import FakeCuda
from tests.vllm.test_cuda_connector import Card
from tests.vllm.test_gpu_pools import GpuEngine, on_gpu, stores
run_dir, folder = sys.argv[1:]
fake = FakeCuda(device_name="Card").__enter__()
patch = pytest.MonkeyPatch()
card = Card(fake, Path(folder), patch)
patch.setattr(gpu_room, "LIBRARY", str(fake.path))
there = GpuEngine(card, run_dir, "b", order="LBHNC", seed=2, gpu_path="direct").start()
there.step(stores(on_gpu(1, [9, 3, 4, 5])))
assert there.stored() == (1, True)
kept = there.tokens([9, 3, 4, 5])
told = msgspec.msgpack.encode((there.peer(), kept.shape, kept.tobytes()))
Path(folder, "told").write_bytes(told)
print("told", flush=True)
sys.stdin.read(1)
"""


class Holder:
    """An engine in a process of its own, with its worker and its mover."""

    def __init__(self, run_dir: str, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, run_dir, str(folder)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], BEGIN)
        assert ready and self.process.stdout.readline(), "the holder did not begin"
        told, kind = (folder / "told").read_bytes(), tuple[PullPeer, tuple[int, ...], bytes]
        self.peer, shape, kept = msgspec.msgpack.decode(told, type=kind)
        self.kept = np.frombuffer(kept, np.uint8).reshape(shape)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)


@pytest.fixture(scope="module")
def holder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Holder]:
    with tempfile.TemporaryDirectory(prefix="lmkv-", dir="/tmp") as run_dir:
        holder = Holder(run_dir, tmp_path_factory.mktemp("holder"))
        yield holder
        holder.kill()


@pytest.mark.parametrize("ours", [GpuEngine, Engine])
def test_another_processs_pool_is_opened_and_read(
    make: Any, card: Card, holder: Holder, ours: type[Engine]
) -> None:
    """Whatever our own pool is in; our blocks are of another size and order."""
    here = make("a", ours, block_tokens=64, seed=1).start()
    assert (holder.peer.info.tier, holder.peer.info.usable_segments) == (1, 1)
    assert not holder.peer.info.nixl_metadata  # it is not pullable
    for _ in range(2):  # it is opened once
        result = here.load(chunk(1, [4], 0, tier=1), peers=[[holder.peer]])
        assert (result.good, result.result) == (1, PullResult.GOOD)
        assert np.array_equal(here.tokens([4]), holder.kept)
        here.put([4], 0 * holder.kept)
    assert card.fake.calls("ipc_open") == 1


def load_of(here: Engine, peer: PullPeer) -> int:
    result = here.load(chunk(1, [4], 0, tier=1), peers=[[peer]])
    assert result.good == 0
    return result.result


@pytest.mark.parametrize("call", ["ipc_open", "mem_range"])
def test_a_card_that_cannot_be_reached_is_incompatible(
    make: Any, card: Card, holder: Holder, call: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as one that this process does not see, or that has no way to ours."""
    here = make("a", block_tokens=64).start()
    card.fake.fail(call, 1, NUMBERS["INVALID_DEVICE"])
    assert load_of(here, holder.peer) == PullResult.INCOMPATIBLE
    assert "its GPU's memory is not shared with this engine: " in caplog.text
    assert "CUDA_ERROR_INVALID_DEVICE" in caplog.text
    assert card.fake.calls("ipc_open") == card.fake.calls("ipc_close") + (call == "ipc_open")
    result = here.load(chunk(1, [4], 0, tier=1), peers=[[holder.peer]])
    assert result.good == 1


def test_a_pool_that_shows_other_bytes_is_not_read(
    make: Any, card: Card, holder: Holder, caplog: pytest.LogCaptureFixture
) -> None:
    """One granule fewer, and what lies behind the last slot is not the probe."""
    here = make("a", block_tokens=64).start()
    peer = msgspec.structs.replace(
        holder.peer,
        info=msgspec.structs.replace(holder.peer.info, granules=holder.peer.info.granules - 16),
    )
    assert load_of(here, peer) == PullResult.INCOMPATIBLE
    assert "other bytes than its pool's are seen here" in caplog.text
    assert card.fake.calls("ipc_close") == card.fake.calls("ipc_open") == 1


def test_a_pool_that_is_larger_than_its_memory_is_not_read(
    make: Any, card: Card, holder: Holder, caplog: pytest.LogCaptureFixture
) -> None:
    here = make("a", block_tokens=64).start()
    peer = msgspec.structs.replace(
        holder.peer, info=msgspec.structs.replace(holder.peer.info, granules=1 << 20)
    )
    assert load_of(here, peer) == PullResult.INCOMPATIBLE
    assert "do not fit into" in caplog.text


def test_a_dead_holders_memory_is_let_go(make: Any, card: Card, holder: Holder) -> None:
    """The last test that needs it. A map keeps a dead holder's memory."""
    here = make("a", block_tokens=64).start()
    assert here.load(chunk(1, [4], 0, tier=1), peers=[[holder.peer]]).good == 1
    here.worker._worker._look_after_peers()
    holder.kill()
    assert not card.fake.calls("ipc_close")
    until = time.monotonic() + BEGIN
    while not card.fake.calls("ipc_close"):  # its mover ends as it finds out
        assert time.monotonic() < until, "a dead holder's memory stays open"
        here.worker._worker._look_after_peers()
        time.sleep(0.01)
    assert card.fake.calls("ipc_close") == 1
    assert load_of(here, holder.peer) == PullResult.PEER_DEAD


def test_nothing_is_left_when_an_engine_ends(make: Any, card: Card) -> None:
    engine = make().start()
    engine.step(loads(chunk(1, [20, 21, 22, 23], tier=1)))
    engine.close()
    gc.collect()
    assert not [one for one in card.fake.live() if f"of {POOL} bytes" in one]


# ---------------------------------------------------------------- two levels

FEW = 2 << 20  # bytes of a front: 15 slots


def two_levels(make: Any, **more: Any) -> Any:
    settings = {"pool_device": "cuda+host", "gpu_pool_gib": FEW / GIB, "pool_gib": 0.25}
    return make(**(settings | more))


def front_of(engine: Engine) -> Front:
    found = engine.worker._worker._copiers
    assert isinstance(found, Front)
    return found


def test_a_load_looks_in_front_first(make: Any, card: Card) -> None:
    engine = two_levels(make).start()
    assert engine.worker._worker.pool.tier == 0 and engine.left == LEFT - FEW
    first = engine.tokens([0, 1, 2, 3])
    engine.save(1, [0, 1, 2, 3])
    assert engine.load(chunk(1, [20, 21, 22, 23])).good == 1
    assert np.array_equal(engine.tokens([20, 21, 22, 23]), first)
    assert front_of(engine).hits == 1


def test_what_left_the_front_comes_from_the_host_and_is_in_front_then(make: Any) -> None:
    engine = two_levels(make).start()
    front = front_of(engine)
    count = front._pool.slots + 1
    first = engine.tokens([0, 1, 2, 3])
    engine.save(1, [0, 1, 2, 3])
    for n in range(2, count + 1):
        engine.save(n, [4, 5, 6, 7])
    for hits in (0, 1):
        assert engine.load(chunk(1, [20, 21, 22, 23])).good == 1
        assert np.array_equal(engine.tokens([20, 21, 22, 23]), first)
        assert front.hits == hits
        engine.put([20, 21, 22, 23], 0 * first)
    assert len(front._there) == front._pool.slots and not front._free


def test_a_load_of_some_blocks_is_from_both(make: Any) -> None:
    """In front is the whole chunk; from the host alone, nothing is put in front."""
    engine = two_levels(make).start()
    front, first = front_of(engine), engine.tokens([0, 1, 2, 3])
    engine.save(1, [0, 1, 2, 3])
    engine.save(2, [0, 1, 2, 3])
    front._forget_chunk((0, key(1), chunk(1, []).generation))
    some = [SKIPPED, 21, 22, 23]
    for _ in range(2):
        assert engine.load(chunk(1, some), chunk(2, [12, 13, 14, 15])).good == 2
    assert np.array_equal(engine.tokens([12, 13, 14, 15]), first)
    assert front.hits == 2 and len(front._there) == 1


def test_a_flipped_bit_in_front_is_read_from_the_host(make: Any) -> None:
    engine = two_levels(make).start()
    front, first = front_of(engine), engine.tokens([0, 1, 2, 3])
    engine.save(1, [0, 1, 2, 3])
    number = front._there[0, key(1), chunk(1, []).generation]
    at = front._pool.address + number * front._pool.slot_bytes
    ctypes.c_uint8.from_address(at + 5000).value ^= 4
    assert engine.load(chunk(1, [20, 21, 22, 23])).good == 1
    assert np.array_equal(engine.tokens([20, 21, 22, 23]), first)
    assert front.hits == 0


def test_a_front_that_cannot_be_filled_costs_nothing(make: Any, card: Card) -> None:
    engine = two_levels(make, audit_every=0).start()
    front, first = front_of(engine), engine.tokens([0, 1, 2, 3])
    gather = front._copiers.gather

    def refused(group: int, slots: Any, *more: Any, **named: Any) -> None:
        if slots[0].device:
            raise RuntimeError("no")
        gather(group, slots, *more, **named)

    front._copiers.gather = refused  # type: ignore[method-assign]
    engine.save(1, [0, 1, 2, 3])
    assert engine.load(chunk(1, [20, 21, 22, 23])).good == 1
    assert np.array_equal(engine.tokens([20, 21, 22, 23]), first)
    assert len(front._free) == front._pool.slots


def test_without_room_in_front_the_host_has_it_all(make: Any, caplog: Any) -> None:
    engine = two_levels(make, gpu_pool_gib=2).start()
    assert engine.left == LEFT
    assert "the pool is the host's alone: gpu_pool_gib: 2 GiB are more than" in caplog.text
    first = engine.tokens([0, 1, 2, 3])
    engine.save(1, [0, 1, 2, 3])
    assert engine.load(chunk(1, [20, 21, 22, 23])).good == 1
    assert np.array_equal(engine.tokens([20, 21, 22, 23]), first)


# ---------------------------------------------------------------- vLLM's own worker


def a_workers_config(sleep: bool = False, **inline: Any) -> Any:
    transfer = SimpleNamespace(kv_connector="LmkvConnector", kv_connector_extra_config=inline)
    model = SimpleNamespace(enable_sleep_mode=sleep)
    return SimpleNamespace(kv_transfer_config=transfer, model_config=model)


def test_vllms_worker_is_made_where_the_plugin_looks() -> None:
    """By name: vLLM's own worker on a GPU cannot be made here."""
    from lmkv import plugin
    from vllm.v1.worker import gpu_worker, worker_base

    plugin.register()
    assert hasattr(worker_base.WorkerWrapperBase.init_worker, "lmkv")
    source = inspect.getsource(worker_base.WorkerWrapperBase.init_worker.__wrapped__)
    assert "self.worker = " in source and "self.vllm_config = " in source
    measures = inspect.getsource(gpu_worker.Worker.determine_available_memory)
    for name in ("self.cache_config.kv_cache_memory_bytes", "available_kv_cache_memory_bytes"):
        assert name in measures
    assert "maybe_apply_startup_plan(self)" in measures
    assert "self.device = torch.device" in inspect.getsource(gpu_worker.Worker.init_device)


def test_a_worker_is_watched_only_where_a_pool_is_on_a_gpu() -> None:
    from lmkv import plugin

    for config, watched in (
        (a_workers_config(pool_device="cuda", gpu_pool_gib=1), True),
        (a_workers_config(pool_device="cuda+host", gpu_pool_gib=1), True),
        (a_workers_config(), False),
        (a_workers_config(pool_device="cuda"), False),  # the connector refuses it
        (a_workers_config(sleep=True, pool_device="cuda", gpu_pool_gib=1), False),
    ):
        worker = SimpleNamespace(
            device=SimpleNamespace(type="cpu"), determine_available_memory=lambda: 7
        )
        before = worker.determine_available_memory
        plugin._watch(worker, config)
        assert (worker.determine_available_memory is not before) == watched
        assert worker.determine_available_memory() == 7  # on a CPU nothing is taken


def test_an_engine_on_a_cpu_says_so_and_serves(
    start_engine: Callable[..., Any], run_dir: str
) -> None:
    """A real one, whose worker the plugin watches."""
    settings = {"pool_device": "cuda", "gpu_pool_gib": 1, "run_dir": run_dir}
    engine = start_engine(
        "c",
        kv_transfer_config={
            "kv_connector": "LmkvConnector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": settings,
        },
    )
    engine.wait_ready()
    assert len(engine.generate([*range(1, 300)]).tokens) == 8
    said = "pool_device: KV on cpu is not on a GPU, allowed is host"
    assert engine.log.read_text().count(f"lmkv shares nothing here: {said}") == 1
