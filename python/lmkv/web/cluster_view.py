"""The cluster as the web process sees it: a question to the controller each, never a copy.

What the controller refuses is raised as `Problem`, its silence as `Unreachable`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from typing import TypeVar

import msgspec
import zmq

from lmkv.core import wire
from lmkv.core.async_client import AsyncClient
from lmkv.core.client import Unreachable
from lmkv.core.cluster import DEADLINE, Roll
from lmkv.core.keyfiles import ClientKeys
from lmkv.core.messages import (
    AnyMessage,
    AskJob,
    Candidate,
    Command,
    ConfigResult,
    Controllers,
    ControllersInfo,
    ControllerState,
    Done,
    Events,
    Flow,
    FlowInfo,
    Instances,
    InstancesInfo,
    InstanceState,
    JobInfo,
    Jobs,
    JobsInfo,
    JobState,
    Lookup,
    LookupInfo,
    Message,
    Pins,
    PinsInfo,
    Prefixes,
    PrefixesInfo,
    Refused,
    Route,
    Routed,
    Status,
    StatusInfo,
    Submit,
    Subscribe,
    Unsupported,
)
from lmkv.web.errors import Problem, refused, unserved

M = TypeVar("M", bound=Message)
R = TypeVar("R", bound=msgspec.Struct)

HEALTH_DEADLINE = 1.0
COMMAND_DEADLINE = 10.0
COMMANDS = 32  # at once, so that other questions have room
TEXTS = 8  # lookups of text at once: an instance takes 16 commands
JOB_DEADLINE = 10.0  # seconds in which instances take a job
SPARE = 1.0  # seconds that an answer which waits may take beyond its wait


class ClusterView:
    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._others = _Others(client.keys)
        self._max_frame_bytes = 0  # 0: not told yet
        self._commands = 0  # that wait for instances
        self._texts = asyncio.Semaphore(TEXTS)

    async def close(self) -> None:
        """Of what it has opened itself."""
        await self._others.close()

    async def status(self, deadline: float | None = None, top: int = 0) -> StatusInfo:
        """With so many of its instances."""
        info = await self._ask(Status(brief=True, top=top), StatusInfo, deadline=deadline)
        self._max_frame_bytes = info.max_frame_bytes
        return info

    async def instances(self, question: Instances) -> InstancesInfo:
        return await self._ask(question, InstancesInfo)

    async def flow(self, seconds: float, limit: int) -> FlowInfo:
        return await self._ask(Flow(seconds=seconds, limit=limit), FlowInfo)

    async def instance(self, name: str) -> InstanceState:
        info = await self._ask(Instances(instance=name), InstancesInfo)
        return info.instances[0]

    async def controllers(self) -> list[ControllerState]:
        """All of the cluster, the own one first; those that do not answer in time say so."""
        roll = Roll(self._client.address, await self._ask(Controllers(), ControllersInfo))
        while addresses := roll.unasked():
            found = await asyncio.gather(*map(self._others.ask, addresses))
            for address, answer in zip(addresses, found, strict=True):
                roll.answered(address, answer)
        return roll.controllers

    async def prefixes(self, top: int) -> PrefixesInfo:
        return await self._ask(Prefixes(top=top), PrefixesInfo)

    async def events(self, after: int, wait: float) -> Events:
        return await self._ask(Subscribe(after=after, wait=wait), Events, deadline=wait + SPARE)

    async def lookup(self, question: Lookup, keys: Sequence[str] = ()) -> LookupInfo:
        arrays = [b"".join(map(bytes.fromhex, keys))] if keys else []
        return await self._prompt(question, LookupInfo, *arrays)

    async def route(self, questions: Sequence[Route]) -> list[list[Candidate]]:
        """Candidates for each; one question each, so that none holds up others."""
        asked = [self._prompt(question, Routed) for question in questions]
        return [answer.candidates for answer in await asyncio.gather(*asked)]

    async def submit(self, question: Submit, keys: Sequence[str] = ()) -> JobInfo:
        """The job as soon as its instances have taken it."""
        arrays = [b"".join(map(bytes.fromhex, keys))] if keys else []
        await self._check_size(question, *arrays)
        if question.text or question.messages or question.lora:
            return await self._by_instance(question, JobInfo, COMMAND_DEADLINE + JOB_DEADLINE)
        return await self._wait(question, JobInfo, JOB_DEADLINE, *arrays)

    async def job(self, name: str, action: str = "") -> JobState:
        """As it is, or as it is after `cancel` or `retry`."""
        question = AskJob(0, name, action)
        if not action:
            return (await self._ask(question, JobInfo)).job
        return (await self._wait(question, JobInfo, JOB_DEADLINE)).job

    async def jobs(self, question: Jobs) -> JobsInfo:
        return await self._ask(question, JobsInfo)

    async def pins(self, question: Pins) -> PinsInfo:
        return await self._ask(question, PinsInfo)

    async def _prompt(self, question: Lookup | Route, kind: type[M], *arrays: bytes) -> M:
        """An instance has its part where it is not tokens."""
        await self._check_size(question)
        if arrays or not (question.text or question.messages or question.lora):
            return await self._ask(question, kind, *arrays)
        return await self._by_instance(question, kind, COMMAND_DEADLINE)

    async def _by_instance(self, question: Message, kind: type[M], deadline: float) -> M:
        """A few at a time, of those whose text an instance makes tokens of."""
        try:
            await asyncio.wait_for(self._texts.acquire(), COMMAND_DEADLINE)
        except asyncio.TimeoutError:
            text = f"{TEXTS} lookups of text wait for instances, which is the most: try again later"
            raise Problem(429, "busy", text) from None
        try:
            return await self._ask(question, kind, deadline=deadline + SPARE)
        finally:
            self._texts.release()

    async def command(
        self,
        instance: str,
        operation: str,
        kind: type[R],
        arguments: dict[str, str] | None = None,
        deadline: float = COMMAND_DEADLINE,
    ) -> R:
        """What the instance answers when it has carried it out, within `deadline` seconds."""
        name = secrets.token_hex(8)
        question = Command(name, operation, instance, deadline=deadline)
        question.arguments = arguments or {}
        answer = await self._wait(question, Done, deadline)
        try:
            return msgspec.msgpack.decode(answer.result, type=kind)
        except msgspec.MsgspecError as error:
            text = f"instance {instance!r} answered {operation} with no result: {error}"
            raise Problem(502, "failed", text) from None

    async def settings(self, instance: str) -> ConfigResult:
        """That it runs with."""
        return await self.command(instance, "config", ConfigResult)

    async def _wait(self, question: Message, kind: type[M], deadline: float, *arrays: bytes) -> M:
        """An answer that an instance has its part in."""
        if self._commands >= COMMANDS:
            text = f"{COMMANDS} requests wait for instances, which is the most: try again later"
            raise Problem(429, "busy", text)
        self._commands += 1
        try:
            return await self._ask(question, kind, *arrays, deadline=deadline + SPARE)
        finally:
            self._commands -= 1

    async def _check_size(self, question: Message, *arrays: bytes) -> None:
        """A controller drops a connection that sends it too much, without a word."""
        if not self._max_frame_bytes:
            await self.status()
        size = max(map(len, wire.encode(question, *arrays)))
        if self._max_frame_bytes and size > self._max_frame_bytes:
            forms = (name for name in ("text", "messages") if getattr(question, name, None))
            field = "keys" if arrays else next(forms, "tokens")
            text = f"{field}: a message of {size} bytes, and the controller takes at most "
            text += f"{self._max_frame_bytes} (its setting max_frame_bytes)"
            raise Problem(413, "too_large", text, field)

    async def _ask(
        self, question: Message, kind: type[M], *arrays: bytes, deadline: float | None = None
    ) -> M:
        answer = await self._client.ask(question, *arrays, deadline=deadline)
        if isinstance(answer, Refused):
            raise refused(answer)
        if isinstance(answer, Unsupported):
            raise unserved(answer)
        if not isinstance(answer, kind):
            raise Unreachable(f"{self._client.address} answered {type(answer).__name__}")
        return answer


class _Others:
    """Connections to other controllers, made when one is first asked; a few are kept."""

    KEPT = 32

    def __init__(self, keys: ClientKeys | None) -> None:
        self._keys = keys
        self._clients: dict[str, AsyncClient] = {}  # the one asked last at the end

    async def ask(self, address: str) -> AnyMessage | None:
        """None: in time it did not answer, or its address is none."""
        try:
            client = self._clients.pop(address, None) or AsyncClient(address, DEADLINE, self._keys)
        except ValueError:
            return None
        self._clients[address] = client
        while len(self._clients) > self.KEPT:
            await self._clients.pop(next(iter(self._clients))).close()
        try:
            return await client.ask(Controllers())
        except (Unreachable, zmq.ZMQError):  # also one that was closed meanwhile
            return None

    async def close(self) -> None:
        for client in self._clients.values():
            await client.close()
        self._clients.clear()
