"""Ports that somebody else has."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Iterator


@contextlib.contextmanager
def busy_ports(count: int) -> Iterator[str]:
    """`FIRST-LAST`: a range whose ports are all taken on the loopback interface."""
    while True:
        first = random.randrange(10_000, 30_000 - count)
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
