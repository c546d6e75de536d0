"""Doorman(context, name_of, say): lets known clients through to a context's CURVE sockets.

libzmq asks it about each connection (ZAP, rfc.zeromq.org/spec/27) before that may say anything;
where it is silent nobody gets in. One thread, which waits for questions only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

import zmq
from zmq.utils import z85

from lmkv.core.waker import Waker

ADDRESS = "inproc://zeromq.zap.01"
VERSION = b"1.0"
SAID = 64  # refused keys that are named; more are refused without a word


class Doorman:
    """To be made before the context's sockets bind. `name_of(public)` is the client's name, None
    for one that is not known; it is called from the thread."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        name_of: Callable[[bytes], str | None],
        say: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        self._name_of = name_of
        self._say = say
        self._said: set[bytes] = set()
        self.refused = 0
        self._socket = context.socket(zmq.REP)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(ADDRESS)
        self._waker = Waker()
        self._thread = threading.Thread(target=self._run, name="lmkv-doorman", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Before the context."""
        self._waker.wake()
        self._thread.join()

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._waker.fd, zmq.POLLIN)
        while self._waker.fd not in dict(poller.poll()):
            with suppress(zmq.ZMQError):
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
                self._socket.send_multipart(self._answer(frames), zmq.NOBLOCK)
        self._socket.close()

    def _answer(self, frames: list[bytes]) -> list[bytes]:
        """To (version, request, domain, address, routing id, mechanism, credentials ...)."""
        request = frames[1] if len(frames) > 1 else b""
        if len(frames) == 7 and frames[0] == VERSION and frames[5] == b"CURVE":
            public = z85.encode(frames[6]) if len(frames[6]) == 32 else b""
            name = self._name_of(public)
            if name is not None:
                return [VERSION, request, b"200", b"OK", name.encode(), b""]
            self._refuse(public, frames[3].decode(errors="replace"))
        return [VERSION, request, b"400", b"the key is not known", b"", b""]

    def _refuse(self, public: bytes, address: str) -> None:
        self.refused += 1
        if public not in self._said and len(self._said) < SAID:
            self._said.add(public)
            key = public.decode()
            self._say(f"refused a client at {address}: its public key {key} is not among clients")
