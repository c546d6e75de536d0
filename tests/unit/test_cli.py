"""The `lmkv` command as a shell sees it: data on stdout, words on stderr, and the exit status."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import zmq
from lmkv import __version__, _native
from lmkv.cli import common, job_tables, tables
from lmkv.cli.main import app
from lmkv.controller import texts
from lmkv.controller.server import Server
from lmkv.core.client import Client
from lmkv.core.config import ControllerConfig, load
from lmkv.core.messages import HeartbeatOk, InstanceState, LookupInfo, StatusInfo, Welcome
from typer.testing import CliRunner

from tests.ports import free_port
from tests.stub_instance import NAMESPACE, StubInstance

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
DONE, FAILED, USAGE, UNREACHABLE, REFUSED = 0, 1, 2, 3, 4
DEADLINE = 60.0
TOKENS = list(range(40))  # two chunks of 16, and a tail
MODEL = "[red]m[/red]" + "x" * 200  # rich would take it for markup, and cut it


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "lmkv.cli.main", *words]


def environment(**more: str) -> dict[str, str]:
    """This process's without settings."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("LMKV_")}
    return {**mine, "COLUMNS": "100", "NO_COLOR": "1", **more}


def lmkv(*words: str, stdin: str = "", **more: str) -> tuple[int, str, str]:
    """(exit status, stdout, stderr)."""
    done = subprocess.run(
        command(*words), input=stdin, capture_output=True, text=True,
        timeout=60, env=environment(**more),
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


def sentence(expected: int, *words: str, **more: str) -> str:
    """The one line on stderr of a command that ends with `expected` and prints no data."""
    status, out, err = lmkv(*words, **more)
    assert (status, out) == (expected, ""), (out, err)
    assert err.count("\n") == 1, err
    return err


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A controller with one instance, `a`, that holds both chunks of TOKENS."""
    never = {"suspect_after_beats": 999, "dead_after_beats": 1000}  # it is silent
    server = Server(load(ControllerConfig, {"port": 0, **never}))
    stop = threading.Event()
    thread = threading.Thread(target=server.serve, args=(stop.is_set,))
    thread.start()
    try:
        stub = StubInstance("a")
        stub.registration.model = MODEL
        with Client(server.state_address, DEADLINE) as client:
            assert isinstance(client.ask(stub.registration)[0], Welcome)
            chain = _native.KeyHasher(NAMESPACE, ["kind=full\n"], 16).chain()
            chain.extend(TOKENS)
            reserved = stub.table.reserve(chain.keys(), 0.0)
            assert reserved is not None
            assert stub.table.admit(*reserved) == 2
            for message, arrays in [*stub.changes(), *stub.sync(), stub.heartbeat()]:
                client.send(message, *arrays)
            assert isinstance(client.receive()[0], HeartbeatOk)
            yield server.state_address
    finally:
        stop.set()
        thread.join(DEADLINE)
        server.close()


# ------------------------------------------------------------------ data


def test_version_loads_neither_sockets_nor_tables() -> None:
    status, out, err = lmkv("version")
    assert (status, err) == (DONE, "")
    assert out.startswith(f"lmkv {__version__}, protocol 1-1")
    assert lmkv("--version") == (DONE, out, "")
    script = (
        "import sys; from lmkv.cli.main import app; app(['version'], standalone_mode=False); "
        "heavy = ('zmq', 'yaml', 'torch', 'vllm', 'lmkv.controller'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_status_as_a_table(address: str) -> None:
    status, out, err = lmkv("status", "--controller", address)
    assert (status, err) == (DONE, "")
    assert "cluster default" in out and "2 chunks" in out
    assert out.splitlines()[-1].split()[:5] == ["a", "live", MODEL, "1", "2"]


def test_what_an_instance_calls_itself_moves_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = InstanceState("a", 1, "live", "\x1b[2J\nforged", "http://\x1b]0;x\x07", version="\x9b")
    tables.instances_table([found])
    tables.instance_page(found)
    shown = capsys.readouterr().out
    assert "?[2J?forged" in shown
    assert all(line.isprintable() for line in shown.split("\n"))
    with pytest.raises(typer.Exit):
        common.fail("instance 'a' said \x1b[2J", FAILED)
    assert capsys.readouterr().err == "lmkv: instance 'a' said ?[2J\n"


def test_status_as_json_from_the_environments_controller(address: str) -> None:
    status, out, err = lmkv("status", "-o", "json", LMKV_CONTROLLER=address)
    assert (status, err) == (DONE, "")
    body = json.loads(out)
    assert (body["cluster"], body["keys"]) == ("default", 2)
    [instance] = body["instances"]
    assert (instance["instance"], instance["state"], instance["keys"]) == ("a", "live", 2)
    # A script finds every field, also those that stand at their default.
    assert set(body) | {"request"} == set(StatusInfo.__struct_fields__)
    assert set(instance) == set(InstanceState.__struct_fields__)


@pytest.mark.parametrize("how", ["list", "file", "stdin"])
def test_lookup_names_the_holders_of_each_chunk(address: str, how: str, tmp_path: Path) -> None:
    text = ",".join(map(str, TOKENS))
    path = tmp_path / "tokens"
    path.write_text(text.replace(",", "\n"))
    words = {"list": text, "file": f"@{path}", "stdin": "@-"}[how]
    status, out, err = lmkv(
        "lookup", "--tokens", words, "--controller", address, "-o", "json", stdin=text
    )
    assert (status, err) == (DONE, "")
    body = json.loads(out)
    chain = _native.KeyHasher(NAMESPACE, ["kind=full\n"], 16).chain()
    chain.extend(TOKENS)
    assert "".join(body["keys"]) == chain.keys().hex()
    assert (body["holders"], body["matched"]) == ([["a"], ["a"]], {"a": 32})


def test_lookup_as_a_table(address: str) -> None:
    text = ",".join(map(str, TOKENS))
    status, out, _ = lmkv("lookup", "--tokens", text, "--controller", address)
    assert status == DONE
    assert "a has the first 32 tokens" in out
    salted = lmkv("lookup", "--tokens", text, "--controller", address, "--salt", "s")[1]
    assert "has the first" not in salted and "-" in salted.split()
    short = lmkv("lookup", "--tokens", "1", "--controller", address)
    assert short == (DONE, "", "shorter than a chunk of 16 tokens\n")


def test_status_lists_instances_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    found = [InstanceState(name, 1, "live") for name in "cab"]
    tables.status_table(StatusInfo(0, "c", "x", 1, "ready", "1.0", 9, 0, 0, 0, 0, 0, 0, found))
    assert [line[0] for line in capsys.readouterr().out.splitlines()[-3:]] == ["a", "b", "c"]


def test_a_narrow_terminal_leaves_out_columns_and_cuts_no_id() -> None:
    job = ["j" + "0" * 32, "compress", "done", "a to b", "9/16", "5 MiB", "-", "-", "8 s ago", "me"]
    for room, shown in ((100, 9), (60, 4)):
        made = tables.table(job_tables.COLUMNS, [job], room)
        names = [name.lstrip(">") for name in job_tables.COLUMNS]
        headers = [column.header for column in made.columns]
        assert headers == [name for name in names if name in headers]
        assert (len(headers), headers[0], made.columns[0].no_wrap) == (shown, "job", True)
    made = tables.table(("key", ">tokens", "holders"), [["0" * 32, "512", "a, " * 90]], 60)
    assert [column.header for column in made.columns] == ["key", "tokens", "holders"]
    assert not made.columns[2].no_wrap


class Asked:
    """A client that keeps what it was asked, and for how long it would have waited."""

    def __init__(self) -> None:
        self.deadline = 0.0

    def __enter__(self) -> Asked:
        return self

    def __exit__(self, *_: object) -> None: ...

    def connected(self, seconds: float) -> None:
        assert seconds < texts.DEADLINE

    def ask(self, *_: object) -> tuple[LookupInfo, list[bytes]]:
        return LookupInfo(1, 16, [], [], {}), []


def test_a_text_has_the_time_that_its_instance_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked()
    monkeypatch.setattr(common, "client_of", lambda _: asked)
    done = CliRunner().invoke(app, ["lookup", "Once upon a time"])
    assert (done.exit_code, done.stdout) == (DONE, "")
    assert asked.deadline > texts.DEADLINE


# ------------------------------------------------------------------ 1: failed


def test_what_the_controller_refuses(address: str) -> None:
    words = ("lookup", "--tokens", "1", "--controller", address, "--like", "nobody")
    assert "'nobody' is not known here" in sentence(FAILED, *words)


def test_more_tokens_than_a_message_carries(address: str) -> None:
    """The controller would drop the connection, and 40,000 more chunks are too many to list."""
    words = ("lookup", "--tokens", "@-", "--controller", address)
    status, out, err = lmkv(*words, stdin="100000," * 900_000)
    assert (status, out) == (FAILED, "")
    assert "--tokens: a message of 4500" in err and "at most 4194304 (its setting" in err
    status, out, err = lmkv(*words, stdin="100000," * 700_000)
    assert (status, out) == (FAILED, "")
    assert err == "lmkv: tokens: 43750 chunks, at most 4096 are allowed\n"


def test_the_query_socket_instead_of_the_state_socket(address: str) -> None:
    with Client(address, DEADLINE) as client:
        welcome, _ = client.ask(StubInstance("b").registration)
    assert isinstance(welcome, Welcome)
    query = f"{address.rpartition(':')[0]}:{welcome.query_port}"
    assert "is it the query socket?" in sentence(FAILED, "status", "--controller", query)


def test_a_socket_that_is_no_controllers() -> None:
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.setsockopt(zmq.LINGER, 0)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    address = f"tcp://127.0.0.1:{port}"

    def answer() -> None:
        if router.poll(int(DEADLINE * 1000)):
            router.send_multipart([router.recv_multipart()[0], b"hello"])

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        assert "no lmkv controller" in sentence(FAILED, "status", "--controller", address)
    finally:
        thread.join(DEADLINE + 1)
        context.destroy(linger=0)


def test_a_full_disk_is_named() -> None:
    for words in (["version"], ["config", "show"], ["config", "show", "-o", "json"]):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                command(*words), stdout=full, stderr=subprocess.PIPE, text=True, env=environment()
            )
        said = "lmkv: what is said cannot be written: No space left on device\n"
        assert (done.returncode, done.stderr) == (FAILED, said)


def test_a_controller_on_a_busy_port() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = sentence(FAILED, "controller", "--port", str(port))
    assert f"port = {port}" in said and "in use" in said


# ------------------------------------------------------------------ 2: usage


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lookup", "--tokens", "1,x"], "'x' is not a token id"),
        (["lookup", "--tokens", "4294967296"], "'4294967296' is not a token id"),
        (["lookup", "--tokens", "-1"], "'-1' is not a token id"),
        (["lookup", "--tokens", "9" * 5000], "'99999999999999999999' is not a token id"),
        (["lookup", "--tokens", ","], "there are none"),
        (["lookup", "--tokens", "@/nowhere/tokens"], "No such file"),
        (["status", "-o", "xml"], "allowed is table or json"),
        (["status", "--controller", "ftp://127.0.0.1:7552"], "is not tcp://HOST:PORT, nor http"),
        (["status", "--controller", "tcp://127.0.0.1:x"], "has no port from 1 to 65535\n"),
        (["status", "--controller", "http://:7552"], "is not http://HOST:PORT"),
        (["status", "--controller", "http://127.0.0.1:7552/v1"], "is not http://HOST:PORT"),
        (["status", "--controller", "http://127.0.0.1:port"], "could not be cast"),
        (["controller", "--http-port", "x"], "http_port = 'x' (command line): allowed is a port"),
        (["controller", "--port", "65534"], "http_port = 0 (default): allowed is another port"),
        (["controller", "--port", "99999"], "port = '99999' (command line): allowed is"),
        (["controller", "--port", "x"], "port = 'x' (command line): allowed is a port"),
        (["lookup", "--tokens", "1", "--salt", "\udcff"], "--salt '\\udcff': allowed is UTF-8"),
        (
            ["controller", "--keys", "/nowhere"],
            "keys = '/nowhere' (command line): /nowhere/s",
        ),
        (
            ["controller", "--tokens", "/nowhere"],
            "tokens = '/nowhere' (command line): /nowhere",
        ),
        (["controller", "--http-cert", "/nowhere"], "http_key = '': allowed is a file"),
        (["controller", "--http-key", "/nowhere"], "http_cert = '': allowed is a file"),
        (
            ["controller", "--http-cert", "/nowhere", "--http-key", "/nowhere"],
            "http_cert = '/nowhere', http_key = '/nowhere' (command line): No such file",
        ),
        (
            ["--keys", "/nowhere", "status"],
            "--keys or LMKV_KEYS: /nowhere/client.key: No",
        ),
        (["--cacert", "/nowhere", "status", "--controller", "https://127.0.0.1:1"], "'/nowhere'"),
        (["keys", "token", "--name", "a", "--scope", "root"], "--scope 'root': allowed is one of"),
        (["controller", "--cluster", "two words"], "cluster = 'two words'"),
        (["get", "instances", "-l", "state=alive"], "allowed as a state is live, syncing"),
        (["get", "jobs", "--state", "over"], "--state 'over': allowed is one of queued, running"),
        (["config", "init", "router"], "KIND 'router': allowed is instance or controller"),
        (["controller", "--config", "/nowhere/a.yaml"], "No such file"),
        (["controller", "--config", str(EXAMPLES / "instance-a.yaml")], "setting of the instance"),
    ],
)
def test_a_mistake_of_the_callers(words: list[str], said: str) -> None:
    assert said in sentence(USAGE, *words)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.invalid", "*"])
def test_a_controller_off_loopback(host: str) -> None:
    said = sentence(USAGE, "controller", "--host", host, "--port", str(free_port()))
    assert f"host = {host!r} (command line)" in said and "loopback" in said


def test_a_bad_variable_is_named() -> None:
    assert "LMKV_HARTBEAT" in sentence(USAGE, "controller", LMKV_HARTBEAT="1")


def test_a_command_that_is_not_there() -> None:
    status, out, err = lmkv("stauts")
    assert (status, out) == (USAGE, "")
    assert "status" in err


# ------------------------------------------------------------------ 3: unreachable


def test_nobody_listens() -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    for words in (["status"], ["lookup", "--tokens", "1"]):
        said = sentence(UNREACHABLE, *words, "--controller", address)
        assert said == f"lmkv: no controller listens at {address}\n"


def test_somebody_listens_and_does_not_answer() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        said = sentence(UNREACHABLE, "status", "--controller", address)
        assert f"what listens at {address} is no controller's state socket, or it asks for" in said


@pytest.mark.parametrize(
    ("answer", "expected", "said"),
    [
        (b"", UNREACHABLE, "does not answer"),
        (b"SSH-2.0-x\r\n", FAILED, "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\n\r\nhello", FAILED, "no lmkv controller's web process"),
        (b"HTTP/1.1 200 OK\r\n\r\n{}", FAILED, "no lmkv controller's web process"),
        (b"HTTP/1.1 404 No\r\n\r\nno", FAILED, "(status 404)"),
        (
            b'HTTP/1.1 503 No\r\n\r\n{"error": {"message": "it sleeps"}}',
            UNREACHABLE,
            "it sleeps",
        ),
        (b'HTTP/1.1 401 No\r\n\r\n{"error": {"message": "a token"}}', REFUSED, "a token"),
        (b'HTTP/1.1 403 No\r\n\r\n{"error": {"message": "scope"}}', REFUSED, "scope"),
    ],
)
def test_an_http_address_that_is_no_controllers(answer: bytes, expected: int, said: str) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]

        def serve() -> None:
            for _ in range(2 if answer.endswith(b"{}") else 1):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{port}"
        assert said in sentence(expected, "status", "--controller", address)
    assert "does not answer" in sentence(UNREACHABLE, "status", "--controller", address)


# ------------------------------------------------------------------ the controller's life


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_examples_controller_runs_until_a_signal(number: signal.Signals) -> None:
    port = free_port()
    words = [
        "controller",
        "--config",
        str(EXAMPLES / "controller.yaml"),
        "--http-port",
        str(free_port()),
    ]
    running = subprocess.Popen(
        command(*words, "--port", str(port), "--query-port", str(free_port())),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    try:
        assert running.stderr is not None
        assert f"listening at tcp://127.0.0.1:{port}" in running.stderr.readline()
        status, _, err = lmkv("status", "--controller", f"tcp://127.0.0.1:{port}")
        assert (status, err) == (DONE, "no instances\n")
        running.send_signal(number)
        out, err = running.communicate(timeout=DEADLINE)
        assert (running.returncode, out, err) == (DONE, "", "")
    finally:
        running.kill()
        running.wait()


def test_garbage_does_not_end_a_controller(address: str) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(address)
        for frame in (b"", b"\xff", b"\x81", struct.pack("<Q", 1), os.urandom(1000)):
            dealer.send_multipart([frame, frame])
            assert dealer.poll(int(DEADLINE * 1000))
            dealer.recv_multipart()
    assert lmkv("status", "--controller", address)[0] == DONE
