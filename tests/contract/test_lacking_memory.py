"""While memory for a table that grows is being made, locates are answered and the rest waits."""

from __future__ import annotations

import threading
from typing import Any

import zmq
from lmkv.controller.server import Server
from lmkv.core import wire
from lmkv.core.config import ControllerConfig, load
from lmkv.core.messages import Locate, Message, Refused, Status, StatusInfo

DEADLINE_MS = 20_000


class Directory:
    """As the controller's, but `lacking` is what the test says."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self.lacking = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def __len__(self) -> int:
        return len(self._real)


def connect(context: zmq.Context[zmq.Socket[bytes]], address: str) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.DEALER)
    socket.connect(address)
    return socket


def answer(socket: zmq.Socket[bytes]) -> Message:
    assert socket.poll(DEADLINE_MS), "no answer"
    return wire.decode(socket.recv_multipart())[0]


def test_only_locates_are_answered_meanwhile() -> None:
    server = Server(load(ControllerConfig, {"port": 0}))
    directory = Directory(server.registry.placement.directory)
    server.registry.placement.directory = directory  # type: ignore[assignment]
    stop = threading.Event()
    thread = threading.Thread(target=server.serve, args=(stop.is_set,))
    thread.start()
    context = zmq.Context()
    try:
        state = connect(context, server.state_address)
        query = connect(context, server.query_address)
        state.send_multipart(wire.encode(Status(7)))
        for request in range(1, 21):
            query.send_multipart(wire.encode(Locate(request, "default", "nobody", 1), bytes(16)))
            refused = answer(query)
            assert isinstance(refused, Refused) and refused.request == request
        assert not state.poll(0)
        directory.lacking = False
        assert isinstance(answer(state), StatusInfo)
    finally:
        stop.set()
        thread.join()
        context.destroy(linger=0)
        server.close()
