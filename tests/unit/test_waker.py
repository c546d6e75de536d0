"""A thread that polls is woken by others; its descriptor goes with the last who could wake it."""

from __future__ import annotations

import os
import threading

import pytest
from lmkv.core.descriptors import readable
from lmkv.core.waker import Waker


def test_it_is_awake_until_it_is_cleared() -> None:
    waker = Waker()
    assert not readable(waker.fd, 0)
    for _ in range(3):
        waker.wake()
    assert readable(waker.fd, 0) and readable(waker.fd, 0)
    waker.clear()
    assert not readable(waker.fd, 0)
    waker.clear()  # harmless


def test_another_thread_wakes_it() -> None:
    waker = Waker()
    thread = threading.Timer(0.01, waker.wake)
    thread.start()
    assert readable(waker.fd, 10.0)
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
