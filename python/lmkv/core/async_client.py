"""A controller's client for a process with an event loop: many questions at once, one connection.

`ask(message)` numbers the question and takes the answer with that number; it ends at the deadline.
An answer that comes later is dropped.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from itertools import count
from math import ceil
from typing import Any

import zmq
import zmq.asyncio

from lmkv.core import wire
from lmkv.core.client import Unreachable, options, unheard
from lmkv.core.clock import Deadline
from lmkv.core.keyfiles import ClientKeys, as_client
from lmkv.core.messages import AnyMessage, Message

AT_ONCE = 64  # questions; a controller drops answers that a connection does not take


class AsyncClient:
    """To be made, used and closed in one running loop."""

    def __init__(self, address: str, deadline: float = 3.0, keys: ClientKeys | None = None) -> None:
        self.address = address
        self.keys = keys
        self.deadline = deadline
        wanted = options(address)  # before there is anything to close
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.DEALER)
        for option, value in wanted.items():
            self._socket.setsockopt(option, value)
        as_client(self._socket, keys)
        self._socket.connect(address)
        self._numbers = count(1)
        self._asked: dict[int, asyncio.Future[AnyMessage]] = {}
        self._free = asyncio.Semaphore(AT_ONCE)
        self._reader = asyncio.create_task(self._read())

    async def ask(self, message: Any, *arrays: bytes, deadline: float | None = None) -> AnyMessage:
        """The answer to `message`, which has a field `request`. Raises Unreachable."""
        until = Deadline(self.deadline if deadline is None else deadline)
        try:
            await asyncio.wait_for(self._free.acquire(), until.left())
            try:
                return await self._answer(message, arrays, until)
            finally:
                self._free.release()
        except asyncio.TimeoutError:
            raise Unreachable(f"{self.address} did not answer in time") from None

    async def _answer(self, message: Any, arrays: tuple[bytes, ...], until: Deadline) -> AnyMessage:
        message.request = number = next(self._numbers)
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            await self._send(message, arrays, until)
            return await asyncio.wait_for(answer, until.left())
        finally:
            del self._asked[number]

    async def _send(self, message: Message, arrays: tuple[bytes, ...], until: Deadline) -> None:
        milliseconds = ceil(until.left() * 1000)
        if not await self._socket.poll(milliseconds, zmq.POLLOUT):  # type: ignore[call-arg]
            raise Unreachable(unheard(self.address, self.keys))
        try:
            await self._socket.send_multipart(wire.encode(message, *arrays), zmq.NOBLOCK)
        except zmq.Again:  # others have filled it since
            raise Unreachable(f"{self.address} takes no more questions") from None

    async def _read(self) -> None:
        while True:
            frames = await self._socket.recv_multipart()
            with suppress(wire.WireError):
                message, _ = wire.decode(frames)
                answer = self._asked.get(getattr(message, "request", 0))
                if answer is not None and not answer.done():
                    answer.set_result(message)

    async def close(self) -> None:
        self._reader.cancel()
        with suppress(asyncio.CancelledError):
            await self._reader
        self._context.destroy(linger=0)
