"""Launches are the kernels' bodies, and touch only what the device has."""

import ctypes as c
from collections.abc import Iterator

import numpy as np
import pytest
from blake3 import blake3
from lmkv._native import SKIPPED_BLOCK, SlotStatus

from tests.fakecuda.fake import FakeCuda
from tests.fakecuda.jobs import HashJob, OnDevice
from tests.fakecuda.raw import NUMBERS, Driver
from tests.kernels.bodies import Case, World, addresses, aligned

INVALID_VALUE, ILLEGAL_ADDRESS = NUMBERS["INVALID_VALUE"], NUMBERS["ILLEGAL_ADDRESS"]
MISALIGNED_ADDRESS = 716


@pytest.fixture
def device(fake: FakeCuda, driver: Driver) -> Iterator[OnDevice]:
    on_device = OnDevice(World(Case(2, 2, 7, 2, 4, 64, "lbthp", 3), chunks=2), fake, driver)
    yield on_device
    on_device.put_away()


def test_gather_and_publish_make_the_hosts_slot_and_scatter_reads_it(
    fake: FakeCuda, device: OnDevice
) -> None:
    world = device.world
    source, target = world.some_blocks(), world.some_blocks()
    target[1][0] = SKIPPED_BLOCK
    payloads = [world.payload(blocks) for blocks in source]
    device.gather(source)
    assert fake.drain()
    for chunk, blocks in enumerate(source):
        assert np.array_equal(world.slots[chunk], world.slot_like_the_host(blocks, chunk))
    expected = world.expect_scatter(target, payloads)
    device.driver.good(device.copy("scatter_16", target))
    assert fake.drain()
    assert device.verdicts.tolist() == [SlotStatus.GOOD] * 2
    assert np.array_equal(world.memory, expected)
    for name in ("verify_16", "audit_8"):
        device.driver.good(device.copy(name, source))
        assert fake.drain()
    assert fake.launches() == {
        f"lmkv_{name}": 1
        for name in ("clear", "gather_16", "publish", "scatter_16", "verify_16", "audit_8")
    }
    assert fake.grids("lmkv_gather_16") == [3]


def test_parameters_are_copied_at_the_launch(fake: FakeCuda, device: OnDevice) -> None:
    world = device.world
    job, function = device.job("gather_16"), device.function("lmkv_gather_16")
    device.chunk_blocks[:] = blocks = world.some_blocks()
    fake.hold(device.stream)
    device.driver.good(device.driver.run(function, job, device.stream))
    c.memset(c.byref(job), 0, c.sizeof(job))
    fake.release(device.stream)
    assert fake.drain()
    payload = world.slots[1][world.layout.payload_offset :].reshape(world.segments, -1)
    assert np.array_equal(payload, world.payload(blocks[1]))


def test_hashes(fake: FakeCuda, device: OnDevice) -> None:
    tokens = aligned(10 * 64, offset=4)
    tokens[:] = np.random.default_rng(1).integers(0, 256, tokens.size, np.uint8)
    chunks = addresses([tokens.ctypes.data + n * 128 for n in range(5)])
    digests = aligned(5 * 32)
    for array in (tokens, chunks, digests):
        fake.adopt(array)
    job = HashJob(chunks.ctypes.data, digests.ctypes.data, 5, 2)
    run = device.driver.run
    assert run(device.function("lmkv_hash_4"), job, threads=256) == INVALID_VALUE
    assert run(device.function("lmkv_hash_4"), job, threads=64) == 0
    assert fake.drain()
    expected = [blake3(tokens[n * 128 : n * 128 + 128].tobytes()).digest() for n in range(5)]
    assert digests.tobytes() == b"".join(expected)
    assert run(device.function("lmkv_hash_16"), job, threads=64) == 0
    assert fake.drain()
    assert device.driver.event_create(c.byref(c.c_uint64()), 0) == MISALIGNED_ADDRESS
    [said] = fake.complaints()
    assert said.startswith("lmkv_hash_16 reads 128 bytes of its chunk 0")
    fake.reset()


