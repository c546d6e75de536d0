"""The agent's sockets. Every one connects, none waits: receiving takes what is there.

A link belongs to one thread at a time. DEALERs send nothing while nobody listens, so that no queue
grows towards a controller or mover that is gone.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import zmq

from lmkv.agent.refusals import Refuse, ignore
from lmkv.core import wire
from lmkv.core.connections import CONNECTING
from lmkv.core.keyfiles import ClientKeys, as_client
from lmkv.core.messages import AnyMessage, Message

OPTIONS = CONNECTING | {zmq.SNDHWM: 4096, zmq.RCVHWM: 4096, zmq.MAXMSGSIZE: 16 << 20}
NOBLOCK, READABLE = int(zmq.NOBLOCK), int(zmq.POLLIN)  # enums are slow
BULK = 64  # messages of up to 112 KiB in a socket's queue


class Link:
    """A DEALER to `address`; `keys` where that asks for them. To a controller (by default whatever
    is reached by TCP) what does not fit in a queue waits in an outbox, and the queue is short."""

    def __init__(
        self, address: str, keys: ClientKeys | None = None, short: bool | None = None
    ) -> None:
        self.address = address
        self.refuse: Refuse = ignore  # hears of what is no message of ours
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        for option, value in OPTIONS.items():
            self.socket.setsockopt(option, value)
        self.socket.setsockopt(zmq.IPV6, int("[" in address))
        if short if short is not None else address.startswith("tcp://"):
            self.socket.setsockopt(zmq.SNDHWM, BULK)
        # The same after a reconnection, so that what waits for this end still finds it.
        self.socket.setsockopt(zmq.ROUTING_ID, b"a" + secrets.token_bytes(15))
        as_client(self.socket, keys)
        self.socket.connect(address)

    def send(self, message: Message, *arrays: bytes) -> bool:
        """False when it cannot go out now."""
        return self.send_frames(wire.encode(message, *arrays))

    def send_frames(self, frames: list[bytes]) -> bool:
        try:
            self.socket.send_multipart(frames, NOBLOCK)
        except zmq.Again:
            return False
        return True

    def receive(self, limit: int = 256) -> Iterator[tuple[AnyMessage, list[bytes]]]:
        """What has arrived, at most `limit` messages; what is no message of ours is refused."""
        for _ in range(limit):
            # Asked, since an exception costs more than all the rest.
            if not int(self.socket.getsockopt(zmq.EVENTS)) & READABLE:
                return
            try:
                yield wire.decode(self.socket.recv_multipart(NOBLOCK))
            except zmq.Again:
                return
            except wire.WireError as error:
                self.refuse("message", f"from {self.address}: {error}")

    def close(self) -> None:
        self.socket.close()
