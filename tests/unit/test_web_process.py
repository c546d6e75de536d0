"""The controller's web process: started, seen to end, started again after longer and longer."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from lmkv.controller import web
from lmkv.controller.web import WebProcess
from lmkv.core.clock import ManualClock


class Child:
    """In the place of subprocess.Popen."""

    born: list[Child] = []  # noqa: RUF012
    refuse = False

    def __init__(self, command: list[str], **options: Any) -> None:
        if self.refuse:
            raise OSError("no memory")
        self.command, self.status = command, None
        self.born.append(self)

    def poll(self) -> int | None:
        return self.status


@pytest.fixture
def supervised(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[WebProcess, ManualClock]]:
    monkeypatch.setattr(web.subprocess, "Popen", Child)
    monkeypatch.setattr(Child, "born", [])
    clock = ManualClock()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield WebProcess(listener, "tcp://127.0.0.1:7550", print, clock), clock


def restarts(process: WebProcess, clock: ManualClock, deaths: int) -> list[float]:
    """Seconds from each death to the next birth."""
    waits = []
    for _ in range(deaths):
        Child.born[-1].status = 1
        before, count = clock(), len(Child.born)
        process.tick()
        while len(Child.born) == count:
            clock.advance(1 / 64)
            process.tick()
        waits.append(clock() - before)
    return waits


def test_the_back_off(supervised: tuple[WebProcess, ManualClock]) -> None:
    process, clock = supervised
    process.tick()
    process.tick()
    assert len(Child.born) == 1
    wanted = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10]
    assert restarts(process, clock, 9) == pytest.approx(wanted, abs=1 / 64)
    clock.advance(10)  # a healthy life
    assert restarts(process, clock, 2) == pytest.approx([0.1, 0.2], abs=1 / 64)


def test_a_process_that_cannot_be_had_is_tried_again(
    supervised: tuple[WebProcess, ManualClock], monkeypatch: pytest.MonkeyPatch
) -> None:
    process, clock = supervised
    monkeypatch.setattr(Child, "refuse", True)
    process.tick()
    monkeypatch.setattr(Child, "refuse", False)
    process.tick()
    assert Child.born == []
    clock.advance(0.1)
    process.tick()
    assert len(Child.born) == 1


def test_the_address_is_the_listeners(supervised: tuple[WebProcess, ManualClock]) -> None:
    process, _ = supervised
    process.tick()
    assert process.url.startswith("http://127.0.0.1:")
    assert "tcp://127.0.0.1:7550" in Child.born[0].command
