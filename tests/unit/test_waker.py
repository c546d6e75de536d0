"""A thread that polls is woken by others; its descriptor goes with the last who could wake it."""

from __future__ import annotations

import os
import select
import threading

import pytest
from lmkv.core.waker import Waker


def ready(waker: Waker, deadline: float = 0.0) -> bool:
    poll = select.poll()
    poll.register(waker.fd, select.POLLIN)
    return bool(poll.poll(1000 * deadline))


def test_it_is_awake_until_it_is_cleared() -> None:
    waker = Waker()
    assert not ready(waker)
    for _ in range(3):
        waker.wake()
    assert ready(waker) and ready(waker)
    waker.clear()
    assert not ready(waker)
    waker.clear()  # harmless


def test_another_thread_wakes_it() -> None:
    waker = Waker()
    thread = threading.Timer(0.01, waker.wake)
    thread.start()
    assert ready(waker, 10.0)
    thread.join()


def test_its_descriptor_is_closed_once_nobody_can_wake_it() -> None:
    waker = Waker()
    fd, wake = waker.fd, waker.wake
    del waker
    wake()
    os.fstat(fd)
    del wake
    with pytest.raises(OSError):
        os.fstat(fd)
