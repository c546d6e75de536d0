"""What no well-behaved client does, done to a live controller and its web process: half a
connection, no reading, ten thousand at once, a GiB in a frame, clocks that jump.

Meanwhile somebody else locates and asks; memory is read from the kernel's own counts.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import zmq
from lmkv.core import wire
from lmkv.core.client import Client
from lmkv.core.descriptors import allow_descriptors
from lmkv.core.messages import Located, Status, StatusInfo

from tests import zmtp
from tests.contract.test_controller import DEADLINE, Instance, until
from tests.stub_instance import StubInstance
from tests.web import Web

MIB = 1 << 20
SILENT = "--suspect-after-beats", "999", "--dead-after-beats", "1000"  # for 200 seconds
ROOT = Path(__file__).resolve().parents[2]


def memory(pid: int, which: str = "VmRSS") -> int:
    """Bytes that a process has in memory; `VmHWM`: had at most."""
    found = re.search(rf"{which}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) << 10


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


class Beside:
    """An instance that goes on, and a caller of HTTP."""

    def __init__(self, web: Web) -> None:
        self.web = web
        self.instance = Instance(StubInstance("beside"), web)
        self.instance.join()
        self.instance.tell(*self.instance.stub.store(1, 2, 3))
        self.instance.beat()

    def is_served(self, times: int = 5) -> None:
        """Each answer comes before `DEADLINE`, or this raises. (The web process says 503 when the
        controller takes a second, which a busy machine may.)"""
        for _ in range(times):
            assert isinstance(self.instance.locate(1, 2, 3), Located)
            until(lambda: self.web.ask("/healthz").status == 200)
        self.instance.beat()


@pytest.fixture
def beside() -> Iterator[Beside]:
    web = Web("--http-rate", "100000", *SILENT)
    web.up()
    running = Beside(web)
    with running.instance:
        yield running
    status, said = web.end()
    assert (status, said) == (0, "")


# ------------------------------------------------------------------ half a connection


def test_half_a_handshake_is_closed(beside: Beside) -> None:
    with ExitStack() as stack:
        half = []
        for of in (beside.web.state, beside.web.query):
            for begun in (b"", b"\xff", zmtp.GREETING, zmtp.GREETING + b"\x04\x26\x05RE"):
                for _ in range(20):
                    raw = stack.enter_context(zmtp.plain(of, DEADLINE))
                    raw.sendall(begun)
                    half.append((begun, raw))
        beside.is_served()
        for begun, raw in half:
            assert zmtp.closed(raw), begun


BODY = b"POST /v1/lookup HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def body(length: int) -> bytes:
    """The head of a request."""
    return BODY + b"Content-Length: %d\r\n\r\n" % length


def test_half_a_request_is_closed_and_a_body_of_a_gib_is_not_kept(beside: Beside) -> None:
    """The other end of each has gone without a word, as far as these can tell; one goes on."""
    [child] = beside.web.children()
    before, most = descriptors(child), memory(child, "VmHWM")
    half_heads = b"", b"GET", b"GET / HTTP/1.1\r\nHos", b"GET / HTTP/1.1\r\nHost: x\r\n", BODY
    begun = dict.fromkeys(half_heads, b"")
    begun[body(1000) + b"{"] = b"HTTP/1.1 408"
    with ExitStack() as stack:
        half = []
        for text, answer in [*begun.items()] * 20:
            raw = stack.enter_context(zmtp.plain(beside.web.http, DEADLINE))
            raw.sendall(text)
            half.append((text, answer, raw))
        large = stack.enter_context(zmtp.plain(beside.web.http, DEADLINE))
        large.sendall(body(1 << 30))
        with suppress(ConnectionError):
            for _ in range(64):
                large.sendall(bytes(MIB))
        beside.is_served()
        for text, answer, raw in half:
            assert raw.recv(12) == answer, text
            assert zmtp.closed(raw), text
        assert large.recv(12) == b"HTTP/1.1 413"
        assert zmtp.closed(large)
        until(lambda: descriptors(child) <= before + 5)
    beside.is_served()
    assert memory(child, "VmHWM") - most < 64 * MIB


# ------------------------------------------------------------------ no reading


def test_a_client_that_never_reads_its_answers(beside: Beside) -> None:
    """What it asked for is dropped, and not kept for it."""
    pid = beside.web.process.pid
    context = zmq.Context()
    deaf = context.socket(zmq.DEALER)
    deaf.setsockopt(zmq.RCVHWM, 1)
    deaf.setsockopt(zmq.RCVBUF, 4096)
    deaf.setsockopt(zmq.LINGER, 0)
    deaf.connect(beside.web.state)
    before = memory(pid)
    question = wire.encode(Status())
    sent = 0
    for _ in range(30_000):
        with suppress(zmq.Again):
            deaf.send_multipart(question, zmq.NOBLOCK)
            sent += 1
        if sent % 1000 == 0:
            beside.is_served(1)
    beside.is_served()
    context.destroy(linger=0)
    assert sent > 1000
    assert memory(pid) - before < 64 * MIB


def test_http_readers_that_do_not_read(beside: Beside) -> None:
    [child] = beside.web.children()
    before = memory(child)
    many = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 200
    with ExitStack() as stack:
        for _ in range(20):
            raw = stack.enter_context(socket.socket())
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.settimeout(DEADLINE)
            raw.connect(zmtp.address(beside.web.http))
            raw.setblocking(False)
            with suppress(BlockingIOError):
                raw.send(many)
        beside.is_served()
        assert memory(child) - before < 64 * MIB


# ------------------------------------------------------------------ one floods


@pytest.mark.parametrize("where", ["state", "query"])
@pytest.mark.parametrize(
    "what",
    [b"rubbish", b"\xdd\xff\xff\xff\xff", bytes(MIB)],
    ids=["rubbish", "a long list", "a MiB"],
)
def test_a_flood_blocks_nobody(beside: Beside, where: str, what: bytes) -> None:
    pid, stop, sent = beside.web.process.pid, threading.Event(), [0]
    before = memory(pid)

    def flood() -> None:
        with zmq.Context() as context:
            socket = context.socket(zmq.DEALER)
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.SNDHWM, 16)
            socket.connect(getattr(beside.web, where))
            while not stop.is_set():
                if socket.poll(10, zmq.POLLOUT):
                    socket.send(what)
                    sent[0] += 1
            socket.close()

    flooding = threading.Thread(target=flood)
    flooding.start()
    try:
        until(lambda: sent[0] > 20)
        for _ in range(10):
            begun = sent[0]
            beside.is_served(3)
            until(lambda: sent[0] > begun)  # noqa: B023 (it is over before the next round)
    finally:
        stop.set()
        flooding.join()
    assert memory(pid) - before < 256 * MIB  # its queue: 128 messages


def test_a_frame_of_a_gib(beside: Beside) -> None:
    """It is refused at its head: no room is made, and the connection is over."""
    pid = beside.web.process.pid
    beside.is_served()
    most = memory(pid, "VmHWM")
    for of in (beside.web.state, beside.web.query):
        for length in (1 << 30, (1 << 63) - 1, (1 << 64) - 1):
            with zmtp.connect(of, DEADLINE) as raw:
                raw.sendall(zmtp.header(length))
                block = bytes(MIB)
                with suppress(ConnectionError):
                    for _ in range(64):
                        raw.sendall(block)
                assert zmtp.closed(raw)
    beside.is_served()
    assert memory(pid, "VmHWM") - most < 32 * MIB


# ------------------------------------------------------------------ ten thousand


def test_ten_thousand_connections(beside: Beside) -> None:
    """Open at once, with their handshakes done."""
    pid, wanted = beside.web.process.pid, 10_000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted + 1000:
        pytest.skip(f"the hard limit of descriptors is {hard}")
    allow_descriptors(wanted + 1000)
    before, rss = descriptors(pid), memory(pid)
    try:
        with ExitStack() as open_:
            for number in range(wanted):
                open_.enter_context(zmtp.connect(beside.web.state, DEADLINE))
                if number % 1000 == 999:
                    beside.is_served(1)
            until(lambda: descriptors(pid) >= before + wanted)
            beside.is_served()
            assert memory(pid) - rss < 512 * MIB
        until(lambda: descriptors(pid) <= before + 5)
        beside.is_served()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with Client(beside.web.state, DEADLINE) as client:
        info, _ = client.ask(Status(1))
    assert isinstance(info, StatusInfo) and info.states == {"live": 1}


# ------------------------------------------------------------------ clocks that jump

JUMPING = r"""
// The time of day as a drunk sees it: each reading is years before or after the last one.
#include <sys/time.h>
#include <time.h>
#include <sys/syscall.h>
#include <unistd.h>
static time_t jump(void) {
    static unsigned n;
    n = n * 1664525u + 1013904223u;
    return (time_t)(n >> 2);
}
int clock_gettime(clockid_t which, struct timespec* out) {
    int result = (int)syscall(SYS_clock_gettime, which, out);
    if (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE) out->tv_sec = jump();
    return result;
}
int gettimeofday(struct timeval* out, void* zone) {
    (void)zone;
    out->tv_sec = jump();
    out->tv_usec = 0;
    return 0;
}
time_t time(time_t* out) {
    time_t now = jump();
    if (out) *out = now;
    return now;
}
"""


def test_clocks_that_jump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    source, library = tmp_path / "jump.c", tmp_path / "jump.so"
    source.write_text(JUMPING)
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
    monkeypatch.setenv("LD_PRELOAD", str(library))
    web = Web("--log", "json", *SILENT)
    monkeypatch.delenv("LD_PRELOAD")
    try:
        web.up()
        said = re.search(r'"time": ([0-9.]+)', web.line)
        assert said and float(said[1]) < 1 << 30  # it does see that clock
        running = Beside(web)
        with running.instance:
            for _ in range(20):
                running.is_served()
            with Client(web.state, DEADLINE) as client:
                info, _ = client.ask(Status(1))
            assert isinstance(info, StatusInfo)
            assert (info.states, info.drifts, info.resyncs) == ({"live": 1}, 0, 0)
            assert 0 <= info.uptime < 600
            assert 0 <= info.instances[0].heartbeat_age < 60
    finally:
        assert web.end()[0] == 0


def test_no_decision_takes_the_time_of_day() -> None:
    """Only what is shown has it: a line of the log, a span, LMCache's answers, the CLI's events."""
    day = re.compile(
        r"\btime\.time(_ns)?\(|datetime\.(now|utcnow|today)\("
        r"|system_clock|CLOCK_REALTIME|gettimeofday"
    )
    files = [*(ROOT / "python" / "lmkv").rglob("*.py")]
    files += [*(ROOT / "csrc").rglob("*.*"), *(ROOT / "kernels").rglob("*.*")]
    found = [path.relative_to(ROOT).as_posix() for path in files if day.search(path.read_text())]
    shown = ["agent/tracing.py", "cli/events.py", "core/log.py", "web/lmcache.py"]
    assert sorted(found) == [f"python/lmkv/{each}" for each in shown]
