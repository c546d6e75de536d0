"""What a caller may send: a body of so many bytes, in so many seconds."""

from __future__ import annotations

import asyncio

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lmkv.web import errors

MOST_BYTES = 8 << 20
BODY_DEADLINE = 10.0  # seconds for the whole of it


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
                raise HTTPException(408) from None
            taken += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if taken > self._most:
                raise HTTPException(413)
            return message

        await self._app(scope, limited, send)
