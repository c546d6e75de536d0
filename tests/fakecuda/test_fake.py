"""The fake driver: its memory, its errors, and what it says of those who use it wrongly."""

import ctypes as c
import mmap
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from tests.fakecuda.build import ROOT
from tests.fakecuda.fake import FakeCuda
from tests.fakecuda.raw import FUNCTIONS, NUMBERS, Driver, IpcHandle
from tests.kernels.bodies import aligned

READ_ONLY, PORTABLE = NUMBERS["HOST_REGISTER_READ_ONLY"], NUMBERS["HOST_REGISTER_PORTABLE"]
ILLEGAL_ADDRESS, OUT_OF_MEMORY = NUMBERS["ILLEGAL_ADDRESS"], NUMBERS["OUT_OF_MEMORY"]


def bytes_at(address: int, size: int) -> bytes:
    return c.string_at(address, size)


def test_a_driver_of_cuda_13_has_every_function_and_older_ones_lack_batches(fake: FakeCuda) -> None:
    for symbol, _ in FUNCTIONS.values():
        assert hasattr(fake.lib, symbol), symbol
    for version, batch, batch_12 in ((12080, False, True), (12020, False, False)):
        with FakeCuda(version) as older:
            driver = Driver(older)
            assert driver.made(driver.driver_version) == version
            assert (driver.copy_batch is not None) == batch
            assert (driver.copy_batch_12 is not None) == batch_12


def test_before_init_and_without_a_context(fake: FakeCuda) -> None:
    driver, at = Driver(fake), c.c_uint64()
    assert driver.mem_alloc(c.byref(at), 16) == NUMBERS["NOT_INITIALIZED"]
    assert driver.device_count(c.byref(at)) == NUMBERS["NOT_INITIALIZED"]
    driver.good(driver.init(0))
    assert driver.mem_alloc(c.byref(at), 16) == NUMBERS["INVALID_CONTEXT"]
    context = driver.begin()
    elsewhere: list[int] = []
    thread = threading.Thread(target=lambda: elsewhere.append(driver.mem_alloc(c.byref(at), 16)))
    thread.start()
    thread.join()
    assert elsewhere == [NUMBERS["INVALID_CONTEXT"]]  # it is each thread's own
    driver.good(driver.primary_release(0))
    assert driver.set_current(context) == NUMBERS["INVALID_CONTEXT"]


def test_devices(fake: FakeCuda) -> None:
    fake.set(devices=2, device_name="Small GPU", multiprocessors=20, compute_major=8)
    driver, text = Driver(fake), c.create_string_buffer(20)
    driver.good(driver.init(0))
    assert driver.made(driver.device_count) == 2
    assert driver.made(driver.device_attribute, NUMBERS["MULTIPROCESSOR_COUNT"], 1) == 20
    assert driver.made(driver.device_attribute, NUMBERS["COMPUTE_CAPABILITY_MAJOR"], 1) == 8
    driver.good(driver.device_name(text, 20, 1))
    assert text.value == b"Small GPU"
    driver.good(driver.device_bus_id(text, 20, 1))
    assert text.value == b"0000:02:00.0"
    assert driver.device_name(text, 20, 2) == NUMBERS["INVALID_DEVICE"]


def test_errors_have_names(fake: FakeCuda) -> None:
    driver, text = Driver(fake), c.c_char_p()
    for name in ("SUCCESS", "OUT_OF_MEMORY", "ILLEGAL_ADDRESS", "SYSTEM_DRIVER_MISMATCH"):
        driver.good(driver.error_name(NUMBERS[name], c.byref(text)))
        assert text.value is not None and text.value.decode().endswith(name)
        driver.good(driver.error_string(NUMBERS[name], c.byref(text)))
        assert text.value
    assert driver.error_name(12345, c.byref(text)) == NUMBERS["INVALID_VALUE"]


