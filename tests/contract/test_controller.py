"""A real controller process on loopback, and instances that are a table and a socket.

A heartbeat is 0.2 s here, so that who is silent is dead after a second; what must follow is waited
for, never timed.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq
from lmkv.core import wire
from lmkv.core.client import Client, Unreachable
from lmkv.core.keyfiles import ClientKeys
from lmkv.core.messages import (
    Announce,
    Heartbeat,
    HeartbeatOk,
    Leave,
    Left,
    Locate,
    Located,
    Message,
    Peer,
    PeerInfo,
    Probe,
    Refused,
    Resync,
    Status,
    StatusInfo,
    Stop,
    Touched,
    Unsupported,
    Welcome,
)
from typing_extensions import Self

from tests.ports import free_port
from tests.stub_instance import HOST_B, Sent, StubInstance, keys

DEADLINE = 60.0  # of anything that is waited for
BEAT = 0.2


class Controller:
    def __init__(self, port: int, *options: str, web: bool = False) -> None:
        command = [sys.executable, "-m", "lmkv.controller.main", "--port", str(port)]
        command += ["--heartbeat", str(BEAT), "--warming-least", "0.1", *options]
        command += ["--web", str(web).lower()]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr
        self.line = self.process.stderr.readline()
        self.state, self.query = f"tcp://127.0.0.1:{port}", f"tcp://127.0.0.1:{port + 1}"
        self.http = f"http://127.0.0.1:{port + 2}"

    def end(self, how: signal.Signals | None = signal.SIGTERM) -> tuple[int, str]:
        """Exit status and what else it said."""
        if how is not None and self.process.poll() is None:
            self.process.send_signal(how)
        try:
            said = self.process.communicate(timeout=DEADLINE)[1]
        finally:
            self.process.kill()
        return self.process.returncode, said


@pytest.fixture
def controller() -> Iterator[Controller]:
    running = Controller(free_port())
    yield running
    status, said = running.end()
    assert (status, said) == (0, "")


class Instance:
    """A stub with its connections; `said` is what the controller told it beside answers."""

    def __init__(
        self, stub: StubInstance, controller: Controller, keys: ClientKeys | None = None
    ) -> None:
        self.stub = stub
        self.state = Client(controller.state, DEADLINE, keys)
        self.query = Client(controller.query, DEADLINE, keys)
        self.said: list[tuple[Message, list[bytes]]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.state.close()
        self.query.close()

    def join(self) -> Welcome:
        answer, _ = self.state.ask(self.stub.registration)
        assert isinstance(answer, Welcome), answer
        self.stub.seq = 0
        self.tell(*self.stub.sync())
        return answer

    def tell(self, *messages: Sent) -> None:
        for message, arrays in messages:
            self.state.send(message, *arrays)

    def beat(self) -> Message:
        """The answer to a heartbeat: all before it has been applied."""
        self.tell(self.stub.heartbeat())
        return self.take(HeartbeatOk, Refused)

    def take(self, *kinds: type[Message]) -> Message:
        while True:
            for i, (message, _) in enumerate(self.said):
                if isinstance(message, kinds):
                    return self.said.pop(i)[0]
            self.said.append(self.state.receive())

    def locate(self, *numbers: int) -> Message:
        message = Locate(4, "default", self.stub.name, self.stub.epoch)
        answer, self.arrays = self.query.ask(message, keys(*numbers))
        return answer

    def found(self, *numbers: int) -> int:
        answer = self.locate(*numbers)
        assert isinstance(answer, Located), answer
        return answer.found


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(BEAT / 4)


@pytest.fixture
def pair(controller: Controller) -> Iterator[tuple[Instance, Instance]]:
    """Two registered instances, on two hosts."""
    a, b = StubInstance("a", 1), StubInstance("b", 2, host=HOST_B)
    with Instance(a, controller) as first, Instance(b, controller) as second:
        first.join()
        second.join()
        yield first, second


def test_announce_then_locate(controller: Controller, pair: tuple[Instance, Instance]) -> None:
    a, b = pair
    assert controller.state in controller.line
    assert controller.query in controller.line
    a.tell(*a.stub.store(1, 2, 3))
    a.beat()
    answer = b.locate(1, 2, 3, 4)
    assert isinstance(answer, Located)
    assert (answer.request, answer.found, answer.peers[0].instance) == (4, 3, "a")
    assert tuple(b.arrays) == a.stub.table.places(keys(1, 2, 3))[:2]
    assert a.take(Touched) == Touched(1)
    a.tell(*a.stub.retire(3))
    a.beat()
    assert b.found(1, 2, 3) == 2
    with Client(controller.state) as client:
        info, _ = client.ask(Peer(1, "a"))
        assert isinstance(info, PeerInfo)
        assert info.ranks == a.stub.registration.ranks
        status, _ = client.ask(Status(2))
        assert isinstance(status, StatusInfo)
        assert status.keys == 2


def test_a_dropped_announcement_is_mended(pair: tuple[Instance, Instance]) -> None:
    a, b = pair
    a.stub.store(1)
    a.stub.seq -= 1
    a.beat()
    resync = a.take(Resync)
    assert isinstance(resync, Resync)
    assert resync.reason == "drift"
    assert b.found(1) == 0
    a.tell(*a.stub.sync(resync.sync))
    a.beat()
    assert b.found(1) == 1


def test_a_gap_is_mended(pair: tuple[Instance, Instance]) -> None:
    a, b = pair
    a.stub.store(1)  # its announcement is lost, and its number with it
    a.beat()
    resync = a.take(Resync)
    assert isinstance(resync, Resync)
    assert resync.reason == "gap"
    a.tell(*a.stub.sync(resync.sync))
    a.beat()
    assert b.found(1) == 1


def test_a_restart_of_the_controller() -> None:
    port = free_port()
    first = Controller(port)
    a = StubInstance("a")
    try:
        with Instance(a, first) as instance:
            before = instance.join()
            instance.tell(*a.store(1))
            instance.beat()
            first.end(signal.SIGKILL)
            first = Controller(port)
            answer = instance.beat()  # over the same socket, which has connected again
            assert isinstance(answer, Refused)
            assert answer.code == "not_registered"
            after = instance.join()
            assert after.epoch != before.epoch
            instance.beat()
            with Instance(StubInstance("b", 2), first) as other:
                other.join()
                assert other.found(1) == 1
    finally:
        assert first.end(signal.SIGINT) == (0, "")


def test_who_leaves_and_who_dies(controller: Controller, pair: tuple[Instance, Instance]) -> None:
    a, b = pair
    a.tell(*a.stub.store(1))
    a.beat()
    a.tell((Leave(1), ()))
    assert a.take(Left) == Left(1)
    assert b.found(1) == 0
    a.join()
    a.beat()
    assert b.found(1) == 1

    def dead() -> bool:
        b.beat()
        with Client(controller.state) as client:
            status, _ = client.ask(Status())
        assert isinstance(status, StatusInfo)
        return [each.state for each in status.instances if each.instance == "a"] == ["dead"]

    until(dead)
    assert b.found(1) == 0
    answer = a.beat()
    assert isinstance(answer, Refused)
    assert answer.code == "not_registered"


def test_incompatible_is_named(controller: Controller, pair: tuple[Instance, Instance]) -> None:
    a, _ = pair
    a.tell(*a.stub.store(1))
    a.beat()
    stub = StubInstance("c", 3, layout="head_size=128\nsegments=8\n")
    with Instance(stub, controller) as c:
        c.join()
        answer = c.locate(1)
        assert isinstance(answer, Located)
        assert (answer.missing, answer.incompatible) == ("incompatible", "head_size")


def test_other_cluster_and_other_protocol_are_refused(controller: Controller) -> None:
    with Client(controller.state, DEADLINE) as client:
        refused, _ = client.ask(StubInstance("a", cluster="blue").registration)
        assert isinstance(refused, Refused)
        assert refused.code == "cluster"
        refused, _ = client.ask(StubInstance("a", protocol=(5, 6)).registration)
        assert isinstance(refused, Refused)
        assert refused.code == "protocol"
        welcome, _ = client.ask(StubInstance("a", protocol=(1, 6)).registration)
        assert isinstance(welcome, Welcome)
        assert welcome.protocol == 1


def test_two_lives(controller: Controller, pair: tuple[Instance, Instance]) -> None:
    a, b = pair
    with Instance(StubInstance("a", 9), controller) as second:
        refused, _ = second.state.ask(second.stub.registration)
        assert isinstance(refused, Refused)
        assert refused.code == "instance_alive"
        assert a.take(Probe) == Probe(1)

        def taken() -> bool:
            b.beat()
            answer, _ = second.state.ask(second.stub.registration)
            return isinstance(answer, Welcome)

        until(taken)
    answer = a.beat()
    assert isinstance(answer, Refused)
    assert answer.code == "not_registered"


def test_a_new_connection_takes_the_place_of_the_old_one(controller: Controller) -> None:
    """As when one side was stopped: the old connection's end may be noticed later."""
    with zmq.Context() as context:
        for _ in range(3):
            dealer = context.socket(zmq.DEALER)
            dealer.setsockopt(zmq.LINGER, 0)
            dealer.setsockopt(zmq.ROUTING_ID, b"the same")
            dealer.connect(controller.state)
            dealer.send_multipart(wire.encode(Status()))
            assert dealer.poll(DEADLINE * 1000)
        context.destroy()


