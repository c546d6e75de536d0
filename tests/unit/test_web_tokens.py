"""Tokens of a web process that is starting: what is taken back meanwhile opens nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
from lmkv.core import tokens
from lmkv.core.web_settings import WebSettings
from lmkv.web import main

from tests import http_client

DEADLINE = 60.0


def test_a_token_taken_back_while_the_process_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, build = tmp_path / "tokens", main.build
    old = tokens.add(path, "old", "read")

    def slow(*arguments: Any) -> Any:
        """Before it has begun to listen to SIGHUP."""
        path.write_text("")
        new.append(tokens.add(path, "new", "read"))
        os.kill(os.getpid(), signal.SIGHUP)
        return build(*arguments)

    async def ask(token: str) -> int:
        headers = {"Authorization": f"Bearer {token}"}
        answer = await asyncio.to_thread(http_client.ask, url, "/openapi.json", **headers)
        return answer.status

    async def story() -> None:
        settings = WebSettings(tokens=str(path))
        serving = asyncio.create_task(main.serve(nobody, listener, os.getpid(), settings))
        try:
            assert await asyncio.wait_for(ask(old), DEADLINE) == 401
            assert await asyncio.wait_for(ask(new[0]), DEADLINE) == 200
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)

    new: list[str] = []
    monkeypatch.setattr(main, "build", slow)
    nobody = "tcp://127.0.0.1:1"
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        asyncio.run(story())
    finally:
        signal.signal(signal.SIGHUP, before)
