"""A controller's client that waits: for the CLI, tools and tests.

`ask(message, *arrays)` sends and takes the answer; every wait ends at the deadline. Nothing is
registered: what only instances may ask is answered `Refused`.
"""

from __future__ import annotations

import socket
from math import ceil
from types import TracebackType
from typing import TYPE_CHECKING

import zmq

from lmkv.core import wire
from lmkv.core.clock import Deadline
from lmkv.core.config import split_address
from lmkv.core.connections import CONNECTING
from lmkv.core.keyfiles import ClientKeys, as_client
from lmkv.core.messages import AnyMessage, Message

if TYPE_CHECKING:
    from typing_extensions import Self


class Unreachable(Exception):
    """Nobody answered in time; the text is one sentence with the address."""


MOST_FRAME_BYTES = 64 << 20  # of an answer
LOOK = 0.5  # seconds for a look whether anybody listens


def options(address: str) -> dict[int, int]:
    """A client's socket options. Raises ValueError unless `address` is tcp://HOST:PORT."""
    host, _ = split_address(address)
    return CONNECTING | {zmq.IPV6: int(":" in host), zmq.MAXMSGSIZE: MOST_FRAME_BYTES}


def unheard(address: str, keys: ClientKeys | None) -> str:
    """What nobody's listening there, or nobody's letting us in, looks like from here."""
    return f"no controller listens at {address}, or {_lets(keys)}"


def _lets(keys: ClientKeys | None) -> str:
    return "it does not accept these keys" if keys else "it asks for keys (LMKV_KEYS)"


def _unheard(address: str, keys: ClientKeys | None) -> str:
    """The same, where there is time to look which."""
    host, port = split_address(address)
    try:
        socket.create_connection((host.strip("[]"), port), LOOK).close()
    except OSError:
        return f"no controller listens at {address}"
    return f"what listens at {address} is no controller's state socket, or {_lets(keys)}"


class Client:
    """`address` is tcp://HOST:PORT (ValueError if not), `deadline` seconds for each answer; `keys`
    where the controller asks for them."""

    def __init__(self, address: str, deadline: float = 3.0, keys: ClientKeys | None = None) -> None:
        self.address = address
        self.keys = keys
        self.deadline = deadline
        wanted = options(address)
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        for option, value in wanted.items():
            self._socket.setsockopt(option, value)
        as_client(self._socket, keys)
        self._socket.connect(address)

    def ask(self, message: Message, *arrays: bytes) -> tuple[AnyMessage, list[bytes]]:
        """The answer to `message`: the next one, or the one with its `request` where it has one.
        Raises Unreachable."""
        until = Deadline(self.deadline)
        self.send(message, *arrays, until=until)
        request = getattr(message, "request", 0)
        while True:
            answer, frames = self.receive(until)
            if not request or getattr(answer, "request", request) == request:
                return answer, frames

    def connected(self, seconds: float) -> None:
        """Raises Unreachable when nobody is connected in time."""
        if not self._socket.poll(ceil(seconds * 1000), zmq.POLLOUT):
            raise Unreachable(_unheard(self.address, self.keys))

    def send(self, message: Message, *arrays: bytes, until: Deadline | None = None) -> None:
        """Raises Unreachable when nobody is connected in time."""
        self.connected((until or Deadline(self.deadline)).left())
        self._socket.send_multipart(wire.encode(message, *arrays), zmq.NOBLOCK)

    def receive(self, until: Deadline | None = None) -> tuple[AnyMessage, list[bytes]]:
        """The next message. Raises Unreachable, WireError for what is no message of ours."""
        until = until or Deadline(self.deadline)
        if not self._socket.poll(ceil(until.left() * 1000), zmq.POLLIN):
            raise Unreachable(f"{self.address} did not answer in {self.deadline:g} s")
        return wire.decode(self._socket.recv_multipart(zmq.NOBLOCK))

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
