"""A GPU's copiers on a fake driver: what they know of pools, what they stage, and what may fail."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lmkv import _native
from lmkv._native import SlotPart, SlotStatus
from lmkv.worker import gpu_paths
from lmkv.worker.copiers import Slot
from lmkv.worker.gpu_copiers import LANES, GpuCopiers

from tests.contract.test_worker import BLOCKS, FATBIN, Gpu, key, kv, place
from tests.fakecuda.fake import FakeCuda, needs_compiler
from tests.fakecuda.raw import NUMBERS, Driver

pytestmark = needs_compiler
GOOD = SlotStatus.GOOD
MIB = 1 << 20


@pytest.fixture
def fake(caplog: pytest.LogCaptureFixture) -> Iterator[FakeCuda]:
    caplog.set_level(logging.INFO, "lmkv.worker")
    with FakeCuda(device_name="Card") as fake:
        yield fake
        caplog.get_records("call").clear()  # errors that were logged hold on to their frames
        gc.collect()


class Side:
    """KV, its copiers, and a pool of two segments of two slots each."""

    def __init__(self, fake: FakeCuda, path: str = "direct", seed: int = 1, **heads: int) -> None:
        self.fake = fake
        self.kv = kv(seed, **heads)
        self.engine = Gpu(fake, path)
        self.copiers = self.engine.copiers(self.kv)
        self.pool = _native.Pool(self.kv.slot.granule_bytes, 4, 2)
        self.maps: list[_native.PoolMap] = []

    def grow(self, know: bool = True) -> None:
        self.pool.add_segment()
        if know:
            self.copiers.know(self.pool, readonly=False)

    def mapped(self, pool: _native.Pool) -> _native.PoolMap:
        """As a peer on this host maps it."""
        found = _native.PoolMap(self.kv.slot.granule_bytes, 4, 2)
        for n in range(pool.segments):
            fd = pool.segment_fd(n, readonly=True)
            found.add_segment(fd)
            os.close(fd)
        self.maps.append(found)
        return found

    def slot(self, n: int, blocks: Sequence[int], pool: Any = None) -> Slot:
        return Slot((pool or self.pool).slot_address(place(n)), key(n), n, list(blocks))

    def gather(self, *slots: Slot) -> None:
        self.copiers.gather(0, slots, self.copiers.mark())

    def scatter(self, *slots: Slot, part: SlotPart | None = None) -> list[int]:
        return self.copiers.scatter(0, slots, part, self.copiers.mark())

    def close(self) -> None:
        for pool in (*self.maps, self.pool):
            self.copiers.forget(pool)
            pool.close()
        del self.copiers
        self.engine.close()


@pytest.fixture
def side(fake: FakeCuda) -> Iterator[Side]:
    side = Side(fake)
    yield side
    side.close()


def registrations(fake: FakeCuda) -> int:
    return sum("registration" in one or "registered" in one for one in fake.live())


def lines(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    return [line for line in caplog.messages if text in line]


def test_a_segment_is_registered_once(side: Side) -> None:
    side.grow()
    calls = side.fake.calls("host_register")
    side.copiers.know(side.pool, readonly=False)
    assert side.fake.calls("host_register") == calls
    side.grow()
    assert side.fake.calls("host_register") == calls + 1
    address, size = side.pool.segment(1)
    assert side.pool.segment(0)[0] + side.pool.segment(0)[1] == address and size


def test_what_is_known_is_read_and_written_where_it_is(side: Side) -> None:
    side.grow()
    first = side.kv.chunk(0, 1)
    side.gather(side.slot(1, [0, 1]))
    assert side.scatter(side.slot(1, [6, 7])) == [GOOD]
    assert np.array_equal(side.kv.chunk(6, 7), first)
    assert sum(side.fake.copied().values()) < side.kv.slot.used_bytes


def test_a_peers_pool_is_read_where_it_is_as_it_grows(side: Side) -> None:
    side.grow(know=False)
    first = side.kv.chunk(0, 1)
    side.gather(side.slot(1, [0, 1]))
    there = side.mapped(side.pool)
    side.copiers.know(there, readonly=True)
    moved = side.fake.copied()["h2d"]
    assert side.scatter(side.slot(1, [6, 7], there)) == [GOOD]
    assert side.fake.copied()["h2d"] - moved < side.kv.slot.used_bytes
    assert np.array_equal(side.kv.chunk(6, 7), first)


def test_a_driver_without_read_only_mappings_is_asked_and_told_once(
    side: Side, caplog: pytest.LogCaptureFixture
) -> None:
    side.fake.set(read_only_registration=0)
    side.grow()
    first = side.kv.chunk(0, 1)
    side.gather(side.slot(1, [0, 1]))
    maps = [side.mapped(side.pool) for _ in range(2)]
    calls = side.fake.calls("host_register")
    for there in (*maps, *maps):
        side.copiers.know(there, readonly=True)
    assert side.fake.calls("host_register") == calls + 1
    (line,) = lines(caplog, "copied through the driver's own")
    assert "CUDA_ERROR_NOT_SUPPORTED" in line
    for there in maps:  # direct is what is asked for
        assert side.scatter(side.slot(1, [6, 7], there)) == [GOOD]
        assert np.array_equal(side.kv.chunk(6, 7), first)
    calls = side.fake.calls("host_register")
    side.grow()  # the own pool is known all the same
    assert side.fake.calls("host_register") == calls + 1


def test_what_cannot_be_registered_is_copied(side: Side, caplog: pytest.LogCaptureFixture) -> None:
    side.fake.fail("host_register", 1, NUMBERS["OUT_OF_MEMORY"])
    side.grow()
    (line,) = lines(caplog, "copied through the driver's own")
    assert "CUDA_ERROR_OUT_OF_MEMORY" in line
    first = side.kv.chunk(0, 1)
    side.gather(side.slot(1, [0, 1]))
    assert side.scatter(side.slot(1, [6, 7])) == [GOOD]
    assert np.array_equal(side.kv.chunk(6, 7), first)
    side.copiers.know(side.pool, readonly=False)  # tried again
    calls = side.fake.calls("host_register")
    side.copiers.know(side.pool, readonly=False)
    assert side.fake.calls("host_register") == calls


def test_forget_unregisters_and_know_may_come_again(side: Side) -> None:
    side.grow()
    side.grow()
    there = side.mapped(side.pool)
    before = registrations(side.fake)
    side.copiers.know(there, readonly=True)
    assert registrations(side.fake) == before + 2
    side.copiers.forget(there)
    assert registrations(side.fake) == before
    side.copiers.forget(there)  # harmless
    side.copiers.know(there, readonly=True)
    assert registrations(side.fake) == before + 2
    side.copiers.forget(side.pool)
    assert registrations(side.fake) == before


def test_a_mark_that_fails_fails_the_copy(side: Side) -> None:
    side.grow()
    for function in ("event_create", "event_record", "event_create"):
        side.fake.fail(function, 1, NUMBERS["OUT_OF_MEMORY"])
        mark = side.copiers.mark()
        assert isinstance(mark, str) and "CUDA_ERROR_OUT_OF_MEMORY" in mark
        before = side.kv.array.copy()
        with pytest.raises(RuntimeError, match=r"could not be marked: cuEvent.*OUT_OF_MEMORY"):
            side.copiers.gather(0, [side.slot(1, [0, 1])], mark)
        with pytest.raises(RuntimeError, match=r"could not be marked: cuEvent.*OUT_OF_MEMORY"):
            side.copiers.scatter(0, [side.slot(1, [0, 1])], None, mark)
        assert np.array_equal(side.kv.array, before)
    side.gather(side.slot(1, [0, 1]))


# ---------------------------------------------------------------- staging


@pytest.mark.parametrize("asked", [1, 3 * MIB, 64 * MIB])
def test_staging_has_room_for_a_slot_in_each_lane(fake: FakeCuda, asked: int) -> None:
    group = kv(1)
    engine = Gpu(fake, "staged")
    gpu = _native.Gpu(0, str(fake.path))
    gpu.load(FATBIN)
    free = room(engine.driver)
    copiers = GpuCopiers(gpu, [group], lambda: engine.stream, 8, asked)  # type: ignore[list-item]
    staging = max(asked, LANES * group.slot.slot_bytes)
    assert free - room(engine.driver) == 2 * staging  # for stores and for loads
    del copiers, gpu
    engine.close()


def room(driver: Driver) -> int:
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    driver.good(driver.mem_info(ctypes.byref(free), ctypes.byref(total)))
    return free.value


@pytest.mark.parametrize("path", ["direct", "staged"])
def test_a_peers_slot_is_larger_than_all_our_staging(fake: FakeCuda, path: str) -> None:
    """The peer has 32 heads, of which number 5 is our only one."""
    there, here = Side(fake, path, 2, heads=32), Side(fake, path, 3, heads=1)
    there.grow()
    there.gather(there.slot(1, [2, 3]))
    part = SlotPart(here.kv.slot, there.kv.slot, 2, 5, 0, 1)
    peer = here.slot(1, [0, 1], there.mapped(there.pool))
    assert there.kv.slot.used_bytes > MIB // LANES > here.kv.slot.used_bytes
    for _ in range(2):
        assert here.scatter(peer, part=part) == [GOOD]
        assert np.array_equal(here.kv.chunk(0, 1)[:, :, 0], there.kv.chunk(2, 3)[:, :, 5])
    here.close()
    there.close()


def test_no_room_for_a_peers_larger_slot_fails_that_load_alone(fake: FakeCuda) -> None:
    there, here = Side(fake, "staged", 2, heads=32), Side(fake, "staged", 3, heads=1)
    there.grow()
    here.grow()
    there.gather(there.slot(1, [2, 3]))
    here.gather(here.slot(1, [2, 3]))
    part = SlotPart(here.kv.slot, there.kv.slot, 2, 5, 0, 1)
    peer = here.slot(1, [0, 1], there.mapped(there.pool))
    fake.fail("mem_alloc", 1, NUMBERS["OUT_OF_MEMORY"])
    with pytest.raises(RuntimeError, match="CUDA_ERROR_OUT_OF_MEMORY"):
        here.scatter(peer, part=part)
    assert here.scatter(here.slot(1, [4, 5])) == [GOOD]
    assert here.scatter(peer, part=part) == [GOOD]
    here.close()
    there.close()


# ---------------------------------------------------------------- threads and graphs


def in_a_thread(work: Callable[[], None]) -> None:
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(20)
    assert not thread.is_alive() and not failed, failed


def capture_mode(driver: Driver, mode: int) -> int:
    exchanged = ctypes.c_int(mode)
    driver.good(driver.capture_mode(ctypes.byref(exchanged)))
    return exchanged.value


@pytest.mark.parametrize("path", ["direct", "staged"])
def test_all_that_is_done_while_a_graph_is_captured(fake: FakeCuda, path: str) -> None:
    there, here = Side(fake, path, 2, heads=32), Side(fake, path, 3, heads=1)
    mark = here.copiers.mark()  # vLLM's thread's
    fake.set(capturing=1)

    def all_of_it() -> None:
        there.grow()
        there.copiers.gather(0, [there.slot(1, [2, 3])], mark)
        peers = there.mapped(there.pool)
        here.copiers.know(peers, readonly=True)
        part = SlotPart(here.kv.slot, there.kv.slot, 2, 5, 0, 1)  # the staging grows
        slot = here.slot(1, [0, 1], peers)
        assert here.copiers.scatter(0, [slot], part, mark) == [GOOD]
        here.copiers.forget(peers)

    in_a_thread(all_of_it)
    assert fake.complaints() == []
    fake.set(capturing=0)
    here.close()
    there.close()


def test_vllms_thread_is_left_as_it_was(fake: FakeCuda, tmp_path: Path) -> None:
    """Measuring copies in it; a thread that is relaxed would let a capture of its own go wrong."""

    def all_of_it() -> None:
        side = Side(fake)
        assert capture_mode(side.engine.driver, 0) == 0
        gpu_paths.choose(side.copiers, [side.kv], "auto", tmp_path)  # type: ignore[list-item]
        side.copiers.forget(side.pool)
        assert capture_mode(side.engine.driver, 0) == 0
        side.close()

    in_a_thread(all_of_it)


# ---------------------------------------------------------------- measuring, for real


def test_measuring_leaves_kv_as_it_was(side: Side, tmp_path: Path) -> None:
    before, held = side.kv.array.copy(), registrations(side.fake)
    gpu_paths.choose(side.copiers, [side.kv], "auto", tmp_path)  # type: ignore[list-item]
    assert np.array_equal(side.kv.array, before)
    copies = 2 * (1 + gpu_paths.REPEATS)
    assert side.fake.launches() == {"lmkv_gather_16": copies, "lmkv_scatter_16": copies}
    assert registrations(side.fake) == held + 2  # room that a lane each way has made
    launches = side.fake.launches()
    gpu_paths.choose(side.copiers, [side.kv], "auto", tmp_path)  # type: ignore[list-item]
    assert side.fake.launches() == launches
    side.grow()
    side.gather(side.slot(1, [0, 1]))
    assert side.scatter(side.slot(1, [BLOCKS - 1, 2])) == [GOOD]


def test_measuring_comes_after_the_engines_work(side: Side, tmp_path: Path) -> None:
    """vLLM has just asked for its KV to be zero."""
    side.fake.hold(side.engine.stream)
    side.engine.driver.call(side.engine.stream, lambda: side.kv.array.fill(0))
    mark = side.copiers.mark()
    side.copiers.mark = lambda: mark  # type: ignore[method-assign]
    measuring = threading.Thread(
        target=lambda: gpu_paths.choose(side.copiers, [side.kv], "auto", tmp_path)  # type: ignore[list-item]
    )
    measuring.start()
    assert side.fake.settle() and not side.fake.launches()
    side.fake.release(side.engine.stream)
    measuring.join(20)
    assert not measuring.is_alive() and not side.kv.array.any()


@pytest.mark.parametrize("function", ["mem_alloc", "host_register", "launch", "event_record"])
def test_a_driver_that_fails_meanwhile_is_one_sentence(
    fake: FakeCuda, tmp_path: Path, function: str
) -> None:
    side = Side(fake)
    side.fake.fail(function, 2, NUMBERS["OUT_OF_MEMORY"])
    with pytest.raises(RuntimeError, match="CUDA_ERROR_OUT_OF_MEMORY"):
        gpu_paths.choose(side.copiers, [side.kv], "auto", tmp_path)  # type: ignore[list-item]
    side.close()


def test_a_lost_context_is_let_go(fake: FakeCuda) -> None:
    """Copies fail, and what is closed then neither fails nor hangs."""
    side = Side(fake)
    side.grow()
    mark = side.copiers.mark()
    side.gather(side.slot(1, [0, 1]))
    fake.lose_context()
    for after in (mark, mark):
        with pytest.raises(RuntimeError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
            side.copiers.gather(0, [side.slot(1, [0, 1])], after)
    assert "CUDA_ERROR_ILLEGAL_ADDRESS" in str(side.copiers.mark())
    side.copiers.know(side.mapped(side.pool), readonly=True)
    for pool in (side.pool, *side.maps):
        side.copiers.forget(pool)
        pool.close()
    fake.reset()
