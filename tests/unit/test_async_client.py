"""Many questions over one connection: each has its own answer, and its own end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import zmq
import zmq.asyncio
from lmkv.core import wire
from lmkv.core.async_client import AT_ONCE, AsyncClient
from lmkv.core.client import Unreachable
from lmkv.core.messages import AnyMessage, Instances, InstancesInfo, Status

DEADLINE = 20.0


def told(question: AnyMessage) -> InstancesInfo:
    assert isinstance(question, Instances)
    return InstancesInfo(question.request, next=question.after)


def story(
    act: Callable[[AsyncClient, zmq.asyncio.Socket], Awaitable[None]], deadline: float = DEADLINE
) -> None:
    """A client, and the ROUTER that it asks."""

    async def run() -> None:
        context = zmq.asyncio.Context()
        router = context.socket(zmq.ROUTER)
        port = router.bind_to_random_port("tcp://127.0.0.1")
        client = AsyncClient(f"tcp://127.0.0.1:{port}", deadline)
        try:
            await asyncio.wait_for(act(client, router), 2 * DEADLINE)
        finally:
            await client.close()
            context.destroy(linger=0)

    asyncio.run(run())


async def take(router: zmq.asyncio.Socket) -> tuple[bytes, Any]:
    connection, frame = await router.recv_multipart()
    return connection, wire.decode([frame])[0]


def test_answers_may_come_in_any_order() -> None:
    async def act(client: AsyncClient, router: zmq.asyncio.Socket) -> None:
        asked = [asyncio.create_task(client.ask(Instances(after=name))) for name in "abc"]
        for connection, question in reversed([await take(router) for _ in asked]):
            await router.send_multipart([connection, *wire.encode(told(question))])
        answers = await asyncio.gather(*asked)
        assert [each.next for each in answers if isinstance(each, InstancesInfo)] == list("abc")

    story(act)


def test_garbage_strangers_and_repetitions_are_passed_over() -> None:
    async def act(client: AsyncClient, router: zmq.asyncio.Socket) -> None:
        for name in "ab":
            asked = asyncio.create_task(client.ask(Instances(after=name)))
            connection, question = await take(router)
            good = wire.encode(told(question))
            for frames in ([b"garbage"], wire.encode(InstancesInfo(999)), good, good):
                await router.send_multipart([connection, *frames])
            answer = await asked
            assert isinstance(answer, InstancesInfo) and answer.next == name

    story(act)


def test_a_question_ends_at_its_deadline_and_others_go_on() -> None:
    async def act(client: AsyncClient, router: zmq.asyncio.Socket) -> None:
        with pytest.raises(Unreachable, match="did not answer"):
            await client.ask(Status(), deadline=0.05)
        late_connection, late = await take(router)
        asked = asyncio.create_task(client.ask(Instances(after="a")))
        connection, question = await take(router)
        assert question.request != late.request
        await router.send_multipart([late_connection, *wire.encode(InstancesInfo(late.request))])
        await router.send_multipart([connection, *wire.encode(told(question))])
        assert isinstance(await asked, InstancesInfo)

    story(act)


def test_more_questions_than_at_once_wait_and_end_too() -> None:
    async def act(client: AsyncClient, router: zmq.asyncio.Socket) -> None:
        asked = [client.ask(Status()) for _ in range(AT_ONCE + 10)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(each) for each in answers} == {Unreachable}
        assert await asyncio.wait_for(client._free.acquire(), DEADLINE)  # none is lost

    story(act, 0.5)


def test_nobody_listens() -> None:
    async def run() -> None:
        client = AsyncClient("tcp://127.0.0.1:9", 0.1)
        with pytest.raises(Unreachable, match=r"no controller listens at tcp://127.0.0.1:9"):
            await client.ask(Status())
        await client.close()

    asyncio.run(run())
