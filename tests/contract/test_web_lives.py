"""The web process among others: it dies, its controller dies or is silent, and crowds come."""

from __future__ import annotations

import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from lmkv.core.client import Client
from lmkv.core.descriptors import allow_descriptors
from lmkv.core.messages import Status, StatusInfo
from lmkv.web.connections import MOST
from lmkv.web.events import READERS

from tests.contract.test_controller import DEADLINE, until
from tests.http_client import Stream
from tests.stub_instance import StubInstance
from tests.web import TOKENS, Web

# ------------------------------------------------------------------ lives and deaths


def test_a_controller_that_does_not_answer_is_503_and_then_goes_on() -> None:
    running = Web()
    paths = ("/healthz", "/readyz", "/metrics", "/v1/cluster", "/v1/instances", "/v1/prefixes")
    try:
        running.up()
        running.process.send_signal(signal.SIGSTOP)
        with ThreadPoolExecutor() as pool:
            answers = [pool.submit(running.ask, path) for path in paths]
            answers.append(pool.submit(running.ask, "/v1/lookup", {"tokens": TOKENS}))
        for answer in (each.result() for each in answers):
            assert (answer.status, answer.error["code"]) == (503, "unreachable")
            assert answer.headers["retry-after"] == "1"
        assert running.ask("/version").status == 200
        running.process.send_signal(signal.SIGCONT)
        until(lambda: running.ask("/v1/cluster").status == 200)
    finally:
        running.process.send_signal(signal.SIGCONT)
        assert running.end() == (0, "")


def test_a_web_process_that_dies_is_started_again() -> None:
    running = Web()
    try:
        running.up()
        [first] = running.children()
        os.kill(first, signal.SIGKILL)
        running.up()
        [second] = running.children()
        assert second != first
        with Client(running.state, DEADLINE) as client:
            assert client.ask(StubInstance("a").registration)
    finally:
        status, said = running.end()
    assert status == 0
    assert said.count("\n") == 1
    assert "web process ended with status -9, and is started again in 0.1 s" in said


def gone(pid: int) -> bool:
    try:
        return "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_web_process_ends_with_its_controller(how: signal.Signals) -> None:
    """Also with a stream open, and a connection that says nothing."""
    running = Web()
    running.up()
    [child] = running.children()
    port = int(running.http.rpartition(":")[2])
    with Stream(running.http) as stream, socket.create_connection(("127.0.0.1", port)):
        assert stream.take(1)
        status, said = running.end(how)
        assert (status, said) == (-9 if how == signal.SIGKILL else 0, "")
        until(lambda: gone(child))
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", port)):
        pass


def test_a_busy_http_port_and_an_open_host_are_refused_in_one_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        busy = Web("--http-port", str(port))
        assert busy.end(None) == (1, "")
        assert f"http_port = {port}" in busy.line and "already in use" in busy.line
    for host in ("0.0.0.0", "example.org"):
        refused = Web("--http-host", host)
        assert refused.end(None) == (2, "")
        assert f"http_host = '{host}'" in refused.line and "loopback" in refused.line


def test_without_its_libraries_the_controller_serves_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in an installation without the extra: Python finds no fastapi."""
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['fastapi'] = None\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    running = Web()
    try:
        assert "HTTP" not in running.line
        with Client(running.state, DEADLINE) as client:
            assert isinstance(client.ask(Status())[0], StatusInfo)
        assert running.children() == []
        assert running.process.stderr
        assert running.process.stderr.readline() == (
            "lmkv controller: no HTTP: fastapi missing; pip install 'lmkv[web]', or say --no-web\n"
        )
    finally:
        assert running.end() == (0, "")


# ------------------------------------------------------------------ crowds


def test_readers_that_went_make_room_for_others(web: Web) -> None:
    for _ in range(READERS + 10):
        with Stream(web.http) as stream:
            assert stream.take(1)


def test_more_readers_than_are_served(web: Web) -> None:
    with ExitStack() as stack:
        for _ in range(READERS):
            assert stack.enter_context(Stream(web.http)).take(1)
        answer = web.ask("/v1/events")
        assert (answer.status, answer.error["code"]) == (503, "too_many")
        assert web.ask("/healthz").status == 200


def test_a_crowd_of_connections_that_say_nothing(web: Web) -> None:
    """The oldest of them make room."""
    allow_descriptors(4096)
    port = int(web.http.rpartition(":")[2])
    with ExitStack() as stack:
        crowd = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            for _ in range(MOST + 200)
        ]
        assert web.ask("/healthz").status == 200
        [child] = web.children()
        assert len(os.listdir(f"/proc/{child}/fd")) < MOST + 100
        crowd[0].settimeout(DEADLINE)
        assert crowd[0].recv(1) == b""
        crowd[-1].sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        crowd[-1].settimeout(DEADLINE)
        assert crowd[-1].recv(4096).startswith(b"HTTP/1.1 200")
    assert web.ask("/healthz").status == 200
