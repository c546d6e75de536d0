"""ZMTP 3 by hand (rfc.zeromq.org/spec/23), for what libzmq would never send."""

from __future__ import annotations

import socket
import struct

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\x05READY" + b"\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
READY_FRAME = b"\x04" + bytes([len(READY)]) + READY
LONG, MORE = 2, 1
PEER_GREETING = 64


def address(of: str) -> tuple[str, int]:
    """Of tcp://HOST:PORT or http://HOST:PORT."""
    host, _, port = of.partition("://")[2].rpartition(":")
    return host, int(port)


def plain(of: str, deadline: float) -> socket.socket:
    """A connection on which nothing has been said."""
    return socket.create_connection(address(of), deadline)


def connect(of: str, deadline: float) -> socket.socket:
    """A connection whose handshake is done on this side."""
    raw = plain(of, deadline)
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
