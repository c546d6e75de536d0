"""ZMTP 3 by hand (rfc.zeromq.org/spec/23), for what libzmq would never send."""

from __future__ import annotations

import selectors
import socket
import struct
import threading

from typing_extensions import Self

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\x05READY" + b"\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
READY_FRAME = b"\x04" + bytes([len(READY)]) + READY
LONG, MORE = 2, 1
PEER_GREETING = 64


def address(of: str) -> tuple[str, int]:
    """Of tcp://HOST:PORT or http://HOST:PORT."""
    host, _, port = of.partition("://")[2].rpartition(":")
    return host, int(port)


def connect(of: str, deadline: float) -> socket.socket:
    """A connection whose handshake is done on this side."""
    raw = socket.create_connection(address(of), deadline)
    raw.sendall(GREETING + READY_FRAME)
    return raw


def header(length: int, more: bool = False) -> bytes:
    return bytes([LONG | (MORE if more else 0)]) + struct.pack(">Q", length)


def closed(raw: socket.socket) -> bool:
    """Read what there is until the other side closes; TimeoutError if it does not in time."""
    try:
        while raw.recv(1 << 16):
            pass
    except ConnectionError:
        pass
    return True


PONG = b"\x04\x05\x04PONG"


class Living:
    """Connections that answer pings, and otherwise say nothing, until the end of its `with`."""

    def __init__(self) -> None:
        self._ready = selectors.EpollSelector()
        self._ended = False
        self._thread = threading.Thread(target=self._answer, daemon=True)
        self.made: list[socket.socket] = []

    def connect(self, of: str, deadline: float) -> None:
        raw = connect(of, deadline)
        self.made.append(raw)
        self._ready.register(raw, selectors.EVENT_READ)

    def _answer(self) -> None:
        while not self._ended:
            for key, _ in self._ready.select(0.1):
                raw = key.fileobj
                assert isinstance(raw, socket.socket)
                try:
                    said = raw.recv(1 << 16)
                    if b"\x04PING" in said:
                        raw.sendall(PONG)
                except OSError:
                    said = b""
                if not said:
                    self._ready.unregister(raw)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._thread.join()
        self._ready.close()
        for raw in self.made:
            raw.close()