def test_device_memory_ends(fake: FakeCuda, driver: Driver) -> None:
    fake.set(memory=10_000)
    at, free, total = driver.alloc(6000), c.c_size_t(), c.c_size_t()
    driver.good(driver.mem_info(c.byref(free), c.byref(total)))
    assert (free.value, total.value) == (4000, 10_000)
    assert driver.mem_alloc(c.byref(free), 4001) == OUT_OF_MEMORY
    assert bytes_at(at, 6000) == b"\xa5" * 6000
    driver.good(driver.mem_free(at))
    assert driver.mem_free(at) == NUMBERS["INVALID_VALUE"]


def test_a_write_behind_an_allocation_is_found_when_it_is_freed(
    fake: FakeCuda, driver: Driver
) -> None:
    at = driver.alloc(100)
    c.memset(at + 102, 0, 1)
    driver.good(driver.mem_free(at))
    [said] = fake.complaints()
    assert "byte 102 of an allocation of 100 bytes" in said


def test_registration_of_host_memory(fake: FakeCuda, driver: Driver) -> None:
    room = aligned(8192)
    at = room.ctypes.data
    driver.good(driver.host_register(at, 8192, PORTABLE))
    again = driver.host_register(at + 4096, 4096, PORTABLE)
    assert again == NUMBERS["HOST_MEMORY_ALREADY_REGISTERED"]
    assert driver.made(driver.host_pointer, at + 10, 0) == at + 10
    assert driver.host_unregister(at + 4096) == NUMBERS["HOST_MEMORY_NOT_REGISTERED"]
    driver.good(driver.host_unregister(at))
    assert driver.host_pointer(c.byref(c.c_uint64()), at, 0) == NUMBERS["INVALID_VALUE"]


def test_memory_mapped_for_reading_is_registered_as_that(fake: FakeCuda, driver: Driver) -> None:
    with mmap.mmap(-1, 4096, prot=mmap.PROT_READ) as mapped:
        at = np.frombuffer(mapped, np.uint8).ctypes.data
        assert driver.host_register(at, 4096, PORTABLE) == NUMBERS["INVALID_VALUE"]
        driver.good(driver.host_register(at, 4096, READ_ONLY))
        driver.good(driver.host_unregister(at))
        fake.set(read_only_registration=0)
        which = NUMBERS["READ_ONLY_HOST_REGISTER_SUPPORTED"]
        assert driver.made(driver.device_attribute, which, 0) == 0
        assert driver.host_register(at, 4096, READ_ONLY) == NUMBERS["NOT_SUPPORTED"]


def test_a_write_to_memory_registered_for_reading_loses_the_context(
    fake: FakeCuda, driver: Driver
) -> None:
    room, at = aligned(4096), driver.alloc(64)
    driver.good(driver.host_register(room.ctypes.data, 4096, READ_ONLY))
    driver.good(driver.copy(at, room.ctypes.data, 64, 0))
    assert fake.drain() and bytes_at(at, 64) == bytes(64)
    driver.good(driver.copy(room.ctypes.data, at, 64, 0))
    assert fake.drain() and not room.any()
    [said] = fake.complaints()
    assert "registered for reading only" in said
    assert driver.mem_alloc(c.byref(c.c_uint64()), 16) == ILLEGAL_ADDRESS
    # What is put away is away, though the driver says the same of every call.
    assert driver.mem_free(at) == ILLEGAL_ADDRESS
    assert driver.host_unregister(room.ctypes.data) == ILLEGAL_ADDRESS
    driver.good(driver.primary_release(0))


def test_freed_memory_is_not_used_again_and_not_touched(fake: FakeCuda, driver: Driver) -> None:
    stream, at = driver.stream(), driver.alloc(64)
    fake.hold(stream)
    driver.good(driver.fill(at, 1, 16, stream))
    driver.good(driver.mem_free(at))
    assert driver.alloc(64) != at
    fake.release(stream)
    assert fake.drain()
    [said] = fake.complaints()
    assert "a fill writes 64 bytes" in said and "freed" in said
    fake.reset()