GARBAGE = [
    [b""],
    [b"rubbish"],
    [b"\xc1"],
    [b"\x81\xa4type\xa8announce"],
    [b"\x91" * 3000],
    [os.urandom(200), b"", b"x" * 100],
]


def test_garbage_is_answered_and_never_ends_it(
    controller: Controller, pair: tuple[Instance, Instance]
) -> None:
    a, b = pair
    a.tell(*a.stub.store(1))
    a.beat()
    for address in (controller.state, controller.query):
        with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
            dealer.setsockopt(zmq.LINGER, 0)
            dealer.connect(address)
            for frames in GARBAGE:
                dealer.send_multipart(frames)
                assert dealer.poll(DEADLINE * 1000), frames
                assert b"refused" in dealer.recv_multipart()[0]
            dealer.send(b"\x81\xa4type\xa7foreign")
            assert dealer.poll(DEADLINE * 1000)
            assert b"unsupported" in dealer.recv()
        with Client(address, DEADLINE) as client:
            assert client.ask(Stop())[0] == Unsupported("stop")
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as raw:
            raw.sendall(b"GET / HTTP/1.1\r\n\r\n")
    with Client(controller.query, DEADLINE) as client:
        refused, _ = client.ask(Locate(6, "default", "b", 2), b"short")
        assert isinstance(refused, Refused)
        assert (refused.code, refused.request) == ("field", 6)
    a.tell((Announce(1, a.stub.number()), (b"123", b"", b"")))
    assert isinstance(a.take(Refused), Refused)
    assert b.found(1) == 1


