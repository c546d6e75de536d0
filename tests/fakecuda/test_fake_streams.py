"""Streams are queues: what waits, what is held, and what comes in any order."""

import ctypes as c
import threading

import numpy as np
import pytest

from tests.fakecuda.fake import FakeCuda
from tests.fakecuda.raw import NUMBERS, Driver
from tests.kernels.bodies import aligned

NOT_READY, INVALID_VALUE = NUMBERS["NOT_READY"], NUMBERS["INVALID_VALUE"]


@pytest.fixture
def forward(fake: FakeCuda, driver: Driver):
    """The engine's stream writes what ours copies."""

    class Forward:
        engine, ours = driver.stream(), driver.stream()
        page, copy = np.zeros(64, np.uint8), np.zeros(64, np.uint8)
        event = driver.event()

        def run(self) -> None:
            driver.call(self.engine, lambda: self.page.fill(7))
            driver.good(driver.event_record(self.event, self.engine))

        def copy_page(self) -> None:
            driver.good(driver.copy(self.copy.ctypes.data, self.page.ctypes.data, 64, self.ours))

    forward = Forward()
    fake.adopt(forward.page)
    fake.adopt(forward.copy)
    yield forward
    for stream in (forward.engine, forward.ours):
        driver.good(driver.stream_destroy(stream))
    driver.good(driver.event_destroy(forward.event))


def test_a_copy_waits_for_its_event(fake: FakeCuda, driver: Driver, forward) -> None:
    fake.hold(forward.engine)
    forward.run()
    driver.good(driver.stream_wait(forward.ours, forward.event, 0))
    forward.copy_page()
    assert fake.settle() and not fake.drain(0.01)
    assert fake.pending(forward.ours) == 2 and not forward.copy.any()
    assert driver.event_query(forward.event) == NOT_READY
    fake.release(forward.engine)
    assert fake.drain()
    assert (forward.copy == 7).all()
    assert driver.event_query(forward.event) == 0
    assert [one.kind for one in fake.log()] == ["host", "record", "wait", "copy"]
    assert fake.copied() == {"d2d": 64}


def test_without_the_wait_it_copies_what_was_there_before(fake: FakeCuda, forward) -> None:
    fake.hold(forward.engine)
    forward.run()
    forward.copy_page()
    assert fake.drain()
    fake.release(forward.engine)
    assert fake.drain()
    assert not forward.copy.any() and forward.page.any()


def test_what_no_event_orders_comes_in_any_order(fake: FakeCuda, driver: Driver, forward) -> None:
    seen = set()
    for seed in range(20):
        fake.seed(seed)
        forward.page[:] = forward.copy[:] = 0
        fake.hold_all()
        forward.run()
        forward.copy_page()
        fake.release_all()
        assert fake.drain()
        seen.add(int(forward.copy[0]))
    assert seen == {0, 7}


def test_a_wait_is_for_the_last_record_at_the_time_of_the_call(
    fake: FakeCuda, driver: Driver, forward
) -> None:
    driver.good(driver.stream_wait(forward.ours, forward.event, 0))  # never recorded: no wait
    assert driver.event_query(forward.event) == 0
    assert fake.pending(forward.ours) == 0
    driver.good(driver.event_record(forward.event, forward.ours))
    assert fake.drain()
    driver.good(driver.stream_wait(forward.ours, forward.event, 0))
    fake.hold(forward.engine)
    forward.run()  # records again, later
    forward.copy_page()
    assert fake.drain()  # ours has waited for the first record alone
    assert driver.event_query(forward.event) == NOT_READY
    fake.release(forward.engine)
    assert fake.drain()


def test_step_by_step(fake: FakeCuda, driver: Driver, forward) -> None:
    fake.hold_all()
    later = driver.stream()  # held from its birth
    driver.good(driver.fill(forward.page.ctypes.data, 1, 1, later))
    driver.good(driver.fill(forward.page.ctypes.data + 4, 2, 1, later))
    assert fake.streams() == [forward.engine, forward.ours, later]
    assert fake.settle() and not forward.page.any()
    assert fake.step(later)
    assert (forward.page[0], forward.page[4]) == (1, 0)
    assert fake.step(later) and forward.page[4] == 2
    assert not fake.step(later, 0.01)
    driver.good(driver.fill(forward.page.ctypes.data, 3, 1, later))
    driver.good(driver.stream_destroy(later))  # its work is done all the same
    assert forward.page[0] == 1
    fake.release_all()
    assert fake.drain() and forward.page[0] == 3
    with pytest.raises(ValueError, match="no stream"):
        fake.hold(later)


