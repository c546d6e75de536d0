"""The controller over its sockets: locate beside a bare echo, announcements (DESIGN.md 7 and 11).

The echo is a process with a ROUTER that answers each message with frames of the same sizes as the
controller does, and nothing else. For announcements the limit is the same frames into a ROUTER
that drops them.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
import zmq
from lmkv.core import wire
from lmkv.core.client import Client
from lmkv.core.messages import (
    Announce,
    Heartbeat,
    HeartbeatOk,
    HostIdentity,
    Locate,
    Located,
    RankInfo,
    Refused,
    Register,
    SyncEnd,
    Welcome,
)

from bench.harness import Row, measure

KEYS = 512
MESSAGE = 4096
MILLION = 1_000_000
DEADLINE = 30.0

# argv: port, bytes of the answer's head. Two frames in (a question): answered in kind; else dropped
# until an empty frame asks whether all has come.
ECHO = """
import sys, zmq
socket = zmq.Context().socket(zmq.ROUTER)
socket.setsockopt(zmq.RCVHWM, 128)
socket.bind(f"tcp://127.0.0.1:{sys.argv[1]}")
print("ready", flush=True)
answer = [bytes(int(sys.argv[2])), bytes(8 * 512), bytes(4 * 512)]
while True:
    frames = socket.recv_multipart()
    if len(frames) == 3:
        socket.send_multipart([frames[0], *answer])
    elif len(frames) == 2:
        socket.send_multipart([frames[0], b"all"])
"""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def process(*arguments: str) -> Iterator[str]:
    """A python process; its first line."""
    running = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert running.stdout
        yield running.stdout.readline()
    finally:
        running.terminate()
        with suppress(subprocess.TimeoutExpired):
            running.wait(5)
        running.kill()
        running.wait()


class Instance:
    """Registered, and with an empty sync behind it."""

    def __init__(self, address: str, name: str, epoch: int) -> None:
        self.epoch, self.seq, self.name = epoch, 0, name
        self.client = Client(address, DEADLINE)
        rank = RankInfo(0, HostIdentity(name, 1, 1), nixl_metadata=b"x")
        register = Register(
            1, 1, "default", name, epoch, "weights=one\n", ["segments=1\n"], 16, [rank]
        )
        assert isinstance(self.client.ask(register)[0], Welcome)
        self.client.send(SyncEnd(epoch, self.number(), 0))

    def number(self) -> int:
        self.seq += 1
        return self.seq

    def announce(self, messages: list[tuple[bytes, bytes, bytes]]) -> None:
        """Until all is applied."""
        for arrays in messages:
            self.client.send(Announce(self.epoch, self.number()), *arrays)
        self.client.send(Heartbeat(self.epoch, self.number(), 0, 0, 0))
        while True:
            answer, _ = self.client.receive()
            assert not isinstance(answer, Refused), answer.message
            if isinstance(answer, HeartbeatOk):
                assert answer.seq == self.seq
                return  # else: its sums are made up, a sync may be asked for


def batches(n: int) -> list[tuple[bytes, bytes, bytes]]:
    places = np.zeros(n, dtype=[("first", "<u4"), ("granules", "u1"), ("rest", "u1", 3)])
    places["first"], places["granules"] = 16 * np.arange(n), 16
    counters = np.arange(1, n + 1, dtype="<u4")
    return [
        (os.urandom(16 * MESSAGE), places[i : i + MESSAGE].tobytes(),
         counters[i : i + MESSAGE].tobytes())
        for i in range(0, n, MESSAGE)
    ]  # fmt: skip


def rows(n: int = 256 * MESSAGE, questions: int = 200) -> list[Row]:
    port, echo_port = free_port(), free_port()
    command = ["-m", "lmkv.controller.main", "--port", str(port), "--query-port", str(free_port())]
    command += ["--web", "false", "--heartbeat", "600"]  # nobody sends one here
    with process(*command) as line:
        query = line.rpartition("queries at ")[2].strip()
        state = f"tcp://127.0.0.1:{port}"
        holder = Instance(state, "holder", 1)
        Instance(state, "asker", 2)
        messages = batches(n)
        holder.announce(messages)
        keys = messages[0][0][: 16 * KEYS]
        question = wire.encode(Locate(1, "default", "asker", 2), keys)
        with Client(query, DEADLINE) as client:
            located, _ = client.ask(Locate(1, "default", "asker", 2), keys)
            assert isinstance(located, Located)
            assert located.found == KEYS
            head = len(wire.encode(located)[0])
            with process("-c", ECHO, str(echo_port), str(head)) as ready:
                assert ready == "ready\n"
                with Client(f"tcp://127.0.0.1:{echo_port}", DEADLINE) as echo:
                    return [
                        locate_row(client, echo, question, questions),
                        announce_row(holder, echo, messages),
                    ]


def locate_row(client: Client, echo: Client, question: list[bytes], questions: int) -> Row:
    def through(one: Client) -> None:
        socket = one._socket
        socket.setsockopt(zmq.RCVTIMEO, int(DEADLINE * 1000))
        for _ in range(questions):
            socket.send_multipart(question)
            assert len(socket.recv_multipart()) == 3

    us, limit = measure(
        lambda: through(client),
        lambda: through(echo),
        figure=lambda seconds: seconds / questions * 1e6,
    )
    return Row(f"controller locate, {KEYS} keys", "us", us, limit, 2.0, at_least=False,
               note="over a socket; limit: a bare echo of frames of the same sizes")  # fmt: skip


def announce_row(holder: Instance, echo: Client, messages: list[tuple[bytes, bytes, bytes]]) -> Row:
    n = len(messages) * MESSAGE

    def dropped() -> None:
        for number, arrays in enumerate(messages):
            echo._socket.send_multipart(wire.encode(Announce(1, number), *arrays))
        echo._socket.send(b"")
        assert echo._socket.poll(DEADLINE * 1000)
        assert echo._socket.recv() == b"all"

    rate, limit = measure(
        lambda: holder.announce(messages),
        dropped,
        rounds=7,
        figure=lambda seconds: n / seconds / MILLION,
    )
    return Row("controller announce", "M keys/s", rate, limit, 5 / limit.median,
               note="target: 5 M keys/s through the socket, until applied; limit: the same frames "
                    f"into a ROUTER that drops them; {n / MILLION:.1f} M keys")  # fmt: skip
