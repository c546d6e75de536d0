"""The web process: `python -m lmkv.web.main --controller ADDRESS --fd N --parent PID`.

Its parent, the controller, listens and hands the listener over as descriptor N. SIGTERM ends it in
a second, and the end of its parent at once.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import sys
from types import FrameType

import uvicorn

from lmkv import _native
from lmkv.core.async_client import AsyncClient
from lmkv.core.descriptors import allow_descriptors
from lmkv.web.app import build
from lmkv.web.cluster_view import ClusterView
from lmkv.web.connections import Connection
from lmkv.web.events import Hub

QUESTION_DEADLINE = 2.0  # seconds
END_DEADLINE = 1  # what requests still have after SIGTERM
DESCRIPTORS = 4096  # what connections may need


class Server(uvicorn.Server):
    """Ends streams at a signal: they would never end by themselves."""

    def __init__(self, config: uvicorn.Config, hub: Hub) -> None:
        super().__init__(config)
        self._hub = hub
        self._loop = asyncio.get_running_loop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        self._loop.call_soon_threadsafe(self._hub.close)


async def serve(controller: str, listener: socket.socket, controller_pid: int) -> None:
    client = AsyncClient(controller, QUESTION_DEADLINE)
    view = ClusterView(client)
    hub = Hub(view)
    following = asyncio.create_task(hub.run())
    config = uvicorn.Config(
        build(view, hub, controller_pid),
        http=Connection,
        ws="none",
        lifespan="off",
        log_level="error",  # anyone can send what is no HTTP
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=END_DEADLINE,
    )
    try:
        await Server(config, hub).serve(sockets=[listener])
    finally:
        following.cancel()
        await view.close()
        await client.close()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="lmkv.web")
    parser.add_argument("--controller", required=True)
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    given = parser.parse_args(arguments)
    _native.die_with_parent()
    if os.getppid() != given.parent:  # it was gone before that
        return 1
    allow_descriptors(DESCRIPTORS)
    listener = socket.socket(fileno=given.fd)
    asyncio.run(serve(given.controller, listener, given.parent))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
