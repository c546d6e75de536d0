"""The web process: `python -m lmkv.web.main --controller ADDRESS --fd N --parent PID --settings M`.

Its parent, the controller, listens and hands the listener over as descriptor N, and `WebSettings`
as M. SIGTERM ends it in a second, and the end of its parent at once; SIGHUP lets it read tokens and
certificate again.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
from functools import partial
from types import FrameType

import uvicorn

from lmkv import _native
from lmkv.core import log
from lmkv.core.async_client import AsyncClient
from lmkv.core.descriptors import allow_descriptors
from lmkv.core.keyfiles import BadKeys, ClientKeys
from lmkv.core.web_settings import WebSettings, receive
from lmkv.web import dashboard
from lmkv.web.app import build
from lmkv.web.auth import Tokens
from lmkv.web.cluster_view import ClusterView
from lmkv.web.connections import Connection
from lmkv.web.events import Hub
from lmkv.web.limits import MOST_BYTES, Buckets

QUESTION_DEADLINE = 2.0  # seconds
HANDSHAKE_DEADLINE = 5.0
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


async def serve(
    controller: str, listener: socket.socket, controller_pid: int, settings: WebSettings
) -> None:
    keys = ClientKeys(settings.public, settings.secret, settings.server)
    client = AsyncClient(controller, QUESTION_DEADLINE, keys if settings.server else None)
    tokens = Tokens(settings.tokens)
    view = ClusterView(client)
    hub = Hub(view)
    pages = dashboard.load(view, hub, tokens)
    following = asyncio.create_task(hub.run())
    config = uvicorn.Config(
        build(view, hub, controller_pid, tokens, Buckets(settings.rate), settings.compat, pages),
        http=Connection,
        ws="none" if pages is None else "wsproto",
        ws_max_size=MOST_BYTES,
        lifespan="off",
        log_level="error",  # anyone can send what is no HTTP
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=END_DEADLINE,
        ssl_certfile=settings.cert or None,
        ssl_keyfile=settings.key or None,
    )

    def reload() -> None:
        try:
            tokens.reload()
            if config.loaded and config.ssl is not None:  # for connections to come
                config.ssl.load_cert_chain(settings.cert, settings.key)
        except (BadKeys, OSError) as error:
            log.say("web", f"nothing was read again: {error}", settings.log)

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, reload)
    tokens.reload()  # a signal that came since they were read was passed over
    if settings.cert:  # asyncio gives a handshake a minute
        loop.create_server = partial(  # type: ignore[method-assign]
            loop.create_server, ssl_handshake_timeout=HANDSHAKE_DEADLINE
        )
    try:
        async with dashboard.running(pages):
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
    parser.add_argument("--settings", type=int, required=True)
    given = parser.parse_args(arguments)
    _native.die_with_parent()
    if os.getppid() != given.parent:  # it was gone before that
        return 1
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to read again
    allow_descriptors(DESCRIPTORS)
    listener = socket.socket(fileno=given.fd)
    try:
        asyncio.run(serve(given.controller, listener, given.parent, receive(given.settings)))
    except BadKeys as error:
        log.say("web", str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
