"""Real movers whose pools are in a GPU's memory: opened by CUDA IPC, registered with the real NIXL
as VRAM, read from GPU to GPU. Only the driver is a fake: UCX's own CUDA module runs on it too, and
stages through the host, as it does where there is no RDMA."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from lmkv import _native
from lmkv.core import geometry
from lmkv.core.messages import GpuSegment, LimboEnded, PullResult
from mover_instance import LAYOUT, SLOTS, TEXT, Instance, payload, pulled, stop

from tests.fakecuda import build
from tests.fakecuda.fake import FakeCuda, needs_compiler
from tests.gpu.cards import FATBIN

pytestmark = [needs_compiler, pytest.mark.nixl]
GOOD, GONE, DIGEST = PullResult.GOOD, PullResult.GONE, PullResult.DIGEST
SIZE = 4 << 20
PROBE = bytes(range(16))
Make = Callable[..., Instance]


class OnGpu(Instance):
    """Its worker's part is this process's: the pool is in the fake card's memory, which is the
    host's, so that `write` and `check` reach it."""

    def __init__(self, name: str, run_dir: str, fake: FakeCuda, **changes: object) -> None:
        self.gpu = _native.Gpu(0, str(fake.path))
        self.gpu.load(FATBIN)
        self.memory = _native.GpuMemory(self.gpu, SIZE)
        heads = changes.get("heads") or geometry.rank_heads(TEXT)
        layout = geometry.slot_layout(geometry.with_heads(TEXT, heads))  # type: ignore[arg-type]
        pool = _native.GpuPool(self.memory, layout.granule_bytes, SLOTS)
        self.memory.write(SLOTS * pool.slot_bytes, PROBE)
        told = {
            "handle": self.memory.handle(),
            "size": SIZE,
            "probe": PROBE,
            "bus_id": self.gpu.bus_id,
        }
        settings = {"gpu": 0, "gpu_pulls": "always", "image": self.gpu.image}
        for change, value in changes.items():
            (told if change in told else settings)[change] = value
        super().__init__(name, run_dir, pool=pool, segment=GpuSegment(**told), **settings)


def end(instance: Instance) -> None:
    instance.__exit__()
    if isinstance(instance, OnGpu):
        instance.pool.close()


@pytest.fixture
def make(run_dir: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(build.system_folder()))
    begun: list[Instance] = []
    with FakeCuda() as fake:

        def make(name: str, on_gpu: bool = True, **changes: object) -> Instance:
            made = (
                OnGpu(name, run_dir, fake, **changes)
                if on_gpu
                else Instance(name, run_dir, **changes)  # type: ignore[arg-type]
            )
            begun.append(made)
            return made.__enter__()

        yield make
        while begun:
            end(begun.pop())
        gc.collect()


@pytest.mark.parametrize(("theirs", "ours"), [(True, True), (True, False), (False, True)], ids=str)
def test_slots_go_from_memory_to_memory(make: Make, theirs: bool, ours: bool) -> None:
    a, b = make("a", theirs), make("b", ours)
    for n in range(3):
        a.write(n, n, counter=5)
    b.pull(1, a.peer(), [(0, 0, 5), (1, 1, 5), (2, 2, 4)], [(7, 1), (6, 1), (5, 1)])
    answer, results = pulled(b, 1)
    assert results == [GOOD, GOOD, GONE]
    assert answer.bytes == 2 * (LAYOUT.payload_offset + LAYOUT.payload_bytes)
    for slot, n in ((7, 0), (6, 1)):
        assert np.array_equal(b.bytes_of(slot), payload(n))
        assert b.check(slot, n, counter=1) == GOOD
    assert b.check(5, 2, counter=1) == GONE


def test_a_torn_slot_is_not_taken(make: Make) -> None:
    a, b = make("a"), make("b")
    a.write(0, 0, counter=1)
    a.bytes_of(0)[12345] ^= 1
    b.pull(1, a.peer(), [(0, 0, 1)], [(3, 1)])
    assert pulled(b, 1)[1] == [DIGEST]
    assert ctypes.c_uint64.from_address(b.at(3)).value == 0


