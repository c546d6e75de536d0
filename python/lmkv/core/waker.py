"""Waker: any thread wakes the one that polls."""

from __future__ import annotations

import contextlib
import os
import weakref


class Waker:
    """Poll `fd` for reading, then clear() it. It is closed once nobody refers to the Waker: a late
    wake() would reach what has the number of a closed descriptor."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        weakref.finalize(self, os.close, self.fd)

    def wake(self) -> None:
        os.eventfd_write(self.fd, 1)

    def clear(self) -> None:
        with contextlib.suppress(BlockingIOError):  # nobody has woken it
            os.eventfd_read(self.fd)
