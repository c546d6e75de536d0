"""A TCP link that can be cut, go silent, one way or both, slow down, or speak garbage.

`Link(address, ports)` listens on `address` and forwards each port to the same one on 127.0.0.1: the
whole of 127/8 is loopback, so a controller's state and query ports keep their numbers. One thread.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

ACTIONS = ("cut", "blackhole", "half-open", "slow", "garbage")
SLOW_S = 0.2
PIECE = 1 << 16


class Link:
    def __init__(self, address: str, ports: Sequence[int]) -> None:
        self.action = ""  # one of ACTIONS; "": forward
        self._selector = selectors.DefaultSelector()
        self._listeners = [self._listen(address, port) for port in ports]
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._inbound: set[socket.socket] = set()  # the client's ends
        self._late: list[tuple[float, socket.socket, bytes]] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def set(self, action: str) -> None:
        self.action = action

    def close(self) -> None:
        self._stopping.set()
        self._thread.join(5)

    def _listen(self, address: str, port: int) -> socket.socket:
        listener = socket.create_server((address, port), reuse_port=False)
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, port)
        return listener

    def _run(self) -> None:
        garbled = False
        while not self._stopping.is_set():
            for key, _ in self._selector.select(0.02):
                if key.data is not None:
                    self._accept(key)
                else:
                    self._forward(key.fileobj)
            self._send_late()
            if self.action == "cut":
                for client in list(self._inbound):
                    self._drop(client)
            if self.action == "garbage" and not garbled:
                for client in list(self._inbound):
                    self._send(client, os.urandom(4096))
            garbled = self.action == "garbage"
        for end in (*self._pairs, *self._listeners):
            end.close()

    def _accept(self, key: selectors.SelectorKey) -> None:
        listener: Any = key.fileobj
        client, _ = listener.accept()
        if self.action == "cut":
            client.close()
            return
        try:
            server = socket.create_connection(("127.0.0.1", key.data), timeout=1)
        except OSError:
            client.close()
            return
        self._inbound.add(client)
        for one, other in ((client, server), (server, client)):
            one.setblocking(False)
            self._pairs[one] = other
            self._selector.register(one, selectors.EVENT_READ)

    def _forward(self, end: Any) -> None:
        if end not in self._pairs:
            return
        if self.action == "blackhole" or (self.action == "half-open" and end not in self._inbound):
            time.sleep(0.001)  # what waits here is sent on once the link is whole again
            return
        try:
            data = end.recv(PIECE)
        except OSError:
            data = b""
        if not data:
            self._drop(end)
            return
        to = self._pairs[end]
        if self.action == "slow":
            self._late.append((time.monotonic() + SLOW_S, to, data))
        elif any(later is to for _, later, _ in self._late):  # in order, also once it is fast again
            self._late.append((self._late[-1][0], to, data))
        else:
            self._send(to, data)

    def _send_late(self) -> None:
        while self._late and self._late[0][0] <= time.monotonic():
            _, to, data = self._late.pop(0)
            if to in self._pairs:
                self._send(to, data)

    def _send(self, to: socket.socket, data: bytes) -> None:
        try:
            to.setblocking(True)
            to.settimeout(2)
            to.sendall(data)
            to.setblocking(False)
        except OSError:
            self._drop(to)

    def _drop(self, end: socket.socket) -> None:
        other = self._pairs.pop(end, None)
        for one in (end, other):
            if one is not None:
                self._pairs.pop(one, None)
                self._inbound.discard(one)
                with contextlib.suppress(KeyError, ValueError):
                    self._selector.unregister(one)
                one.close()