def test_pageable_memory_is_read_at_the_call_and_registered_memory_later(
    fake: FakeCuda, driver: Driver, forward
) -> None:
    pageable, registered = aligned(64), aligned(64)
    driver.good(driver.host_register(registered.ctypes.data, 64, 0))
    fake.hold(forward.ours)
    for to, source in ((forward.page, pageable), (forward.copy, registered)):
        driver.good(driver.copy(to.ctypes.data, source.ctypes.data, 64, forward.ours))
    pageable[:] = registered[:] = 9
    fake.release(forward.ours)
    assert fake.drain()
    assert not forward.page.any() and (forward.copy == 9).all()
    assert fake.copied() == {"h2d": 128}
    driver.good(driver.host_unregister(registered.ctypes.data))
    nowhere = driver.copy(forward.page.ctypes.data, 4096, 64, forward.ours)
    assert nowhere == INVALID_VALUE


@pytest.mark.parametrize("version", [13000, 12080])
def test_many_copies_in_one_call(version: int) -> None:
    with FakeCuda(version) as fake:
        driver = Driver(fake)
        driver.begin()
        stream, room, at = driver.stream(), aligned(4096), driver.alloc(4096)
        room[:] = np.arange(4096) % 251
        driver.good(driver.host_register(room.ctypes.data, 4096, 0))
        # Back to front, 16 bytes each.
        copies = [(at + 4080 - n, room.ctypes.data + n, 16) for n in range(0, 4096, 16)]
        assert driver.batch(copies, 0) == INVALID_VALUE  # not in the default stream
        assert driver.batch(copies, stream, order=0) == INVALID_VALUE
        driver.good(driver.batch(copies, stream))
        assert fake.drain()
        expected = room.reshape(256, 16)[::-1].tobytes()
        assert c.string_at(at, 4096) == expected
        assert (fake.count("batch"), fake.copied()) == (1, {"h2d": 4096})
        driver.good(driver.host_unregister(room.ctypes.data))
        driver.good(driver.mem_free(at))
        driver.good(driver.stream_destroy(stream))
        driver.good(driver.primary_release(0))


def test_a_lost_context_drops_its_work(fake: FakeCuda, driver: Driver, forward) -> None:
    fake.hold(forward.engine)
    forward.run()
    fake.lose_context(NUMBERS["LAUNCH_FAILED"])
    assert driver.event_query(forward.event) == NUMBERS["LAUNCH_FAILED"]
    assert driver.event_record(forward.event, forward.ours) == NUMBERS["LAUNCH_FAILED"]
    assert fake.pending(forward.engine) == 0 and not forward.page.any()
    fake.reset()
    driver.begin()
    forward.engine, forward.ours, forward.event = driver.stream(), driver.stream(), driver.event()


def test_times_between_events(fake: FakeCuda, driver: Driver) -> None:
    start, end = driver.made(driver.event_create, 0), driver.made(driver.event_create, 0)
    took = c.c_float(-1)
    for event in (start, end):
        driver.good(driver.event_record(event, 0))
    assert fake.drain()
    driver.good(driver.event_elapsed(c.byref(took), start, end))
    assert took.value >= 0
    untimed = driver.event()
    invalid = driver.event_elapsed(c.byref(took), start, untimed)
    assert invalid == NUMBERS["INVALID_HANDLE"]
    for event in (start, end, untimed):
        driver.good(driver.event_destroy(event))


def test_many_threads_at_once(fake: FakeCuda, driver: Driver) -> None:
    """Each has its own stream, memory and event; nobody's bytes are another's."""
    context = driver.made(driver.primary_retain, 0)
    wrong: list[object] = []

    def one(number: int) -> None:
        driver.good(driver.set_current(context))
        stream, event, at = driver.stream(), driver.event(), driver.alloc(256)
        for round_ in range(20):
            driver.good(driver.fill(at, number << 8 | round_, 64, stream))
            driver.good(driver.event_record(event, stream))
            while driver.event_query(event) == NOT_READY:
                pass
            if c.string_at(at, 256) != (number << 8 | round_).to_bytes(4, "little") * 64:
                wrong.append((number, round_))
        driver.good(driver.mem_free(at))
        driver.good(driver.event_destroy(event))
        driver.good(driver.stream_destroy(stream))

    threads = [threading.Thread(target=one, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong and fake.count("fill") == 120
    driver.good(driver.primary_release(0))
