"""Connections that cost little: who says nothing is closed, and so is the oldest one too many.

uvicorn times out only what is idle after an answer. Here a connection also ends when its next
request is not whole in time; and where there are too many, the one that has been without a request
longest makes room, so that the next probe or scrape is served.
"""

from __future__ import annotations

import asyncio
import json

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MOST = 1000
IDLE = 10.0  # seconds without a whole request


class Connection(H11Protocol):
    most = MOST
    idle = IDLE

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._since = self.loop.time()
        self._watch = self.loop.call_later(self.idle, self._look)
        if len(self.connections) > self.most:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self._watch.cancel()
        super().connection_lost(exc)

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self._watch.cancel()  # a web socket's own pings see to it
        super().handle_websocket_upgrade(event)

    def on_response_complete(self) -> None:
        self._since = self.loop.time()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """In the one form of errors."""
        content = json.dumps({"error": {"code": "http", "message": msg, "field": ""}}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(content)),
            (b"connection", b"close"),
        ]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=content),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    @property
    def _busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _look(self) -> None:
        left = self._since + self.idle - self.loop.time()
        if self._busy or left > 0:
            self._watch = self.loop.call_later(self.idle if self._busy else left, self._look)
        else:
            self.transport.close()

    def _make_room(self) -> None:
        quiet = [
            each
            for each in self.connections
            if isinstance(each, Connection) and not each._busy and not each.transport.is_closing()
        ]
        if quiet:
            min(quiet, key=lambda each: each._since).transport.close()
