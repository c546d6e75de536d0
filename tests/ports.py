"""Ports of the loopback interface: free ones, and ones that somebody else has."""

from __future__ import annotations

import contextlib
import functools
import random
import socket
from collections.abc import Iterator

# Below those that a system gives out by itself.
BUSY = 10_000, 20_000
FREE = 20_000, 32_000
STRETCH = 250


class Stretch:
    """Ports that no other process of tests takes: this one has the first of them while it lives."""

    def __init__(self) -> None:
        for first in range(*FREE, STRETCH):
            if had := _take(first):
                self._first, self._had, self._next = first, had, 1
                return
        raise OSError(f"no stretch of {STRETCH} ports is free from {FREE[0]} to {FREE[1]}")

    def free(self, count: int) -> int:
        for _ in range(STRETCH):
            if self._next + count > STRETCH:
                self._next = 1
            port = self._first + self._next
            taken = [_take(port + i) for i in range(count)]
            for each in filter(None, taken):
                each.close()
            self._next += count
            if all(taken):
                return port
        raise OSError(f"no {count} ports in a row are free from {self._first} on")


def _take(port: int) -> socket.socket | None:
    taken = socket.socket()
    try:
        taken.bind(("127.0.0.1", port))
    except OSError:
        taken.close()
        return None
    return taken


@functools.cache
def _stretch() -> Stretch:
    return Stretch()


def free_port(count: int = 2) -> int:
    """A port that is free, and so are the next ones; none of them is given again soon."""
    return _stretch().free(count)


@contextlib.contextmanager
def busy_ports(count: int) -> Iterator[str]:
    """`FIRST-LAST`: a range whose ports are all taken on the loopback interface."""
    while True:
        first = random.randrange(BUSY[0], BUSY[1] - count)
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    taken = stack.enter_context(socket.socket())
                    taken.bind(("127.0.0.1", port))
                    taken.listen()
            except OSError:  # another process has one of them: it may end
                continue
            yield f"{first}-{first + count - 1}"
            return
