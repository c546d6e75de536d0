"""The GPU's copier and what it asks of the driver, as only a fake one shows: what is launched and
copied, behind held streams of the engine's, and errors that leave nothing behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
from lmkv import _native
from lmkv._native import SlotStatus

from tests.fakecuda.build import COMPILER
from tests.fakecuda.fake import FakeCuda
from tests.fakecuda.raw import NUMBERS, Driver
from tests.gpu.cards import FATBIN, PATHS, Card, OnFake
from tests.kernels.bodies import Case, World
from tests.kernels.cases import kv

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler for the fake driver")

GOOD, DIGEST = SlotStatus.GOOD, SlotStatus.DIGEST


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def fake() -> Iterator[FakeCuda]:
    with FakeCuda() as fake:
        yield fake


def card_of(fake: FakeCuda, world: World, staging: int = 0) -> Card:
    return Card(OnFake(fake), world, staging=staging)


def clear(world: World) -> None:
    for slot in world.slots:
        slot[:] = 0


def test_slots_that_the_gpu_does_not_know_are_copied_one_by_one(fake: FakeCuda) -> None:
    world = World(kv("small", "lbthp", 64, 4), chunks=2)
    card, blocks = card_of(fake, world), world.some_blocks()
    card.gather(blocks, "direct")
    assert card.scatter(blocks, "direct") == [GOOD] * 2
    assert not fake.count("batch")  # a batch wants memory that the driver knows


def test_a_read_only_slot_is_read_where_it_is(fake: FakeCuda) -> None:
    world = World(kv("small", "lbthp", 64, 4), chunks=2)
    blocks = world.some_blocks()
    world.slots = [world.slot_like_the_host(of_chunk, n) for n, of_chunk in enumerate(blocks)]
    card = card_of(fake, world)
    for slot in world.slots:
        card.know(slot.ctypes.data, slot.nbytes, readonly=True)
    assert card.scatter(blocks, "direct") == [GOOD] * 2
    assert fake.copied()["h2d"] < world.used  # what launches are told; no slot
    card.close()


@pytest.mark.parametrize("driver", [13000, 12080, 12020])
def test_every_drivers_way_of_many_copies(driver: int) -> None:
    with FakeCuda(driver) as fake:
        world = World(kv("small", "lbthp", 64, 4), chunks=2)
        clear(world)
        card, blocks = card_of(fake, world), world.some_blocks()
        card.know_slots()
        card.gather(blocks, "staged")
        assert card.scatter(blocks, "staged") == [GOOD] * 2
        assert (fake.count("batch") > 0) == (driver > 12020)
        assert np.array_equal(world.slots[1], world.slot_like_the_host(blocks[1], 1))
        card.close()
        del card


def test_a_launch_takes_few_multiprocessors(fake: FakeCuda) -> None:
    world = World(Case(8, 2, 4, 8, 4, 64, "lbthp", 2))
    card = card_of(fake, world)
    card.know_slots()
    card.gather(world.some_blocks(), "direct")
    assert fake.grids("lmkv_gather_16") == [16]  # two blocks on each of 8, for 64 segments
    card.close()


def test_a_launch_for_each_lane_full_of_slots(fake: FakeCuda) -> None:
    world = World(Case(2, 2, 11, 2, 4, 64, "lbthp", 2), chunks=5)
    card, blocks = card_of(fake, world, 2 * (world.used + 256)), world.some_blocks()
    card.know_slots()
    card.gather(blocks, "staged")
    assert card.scatter(blocks, "staged") == [GOOD] * 5
    assert fake.launches() == {"lmkv_gather_16": 5, "lmkv_scatter_16": 5}
    card.close()


def test_a_bad_slot_is_asked_once_more(fake: FakeCuda, path: str) -> None:
    world = World(kv("small", "lbthp", 64, 4), chunks=2)
    blocks = world.some_blocks()
    world.slots = [world.slot_like_the_host(of_chunk, n) for n, of_chunk in enumerate(blocks)]
    card = card_of(fake, world)
    card.know_slots()
    world.slots[1][world.layout.payload_offset + 5] ^= 1
    assert card.scatter(blocks, path) == [GOOD, DIGEST]
    assert fake.launches()["lmkv_scatter_16"] == 2
    card.close()


class Engine:
    """A stream of the engine's, whose forward writes KV when the stream comes to it."""

    def __init__(self, fake: FakeCuda) -> None:
        self.driver = Driver(fake)
        self.driver.begin()
        self.stream = self.driver.stream()

    def end(self) -> None:
        self.driver.good(self.driver.stream_destroy(self.stream))
        self.driver.good(self.driver.primary_release(0))


def test_copies_come_after_the_engines_work(fake: FakeCuda, path: str) -> None:
    """A gather and a scatter that did not wait would see, and be overwritten by, the forward."""
    world = World(kv("small", "lbthp", 64, 4), chunks=2)
    clear(world)
    card, engine, blocks = card_of(fake, world), Engine(fake), world.some_blocks()
    card.know_slots()
    late = np.random.default_rng(9).integers(0, 256, world.memory.size, np.uint8)
    fake.hold(engine.stream)
    engine.driver.call(engine.stream, lambda: np.copyto(world.memory, late))
    mark = card.gpu.mark(engine.stream)
    assert not mark.done()
    gathering = threading.Thread(target=lambda: card.gather(blocks, path, after=mark))
    gathering.start()
    assert fake.settle()
    assert gathering.is_alive() and not fake.launches()
    assert not world.slots[0].any() or path == "direct"
    fake.release(engine.stream)
    gathering.join(10)
    assert np.array_equal(world.memory, late)
    for n, of_chunk in enumerate(blocks):
        assert np.array_equal(world.slots[n], world.slot_like_the_host(of_chunk, n))

    fake.hold(engine.stream)
    engine.driver.call(engine.stream, lambda: world.memory.fill(0))
    mark = card.gpu.mark(engine.stream)
    payloads = [world.payload(of_chunk) for of_chunk in blocks]
    scattering = threading.Thread(target=lambda: card.scatter(blocks, path, after=mark))
    scattering.start()
    assert fake.settle()
    fake.release(engine.stream)
    scattering.join(10)
    for of_chunk, payload in zip(blocks, payloads):
        assert np.array_equal(world.payload(of_chunk), payload)
    card.close()
    engine.end()