def test_a_frame_too_large_ends_only_its_connection() -> None:
    running = Controller(free_port(), "--max-frame-bytes", "131072")
    try:
        with Client(running.state, 1.0) as client, pytest.raises(Unreachable):
            client.ask(Heartbeat(1, 1, 0, 0, 0), bytes(1 << 18))
        with Client(running.state, DEADLINE) as client:
            assert isinstance(client.ask(Status())[0], StatusInfo)
    finally:
        assert running.end() == (0, "")


def test_a_busy_port_and_an_open_host_are_refused_in_one_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        busy = Controller(port)
        assert busy.end(None) == (1, "")
        assert f"port = {port}" in busy.line
        assert "already in use" in busy.line
    for host in ("0.0.0.0", "example.org", "10.1.2.3"):
        refused = Controller(free_port(), "--host", host)
        assert refused.end(None) == (2, "")
        assert f"host = '{host}'" in refused.line
        assert "loopback" in refused.line


def test_nobody_there_is_said_within_the_deadline() -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    with Client(address, 0.2) as client, pytest.raises(Unreachable, match=address):
        client.ask(Status())


def test_an_idle_controller_sleeps(controller: Controller) -> None:
    """It must not spin: CPU time over a while is a small part of that while."""
    with Client(controller.state, DEADLINE) as client:
        client.ask(Status())

    def cpu() -> float:
        with open(f"/proc/{controller.process.pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    before = cpu()
    time.sleep(1)
    assert cpu() - before < 0.5


def test_all_its_threads_ask_for_short_turns(controller: Controller) -> None:
    """So that a locate does not wait for long turns of whoever computes on the same processors."""
    asked = []
    for schedule in Path(f"/proc/{controller.process.pid}/task").glob("*/sched"):
        asked += [line for line in schedule.read_text().splitlines() if "se.slice" in line]
    if not asked:
        pytest.skip("this kernel does not tell how long turns are: before Linux 6.12")
    assert len(asked) > 4  # ZMQ's threads too
    assert {int(line.rpartition(":")[2]) for line in asked} == {100_000}  # ns


def test_an_empty_controller_takes_64_mib_at_most(controller: Controller) -> None:
    with Client(controller.state, DEADLINE) as client:
        client.ask(Status())
    with open(f"/proc/{controller.process.pid}/status") as file:
        (line,) = [line for line in file if line.startswith("VmRSS:")]
    assert int(line.split()[1]) < 64 << 10


def test_systemd_is_told_when_it_is_ready_and_when_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(tmp_path / "notify"))
        told.settimeout(DEADLINE)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        running = Controller(free_port())
        try:
            assert told.recv(100) == b"READY=1"
        finally:
            assert running.end() == (0, "")
        assert told.recv(100) == b"STOPPING=1"


def test_logs_as_json() -> None:
    running = Controller(free_port(), "--log", "json")
    line = json.loads(running.line)
    assert (line["process"], abs(line["time"] - time.time()) < 3600) == ("controller", True)
    assert line["message"].startswith(f"listening at {running.state}")
    assert running.end() == (0, "")
