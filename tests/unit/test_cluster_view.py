"""The web process's view: what waits for instances ends, and makes room for others."""

from __future__ import annotations

import asyncio

import pytest
import zmq.asyncio
from lmkv.core.async_client import AsyncClient
from lmkv.core.messages import Lookup
from lmkv.web import cluster_view
from lmkv.web.cluster_view import TEXTS, ClusterView
from lmkv.web.errors import Problem

from tests.unit.test_async_client import DEADLINE, story, take


def test_a_lookup_of_text_waits_for_others_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_view, "COMMAND_DEADLINE", 0.1)
    monkeypatch.setattr(cluster_view, "SPARE", DEADLINE)

    async def act(client: AsyncClient, router: zmq.asyncio.Socket) -> None:
        view = ClusterView(client)
        view._max_frame_bytes = 1 << 20
        slow = [asyncio.create_task(view.lookup(Lookup(text="slow"))) for _ in range(TEXTS)]
        for _ in slow:
            await take(router)
        with pytest.raises(Problem) as refused:
            await view.lookup(Lookup(text="one too many"))
        assert (refused.value.status, refused.value.code) == (429, "busy")
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
        next_one = asyncio.create_task(view.lookup(Lookup(text="next")))
        question = (await take(router))[1]
        assert question.text == "next"
        next_one.cancel()

    story(act)