def test_the_nth_call_fails_and_does_nothing(fake: FakeCuda, driver: Driver) -> None:
    fake.fail("mem_alloc", 2, OUT_OF_MEMORY)
    before, first = fake.calls("cuMemAlloc_v2"), driver.alloc(16)
    assert driver.mem_alloc(c.byref(c.c_uint64()), 16) == OUT_OF_MEMORY
    third = driver.alloc(16)
    assert fake.calls("mem_alloc") == before + 3
    fake.fail("mem_free", 1, NUMBERS["NOT_PERMITTED"], sticky=True)
    assert driver.mem_free(first) == driver.mem_free(first) == NUMBERS["NOT_PERMITTED"]
    assert len([one for one in fake.live() if "allocation" in one]) == 2
    fake.reset()
    driver.begin()
    fake.fail("*", 3, 999)
    assert [driver.mem_free(third) for _ in range(4)] == [1, 1, 999, 1]


def test_what_is_left_is_said(fake: FakeCuda, driver: Driver) -> None:
    room = aligned(4096)
    stream, event = driver.stream(), driver.event()
    at = driver.alloc(16)
    driver.good(driver.host_register(room.ctypes.data, 4096, PORTABLE))
    fake.hold(stream)
    driver.good(driver.event_record(event, stream))
    with pytest.raises(AssertionError) as said:
        fake.check()
    assert str(said.value).splitlines() == [
        *sorted(
            (
                f"left: an allocation of 16 bytes at {at:#x}",
                f"left: a registered range of 4096 bytes at {room.ctypes.data:#x}",
            ),
            key=lambda line: int(line.split()[-1], 16),
        ),
        *(f"left: stream {stream:#x}", f"left: work in stream {stream:#x}"),
        *(f"left: event {event:#x}", "left: the primary context of device 0, retained 1 time"),
    ]
    assert fake.live() == []  # it is fresh now
    assert driver.stream_destroy(stream) == NUMBERS["NOT_INITIALIZED"]


def test_a_handle_that_is_gone(fake: FakeCuda, driver: Driver) -> None:
    event = driver.event()
    driver.good(driver.event_destroy(event))
    assert driver.event_query(event) == NUMBERS["INVALID_HANDLE"]
    assert fake.complaints() == [f"there is no event {event:#x}, or not any more"]


EXPORTER = """
import sys
from tests.fakecuda.fake import FakeCuda
from tests.fakecuda.raw import Driver, IpcHandle
import ctypes as c
fake = FakeCuda()
driver, handle = Driver(fake), IpcHandle()
driver.begin()
at = driver.alloc(8192)
driver.good(driver.fill(at, 0x04030201, 2048, 0))
assert fake.drain()
driver.good(driver.ipc_export(c.byref(handle), at))
print(bytes(handle).hex(), flush=True)
sys.stdin.readline()
"""


def test_another_process_opens_an_allocation(fake: FakeCuda, driver: Driver) -> None:
    """It is the same memory, until the process that has it is gone: then nothing opens it."""
    words = [sys.executable, "-c", EXPORTER]
    ends = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, cwd=ROOT, **ends) as exporter:
        assert exporter.stdout is not None
        handle = IpcHandle.from_buffer_copy(bytes.fromhex(exporter.stdout.readline()))
        lazy = NUMBERS["IPC_LAZY_PEER_ACCESS"]
        at = driver.made(driver.ipc_open, handle, lazy)
        assert driver.made(driver.ipc_open, handle, lazy) == at  # counted
        assert bytes_at(at, 8192) == b"\1\2\3\4" * 2048
        driver.good(driver.ipc_close(at))
        driver.good(driver.ipc_close(at))
        assert driver.ipc_close(at) == NUMBERS["INVALID_VALUE"]
        exporter.send_signal(signal.SIGKILL)
        exporter.wait(10)
        gone = driver.ipc_open(c.byref(c.c_uint64()), handle, lazy)
        assert gone == NUMBERS["INVALID_VALUE"]
