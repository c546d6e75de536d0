"""What a caller may send: so many requests a second, so large a body, in so many seconds."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from math import ceil

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lmkv.core.clock import Clock, monotonic
from lmkv.web import errors

MOST_BYTES = 8 << 20
BODY_DEADLINE = 10.0  # seconds for the whole of it
CLOSE = {"Connection": "close"}
MOST_CLIENTS = 4096  # that are told apart; whoever has been quiet longest is forgotten


class Buckets:
    """`rate` requests a second of each client, and as many at once."""

    def __init__(self, rate: int, clock: Clock = monotonic) -> None:
        self.rate = rate
        self._clock = clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # and when that was so

    def take(self, client: str) -> int:
        """0: one request more is let through; else the seconds after which one may be again."""
        now = self._clock()
        left, at = self._left.pop(client, (float(self.rate), now))
        left = min(float(self.rate), left + (now - at) * self.rate)
        good = left >= 1
        self._left[client] = left - good, now
        if len(self._left) > MOST_CLIENTS:
            self._left.popitem(last=False)
        return 0 if good else ceil((1 - left) / self.rate)


class BodyLimit:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, most: int = MOST_BYTES, deadline: float = BODY_DEADLINE):
        self._app, self._most, self._deadline = app, most, deadline

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._most:
            text = f"a body of {int(length)} bytes, at most {self._most} are allowed"
            await errors.body(413, "too_large", text)(scope, receive, send)
            return
        taken, complete = 0, False
        end = asyncio.get_running_loop().time() + self._deadline

        async def limited() -> Message:
            nonlocal taken, complete
            if complete:  # nothing but the end of the connection may come
                return await receive()
            try:
                left = end - asyncio.get_running_loop().time()
                message = await asyncio.wait_for(receive(), max(0.0, left))
            except asyncio.TimeoutError:
                raise HTTPException(408, headers=CLOSE) from None  # the rest will not come
            taken += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if taken > self._most:
                raise HTTPException(413)
            return message

        await self._app(scope, limited, send)