def test_a_mover_that_was_killed_leaves_another_at_another_address(make: Make) -> None:
    """Slots and handle are the worker's; the next mover registers them anew."""
    a, b = make("a"), make("b")
    a.write(0, 0, counter=1)
    b.pull(1, a.peer(), [(0, 0, 1)], [(3, 1)])
    assert pulled(b, 1)[1] == [GOOD]
    before = a.state(lambda s: True)
    assert before.pool_address not in (0, a.pool.address)
    os.kill(a.supervisor.pid, signal.SIGKILL)
    after = a.state(lambda s: s.nixl_metadata and s.nixl_metadata != before.nixl_metadata, 60.0)
    assert after.pool_address
    b.pull(2, a.peer(), [(0, 0, 1)], [(4, 1)])
    assert pulled(b, 2)[1] == [GOOD]
    assert np.array_equal(b.bytes_of(4), payload(0))


def test_a_read_that_timed_out_is_limbo_until_it_has_ended(make: Make) -> None:
    a, b = make("a"), make("b")
    a.write(0, 0, counter=1)
    peer = a.peer()
    stop(a.supervisor.pid)
    b.pull(1, peer, [(0, 0, 1)], [(3, 1)], deadline=0.2)
    assert pulled(b, 1)[1] == [PullResult.TIMEOUT]
    os.kill(a.supervisor.pid, signal.SIGCONT)
    ended, _ = b.receive()
    assert isinstance(ended, LimboEnded) and ended.job == 1
    assert ctypes.c_uint64.from_address(b.at(3)).value == 0  # whatever has landed


@pytest.mark.parametrize("on_gpu", [True, False], ids=["from a GPU", "from the host"])
def test_a_chunk_is_put_together_from_ranks_with_other_heads(make: Make, on_gpu: bool) -> None:
    one, first = make("one"), make("two", on_gpu, heads=(0, 1))
    second = make("two", on_gpu, heads=(1, 1), rank=1, epoch=first.epoch)
    for slot in range(3):
        first.write(slot, slot, counter=5)
        second.write(slot, slot, counter=5)
    second.bytes_of(1)[12345] ^= 1
    chunks, own = [(0, 0, 5), (1, 1, 5), (2, 2, 4)], [(7, 1), (6, 1), (5, 1)]
    one.pull(1, first.peer(), chunks, own, others=[second.peer()])
    assert pulled(one, 1)[1] == [GOOD, DIGEST, GONE]
    assert np.array_equal(one.bytes_of(7), payload(0))
    assert [one.check(*slot, counter=1) for slot in ((7, 0), (6, 1), (5, 2))] == [GOOD, GONE, GONE]
    if on_gpu:  # and back: a rank takes its head of a slot that has both
        second.pull(1, one.peer(), [(0, 7, 1)], [(3, 2)])
        assert pulled(second, 1)[1] == [GOOD]
        assert np.array_equal(second.bytes_of(3), second.payload(0))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"gpu_pulls": "never"}, "gpu_pulls = never"),
        ({"bus_id": "0000:99:00.0"}, "the mover sees GPU 0000:01:00.0, its worker's is 0000:99"),
        ({"handle": bytes(64)}, "cuIpcOpenMemHandle_v2: "),
        ({"image": b"no kernels"}, "cuModuleLoadData: "),
        ({"probe": bytes(16)}, "other bytes than the worker's are seen there"),
        ({"size": SIZE // 2}, "do not fit into"),
    ],
    ids=lambda each: next(iter(each)) if isinstance(each, dict) else "",
)
def test_why_it_is_not_pullable_is_said(make: Make, changes: dict[str, object], why: str) -> None:
    """Peers on this host are told the handle all the same."""
    a = make("a", **changes)
    state = a.state(lambda s: s.error)
    assert state.error.startswith("the pool in the GPU's memory is not pullable: ")
    assert why in state.error
    assert (state.nixl_metadata, state.segments, state.pool_address) == (b"", 1, 0)
    a.pull(1, a.peer(), [(0, 0, 1)], [(3, 1)])
    assert pulled(a, 1)[1] == [PullResult.MOVER_DOWN]


def test_without_a_driver(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LD_LIBRARY_PATH")
    why = "the pool in the GPU's memory is not pullable: there is no CUDA driver: libcuda.so.1"
    assert make("a").state(lambda s: s.error).error.startswith(why)