FUNCTIONS = ("set_current", "capture_mode", "copy", "fill", "launch", "event_record")


@pytest.mark.parametrize("copy", ["gather", "scatter"])
def test_whichever_call_fails(fake: FakeCuda, path: str, copy: str) -> None:
    """One sentence, no slot that is half there, and the next copy works."""
    world = World(kv("small", "lbthp", 64, 4), chunks=2)
    clear(world)
    card, blocks = card_of(fake, world), world.some_blocks()
    card.know_slots()
    mark = card.gpu.mark(0)
    card.gather(blocks, path)

    def run() -> None:
        getattr(card, copy)(blocks, path, after=mark)

    before = {name: fake.calls(name) for name in FUNCTIONS}
    run()
    calls = {name: fake.calls(name) - before[name] for name in FUNCTIONS}
    calls["capture_mode"] //= 2  # the later ones put the thread's mode back, whatever they say
    calls |= {"event_query": 1, "stream_wait": 1, **({"copy_batch": 1} if path == "staged" else {})}
    for name, count in calls.items():
        assert count, name
        for nth in range(1, count + 1):
            fake.fail(name, nth, NUMBERS["OUT_OF_MEMORY"])
            with pytest.raises(RuntimeError, match="CUDA_ERROR_OUT_OF_MEMORY"):
                run()
            for slot, key, generation, _ in card.chunks(blocks):
                status = _native.check_slot(slot, world.layout, key, generation)
                assert status in (GOOD, SlotStatus.GONE), (name, nth)
            card.gather(blocks, path)
    assert card.scatter(blocks, path) == [GOOD] * 2
    assert fake.complaints() == []
    card.close()


def test_copies_go_on_while_a_graph_is_captured(fake: FakeCuda, path: str) -> None:
    """In a thread of their own: what they call would else end the engine's capture."""
    world = World(kv("small", "lbthp", 64, 4), chunks=2)
    clear(world)
    card, blocks = card_of(fake, world), world.some_blocks()
    fake.set(capturing=1)

    def all_of_it() -> None:
        card.know_slots()
        card.gather(blocks, path)
        assert card.scatter(blocks, path) == [GOOD] * 2
        card.close()
        done.append(True)

    done: list[bool] = []
    thread = threading.Thread(target=all_of_it)
    thread.start()
    thread.join(10)
    assert done == [True]
    fake.set(capturing=0)


def test_a_lost_context_ends_a_wait(fake: FakeCuda, path: str) -> None:
    world = World(kv("small", "lbthp", 64, 4), chunks=2)
    clear(world)
    card, engine, blocks = card_of(fake, world), Engine(fake), world.some_blocks()
    card.know_slots()
    fake.hold(engine.stream)
    engine.driver.call(engine.stream, lambda: None)
    mark = card.gpu.mark(engine.stream)
    errors: list[str] = []

    def gather() -> None:
        try:
            card.gather(blocks, path, after=mark)
        except RuntimeError as error:
            errors.append(str(error))

    gathering = threading.Thread(target=gather)
    gathering.start()
    assert fake.settle()
    fake.lose_context()
    gathering.join(10)
    assert not gathering.is_alive()
    assert len(errors) == 1 and "CUDA_ERROR_ILLEGAL_ADDRESS" in errors[0]
    assert all(int.from_bytes(slot[:8].tobytes(), "little") == 0 for slot in world.slots)
    with pytest.raises(RuntimeError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        card.scatter(blocks, path)
    fake.reset()


def test_what_a_gpu_must_be(fake: FakeCuda) -> None:
    library = str(fake.path)
    fake.set(compute_major=7, compute_minor=5, device_name="Old Card")
    with pytest.raises(
        RuntimeError, match=r"GPU 0, Old Card, has compute capability 7.5, lmkv needs 8.0"
    ):
        _native.Gpu(0, library)
    with pytest.raises(RuntimeError, match="gpu: 1, the driver has 1"):
        _native.Gpu(1, library)
    fake.fail("init", 1, NUMBERS["NO_DEVICE"])
    with pytest.raises(RuntimeError, match=r"cuInit: .*CUDA_ERROR_NO_DEVICE"):
        _native.Gpu(0, library)
    with pytest.raises(RuntimeError, match=r"there is no CUDA driver: .*nowhere"):
        _native.Gpu(0, "/nowhere/libcuda.so.1")
    fake.set(compute_major=9)
    gpu = _native.Gpu(0, library)
    with pytest.raises(RuntimeError, match=r"cuModuleLoadData: .*CUDA_ERROR_INVALID_IMAGE"):
        gpu.load(b"neither fatbin nor cubin")
    gpu.load(FATBIN)
    del gpu