def test_a_launch_that_no_kernel_takes(fake: FakeCuda, device: OnDevice) -> None:
    job, gather = device.job("gather_16"), device.function("lmkv_gather_16")
    run = device.driver.run
    assert run(gather, job, threads=64) == INVALID_VALUE
    assert run(gather, job, blocks=0) == INVALID_VALUE
    assert run(gather, job, shared=1) == INVALID_VALUE
    made = c.c_uint64()
    find = device.driver.module_function
    assert find(c.byref(made), device.module, b"lmkv_gather_2") == NUMBERS["NOT_FOUND"]
    load = device.driver.module_load
    for image in (b"no image", b""):
        text = c.create_string_buffer(image)
        assert load(c.byref(made), text) == NUMBERS["INVALID_IMAGE"]
    for image in (b"//\n.version 8.0", b".version 8.0", b"\x7fELF\2"):
        device.driver.good(load(c.byref(made), c.create_string_buffer(image)))
        device.driver.good(device.driver.module_unload(made.value))
    assert fake.settle() and not fake.log()


def test_a_launch_on_memory_that_is_not_the_devices_loses_the_context(
    fake: FakeCuda, device: OnDevice
) -> None:
    """Whichever array it is. Nothing was written, and every call says so from then on."""
    blocks, count = device.world.some_blocks(), len(device.adopted)
    needed = {"chunk_blocks", "layers", "slots", "names", "digests", "arrived", "headers", "page"}
    missing = set()
    for which in range(count):
        fake.disown(device.adopted[which].ctypes.data)
        before = device.world.slots[0].copy()
        device.driver.good(device.copy("gather_16", blocks))
        assert fake.drain()
        said = fake.complaints()
        if not said:  # verdicts: a gather has none
            continue
        assert np.array_equal(device.world.slots[0], before)
        assert device.driver.fill(device.layers.ctypes.data, 0, 1, 0) == ILLEGAL_ADDRESS
        missing.add(said[0].partition(" of its ")[2].partition(":")[0].partition(",")[0])
        device.put_back()
    assert missing == needed


def test_an_unregistered_slot_and_a_block_too_far(fake: FakeCuda, device: OnDevice) -> None:
    world, blocks = device.world, device.world.some_blocks()
    device.driver.good(device.driver.host_unregister(world.slots[1].ctypes.data))
    device.driver.good(device.copy("gather_16", blocks))
    assert fake.drain()
    [said] = fake.complaints()
    assert "lmkv_gather_16 writes" in said and "slot's table, chunk 1" in said
    device.put_back()
    blocks[1][2] = 7  # of 7 blocks
    device.driver.good(device.copy("gather_16", blocks))
    assert fake.drain()
    [said] = fake.complaints()
    assert "layer 1, block 7" in said and "behind the end of an adopted range" in said
    device.put_back()


def test_a_scatter_into_pages_from_a_slot_that_may_be_read_alone(
    fake: FakeCuda, device: OnDevice
) -> None:
    world, driver = device.world, device.driver
    blocks = world.some_blocks()
    device.gather(blocks)
    assert fake.drain()
    for slot in world.slots:
        at, read_only = slot.ctypes.data, NUMBERS["HOST_REGISTER_READ_ONLY"]
        driver.good(driver.host_unregister(at))
        driver.good(driver.host_register(at, slot.nbytes, read_only))
    driver.good(device.copy("scatter_16", blocks))
    assert fake.drain() and device.verdicts.tolist() == [SlotStatus.GOOD] * 2
    driver.good(device.put_headers("lmkv_clear"))
    assert fake.drain()
    [said] = fake.complaints()
    assert said.startswith("lmkv_clear writes 8 bytes of its slot's header, chunk 0")
    assert "registered for reading only" in said
    device.put_back()


def test_arrived_that_is_not_zero_is_told(fake: FakeCuda, device: OnDevice) -> None:
    device.world.arrived[1] = 1
    device.driver.good(device.copy("gather_16", device.world.some_blocks()))
    assert fake.drain()
    assert fake.complaints() == ["lmkv_gather_16: its arrived are not zero before the launch"]
