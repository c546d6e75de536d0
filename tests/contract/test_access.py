"""Live controllers with keys and tokens: who is let in, who is told why not, what changes without a
restart, and what never stands in a log."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from lmkv.agent.links import Link
from lmkv.core import keyfiles, tokens
from lmkv.core.client import Client, Unreachable
from lmkv.core.messages import (
    JobInfo,
    Lookup,
    Refused,
    Register,
    Status,
    StatusInfo,
    Submit,
    Welcome,
)

from tests import certificate
from tests.contract.test_controller import DEADLINE, Controller, until
from tests.contract.test_controllers import Instance as AgentInstance
from tests.ports import free_port
from tests.scripted_jobs import KEYS, Worker
from tests.stub_instance import StubInstance
from tests.web import TOKENS, Web

REFUSED = 4  # exit status of the CLI


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    keyfiles.make(tmp_path / "keys")
    return tmp_path / "keys"


@pytest.fixture
def locked(keys: Path) -> Iterator[Controller]:
    running = Controller(free_port(), "--keys", str(keys))
    yield running
    running.end()


def status(address: str, given: keyfiles.ClientKeys | None) -> str:
    """The controller's state; Unreachable when it lets nobody in like that."""
    with Client(address, DEADLINE, given) as client:
        answer, _ = client.ask(Status(1))
        assert isinstance(answer, StatusInfo)
        return answer.state


def shut_out(address: str, given: keyfiles.ClientKeys | None) -> None:
    """While the controller answers others."""
    with Client(address, 0.5, given) as client:
        with pytest.raises(Unreachable):
            client.ask(Status(1))


# ------------------------------------------------------------------ CURVE


def test_only_clients_that_are_named_get_in(locked: Controller, keys: Path) -> None:
    good = keyfiles.read_client(keys)
    other = keyfiles.new_pair()
    for address in (locked.state, locked.query):
        shut_out(address, None)
        shut_out(address, keyfiles.ClientKeys(*other, good.server))
        shut_out(address, keyfiles.ClientKeys(good.public, good.secret, other.public))
    assert status(locked.state, good)
    _, said = locked.end()
    assert said.count(other.public.decode()) == 1  # its public key, once
    assert good.secret.decode() not in said and other.secret.decode() not in said


def test_an_agents_link(locked: Controller, keys: Path) -> None:
    link = Link(locked.state, keyfiles.read_client(keys))
    poller = zmq.Poller()
    poller.register(link.socket, zmq.POLLIN)
    assert link.socket.poll(1000 * DEADLINE, zmq.POLLOUT)
    assert isinstance(StubInstance("a").registration, Register)
    assert link.send(StubInstance("a").registration)
    assert poller.poll(1000 * DEADLINE)
    [(welcome, _)] = list(link.receive())
    assert isinstance(welcome, Welcome)
    link.close()


def test_clients_come_and_go_without_a_restart(
    locked: Controller, keys: Path, tmp_path: Path
) -> None:
    def is_out() -> bool:
        with Client(locked.state, 0.5, new) as client:
            try:
                client.ask(Status(1))
            except Unreachable:
                return True
            return False

    keyfiles.make_client(keys, "new", tmp_path / "new", data=False)
    new = keyfiles.read_client(tmp_path / "new")
    shut_out(locked.state, new)
    locked.process.send_signal(signal.SIGHUP)
    until(lambda: not is_out())
    lines = (keys / "clients").read_text().splitlines()
    (keys / "clients").write_text("".join(f"{x}\n" for x in lines if not x.startswith("new ")))
    locked.process.send_signal(signal.SIGHUP)
    until(is_out)
    assert status(locked.state, keyfiles.read_client(keys))


def test_a_client_that_is_refused_while_nobody_reads_the_log(
    locked: Controller, keys: Path
) -> None:
    assert locked.process.stderr
    locked.process.stderr.close()
    ours = keyfiles.read_client(keys)
    shut_out(locked.state, keyfiles.ClientKeys(*keyfiles.new_pair(), ours.server))
    assert status(locked.state, ours) in ("warming", "ready")


def test_clients_that_cannot_be_read_change_nothing(locked: Controller, keys: Path) -> None:
    (keys / "clients").chmod(0o644)
    locked.process.send_signal(signal.SIGHUP)
    assert locked.process.stderr
    said = next(line for line in locked.process.stderr if "read again" in line)
    assert "mode is 0644" in said
    assert status(locked.state, keyfiles.read_client(keys))


@pytest.mark.parametrize("name", ["server.key", "clients"])
def test_a_controller_does_not_start_with_keys_that_others_can_read(keys: Path, name: str) -> None:
    (keys / name).chmod(0o640)
    running = Controller(free_port(), "--keys", str(keys))
    assert running.end(None)[0] == 2
    assert f"keys = '{keys}' (command line): {keys / name}: mode is 0640" in running.line


def test_the_web_process_has_keys_of_its_own(keys: Path) -> None:
    (keys / "client.key").unlink()  # a controller does not need it
    running = Web("--keys", str(keys))
    try:
        running.up()
        assert running.ask("/v1/cluster").status == 200
        [child] = running.children()
        for where in ("cmdline", "environ"):
            told = Path(f"/proc/{child}/{where}").read_bytes()
            assert keyfiles.read_pair(keys, "server").public not in told
    finally:
        running.end()


def test_web_processes_ask_the_other_controllers(keys: Path) -> None:
    first, second = Web("--keys", str(keys)), Web("--keys", str(keys))
    given = keyfiles.read_client(keys)
    stub = StubInstance("a")
    stub.registration.controllers = [first.state, second.state]
    try:
        first.up()
        second.up()
        with Client(first.state, DEADLINE, given) as client:
            answer, _ = client.ask(stub.registration)
            assert isinstance(answer, Welcome)
            seen = first.ask("/v1/controllers").json["controllers"]
        assert [each["address"] for each in seen[1:]] == [second.state]
        assert all(each["state"] in ("warming", "ready") for each in seen)
    finally:
        first.end()
        second.end()


# ------------------------------------------------------------------ tokens


@pytest.fixture
def guarded(keys: Path) -> Iterator[tuple[Web, dict[str, str]]]:
    """And a header by scope."""
    path = keys / "tokens"
    given = {scope: f"Bearer {tokens.add(path, scope, scope)}" for scope in tokens.SCOPES}
    running = Web("--keys", str(keys))
    running.up()
    yield running, given
    running.end()


def test_what_is_open_and_what_is_not(guarded: tuple[Web, dict[str, str]]) -> None:
    web, given = guarded
    for path in ("/healthz", "/readyz", "/version", "/metrics"):
        assert web.ask(path).status == 200
    asked = ["/v1/cluster", "/v1/instances", "/v1/instances/a", "/v1/controllers", "/v1/prefixes",
             "/v1/events", "/docs", "/openapi.json", "/v1/nothing"]  # fmt: skip
    for path in asked:
        for wrong in ("", "Bearer x", given["read"] + "x", given["read"].removeprefix("Bearer ")):
            answer = web.ask(path, Authorization=wrong)
            assert (answer.status, answer.error["code"]) == (401, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"
    for header in given.values():
        assert web.ask("/v1/cluster", Authorization=header).status == 200
    answer = web.ask("/v1/lookup", {"tokens": TOKENS}, Authorization=given["read"])
    assert answer.error["code"] == "unknown_instance"  # it got through
    assert web.ask("/v1/lookup", b"x" * 1000).status == 401  # before a body is looked at


def test_tokens_change_without_a_restart(guarded: tuple[Web, dict[str, str]], keys: Path) -> None:
    web, given = guarded
    path, [child] = keys / "tokens", web.children()
    fresh = f"Bearer {tokens.add(path, 'fresh', 'read')}"
    assert web.ask("/v1/cluster", Authorization=fresh).status == 401
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not line.startswith("read ")))
    web.process.send_signal(signal.SIGHUP)
    until(lambda: web.ask("/v1/cluster", Authorization=fresh).status == 200)
    until(lambda: web.ask("/v1/cluster", Authorization=given["read"]).status == 401)
    assert web.ask("/v1/cluster", Authorization=given["operate"]).status == 200
    path.unlink()  # opens nothing
    web.process.send_signal(signal.SIGHUP)
    assert web.process.stderr
    assert any("nothing was read again" in line for line in web.process.stderr)
    assert web.ask("/v1/cluster").status == 401
    assert web.ask("/v1/cluster", Authorization=fresh).status == 200
    assert web.children() == [child]


def test_who_may_do_what_to_the_cache(guarded: tuple[Web, dict[str, str]], keys: Path) -> None:
    """And each job says who asked for it."""
    web, given = guarded
    client = keyfiles.read_client(keys)
    with Worker("a", [web], keys=client) as a:
        a.store(KEYS)
        until(lambda: web.ask("/v1/instances/a", Authorization=given["read"]).json["keys"] == 2)
        pin = {"operation": "pin", "tokens": TOKENS, "ttl_s": 60}
        everything = {"operation": "clear", "whole": True}
        for body, scope, status in (
            (pin, "read", 403), (pin, "operate", 202), (everything, "operate", 403),
            ({**everything, "instance": "a"}, "operate", 202), (everything, "admin", 202),
        ):  # fmt: skip
            answer = web.ask("/v1/jobs", body, Authorization=given[scope])
            assert answer.status == status, (body, scope, answer)
            if status == 403:
                assert answer.error["code"] == "forbidden" and scope in answer.error["message"]
                continue
            job = answer.json
            assert job["asked_by"] == scope
            for path, least in (("", "read"), ("/cancel", "operate"), ("/retry", "operate")):
                method = "POST" if path else "GET"
                less = given["read"] if least == "operate" else ""
                refused = web.ask(f"/v1/jobs/{job['id']}{path}", method=method, Authorization=less)
                assert refused.status == (403 if less else 401)
        gone = web.ask("/v1/jobs", pin, Authorization="Bearer lmkv_gone")
        assert (gone.status, gone.error["code"]) == (401, "unauthorized")
        words = ("pin", "--tokens", "1", "--owner", "o", "--controller", web.http)
        ended = lmkv(*words, LMKV_TOKEN=given["read"].removeprefix("Bearer "))
        assert ended.returncode == REFUSED and "takes a token of scope operate" in ended.stderr
        with Client(web.state, DEADLINE, client) as asking:  # what it says of itself does not count
            info, _ = asking.ask(Submit(1, "pin", owner="o", asked_by="somebody"), KEYS)
        assert isinstance(info, JobInfo) and info.job.asked_by == "client"


def test_the_first_token_closes_the_door(keys: Path) -> None:
    web = Web("--keys", str(keys))
    try:
        web.up()
        assert web.ask("/v1/cluster").status == 200
        token = tokens.add(keys / "tokens", "first", "read")
        web.process.send_signal(signal.SIGHUP)
        until(lambda: web.ask("/v1/cluster").status == 401)
        assert web.ask("/v1/cluster", Authorization=f"Bearer {token}").status == 200
    finally:
        web.end()


def test_too_many_requests() -> None:
    web = Web("--http-rate", "5")
    try:
        until(lambda: web.ask("/healthz").status == 200)
        answers = [web.ask("/version") for _ in range(200)]
        refused = [each for each in answers if each.status == 429]
        assert refused and refused[0].error["code"] == "too_many"
        assert refused[0].headers["retry-after"] == "1"
        until(lambda: web.ask("/version").status == 200)
    finally:
        web.end()


# ------------------------------------------------------------------ TLS and the CLI


def lmkv(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LMKV_")}
    return subprocess.run(
        [sys.executable, "-m", "lmkv.cli.main", *words],
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )


def test_the_cli_by_tls_and_token(guarded: tuple[Web, dict[str, str]], tmp_path: Path) -> None:
    web, given = guarded
    token = given["read"].removeprefix("Bearer ")
    assert lmkv("status", "--controller", web.http, LMKV_TOKEN=token).returncode == 0
    for wrong, why in (
        ({}, "a token is wanted"),
        ({"LMKV_TOKEN": "x"}, "this token is not known there"),
    ):
        ended = lmkv("status", "--controller", web.http, **wrong)
        said = f"lmkv: {web.http}: {why} (LMKV_TOKEN)\n"
        assert (ended.returncode, ended.stderr) == (REFUSED, said)
    ended = lmkv("status", "--controller", web.http.replace("http", "https"), LMKV_TOKEN=token)
    assert ended.returncode == 1 and "is it http://?" in ended.stderr
    assert lmkv("status", "--controller", web.http, LMKV_TOKEN="a b").returncode == 2
    cert, key = certificate.make(tmp_path)
    port = free_port(3)
    keys = str(tmp_path / "keys")
    safe = Controller(
        port, "--keys", keys, "--http-cert", str(cert), "--http-key", str(key), web=True
    )
    try:
        address = f"https://127.0.0.1:{port + 2}"
        assert address in safe.line
        asked = ("status", "-o", "json", "--controller", address)
        trusted = {"LMKV_TOKEN": token, "LMKV_CACERT": str(cert)}
        until(lambda: lmkv(*asked, **trusted).returncode == 0)
        ended = lmkv("--cacert", str(cert), *asked, LMKV_TOKEN=token)
        assert json.loads(ended.stdout)["cluster"] == "default"
        ended = lmkv(*asked, LMKV_TOKEN=token)
        assert ended.returncode == 1 and "its certificate is not trusted: " in ended.stderr
        ended = lmkv("--cacert", "/nowhere", *asked, LMKV_TOKEN=token)
        assert ended.returncode == 2 and "/nowhere" in ended.stderr
        # A certificate is renewed without a restart.
        before = ssl.get_server_certificate(("127.0.0.1", port + 2))
        certificate.make(tmp_path)
        safe.process.send_signal(signal.SIGHUP)
        until(lambda: ssl.get_server_certificate(("127.0.0.1", port + 2)) != before)
        context = ssl.create_default_context(cafile=str(cert))
        with urllib.request.urlopen(f"{address}/healthz", context=context, timeout=DEADLINE) as ok:
            assert ok.status == 200
    finally:
        safe.end()


def test_the_cli_by_keys(locked: Controller, keys: Path, tmp_path: Path) -> None:
    asked = ("status", "--controller", locked.state)
    assert lmkv(*asked, LMKV_KEYS=str(keys)).returncode == 0
    assert lmkv("--keys", str(keys), *asked).returncode == 0
    ended = lmkv(*asked)
    assert ended.returncode == 3 and "asks for keys" in ended.stderr
    keyfiles.make(tmp_path / "others")
    ended = lmkv(*asked, LMKV_KEYS=str(tmp_path / "others"))
    assert ended.returncode == 3 and "does not accept these keys" in ended.stderr
    file = tmp_path / "instance.yaml"  # an instance here would have its keys
    file.write_text(f"keys: {keys}\n")
    ended = lmkv("doctor", "--config", str(file), "--controller", locked.state)
    assert f"at {locked.state}, cluster default" in ended.stdout
    ended = lmkv(*asked, LMKV_KEYS="/nowhere")
    assert ended.returncode == 2 and "/nowhere/client.key" in ended.stderr


def test_the_commands_that_make_keys(tmp_path: Path) -> None:
    folder = str(tmp_path / "keys")
    assert "server.key" in lmkv("keys", "init", folder).stdout
    ended = lmkv("keys", "init", folder)
    assert ended.returncode == 1 and "nothing is overwritten" in ended.stderr
    words = ("keys", "token", "--name", "b", "--scope", "read", "--keys", folder, "-o", "json")
    made = json.loads(lmkv(*words).stdout)
    assert (made["name"], made["scope"]) == ("b", "read")
    assert tokens.digest(made["token"]) in tokens.read(tmp_path / "keys" / "tokens")
    words = ("keys", "token", "--name", "a", "--scope", "admin", "--keys", folder)
    token = lmkv(*words).stdout.strip()
    assert tokens.read(tmp_path / "keys" / "tokens")[tokens.digest(token)].scope == "admin"
    assert lmkv(*words).returncode == 1
    assert lmkv("keys", "token", "--name", "b", "--scope", "root", LMKV_KEYS=folder).returncode == 2
    ended = lmkv("--keys", folder, "keys", "client", "b", str(tmp_path / "b"), "--instance")
    assert ended.returncode == 0 and "data.key" in ended.stdout


# ------------------------------------------------------------------ addresses


@pytest.mark.parametrize("setting", ["host", "http_host"])
def test_other_addresses_need_authentication(setting: str, keys: Path) -> None:
    option = "--" + setting.replace("_", "-")
    refused = Controller(free_port(3), option, "0.0.0.0", web=True)
    assert refused.end(None)[0] == 2
    assert f"{setting} = '0.0.0.0'" in refused.line and "insecure" in refused.line
    warned = Controller(free_port(3), option, "0.0.0.0", "--insecure", "true", web=True)
    assert "0.0.0.0" in warned.line and warned.end()[0] == 0
    tokens.add(keys / "tokens", "a", "read")
    locked = Controller(free_port(3), option, "0.0.0.0", "--keys", str(keys), web=True)
    assert locked.end()[0] == 0
    assert ("plain text" in locked.line) == (setting == "http_host")


def test_tokens_alone_do_not_open_the_state_socket(keys: Path) -> None:
    tokens.add(keys / "tokens", "a", "read")
    running = Controller(free_port(), "--host", "0.0.0.0", "--tokens", str(keys / "tokens"))
    assert running.end(None)[0] == 2 and "host = '0.0.0.0'" in running.line


# ------------------------------------------------------------------ salts, and what is logged


def test_a_salt_is_required(keys: Path) -> None:
    running = Web("--require-salt", "true", "--log", "json")
    try:
        running.up()
        for path in ("/v1/lookup", "/v1/locate"):
            answer = running.ask(path, {"tokens": TOKENS})
            assert (answer.status, answer.error["field"]) == (400, "salt")
            assert "require_salt" in answer.error["message"]
            assert "require_salt" not in running.ask(path, {"tokens": TOKENS, "salt": "s"}).text
        prompts = {"prompts": [{"tokens": TOKENS, "salt": "a"}, {"tokens": TOKENS}]}
        assert running.ask("/v1/locate", prompts).error["field"] == "salt"
        with Client(running.state, DEADLINE) as client:
            answer, _ = client.ask(Lookup(1, TOKENS))
            assert isinstance(answer, Refused) and answer.field == "salt"
    finally:
        running.end()


def test_what_never_stands_in_a_log(keys: Path) -> None:
    token = tokens.add(keys / "tokens", "ops", "admin")
    web = Web("--keys", str(keys))
    secrets = [token, "SALTsalt", "PROMPTprompt", "BEARERbearer", "KEYkey"]
    secrets += [keyfiles.read_pair(keys, name).secret.decode() for name in ("server", "client")]
    secrets += [tokens.digest(token)]
    web.up()
    header = f"Bearer {token}"
    bodies: list[object] = [
        {"tokens": TOKENS, "salt": "SALTsalt"},
        {"tokens": "PROMPTprompt", "salt": "SALTsalt"},
        {"text": "PROMPTprompt"},
        {"messages": [{"role": "user", "content": "PROMPTprompt"}], "salt": 7},
        {"keys": ["KEYkey"]},
        {"PROMPTprompt": 1},
        b'{"salt": "SALTsalt", PROMPTprompt',
        {"tokens": [2**40], "salt": "SALTsalt" * 1000},
    ]
    for body in bodies:
        for path in ("/v1/lookup", "/v1/locate"):
            assert web.ask(path, body, Authorization=header).status < 500
            assert web.ask(path, body, Authorization="Bearer BEARERbearer").status == 401
    with Client(web.state, DEADLINE, keyfiles.read_client(keys)) as client:
        client.ask(Lookup(1, TOKENS, salt="SALTsalt", like="a"))
    web.process.send_signal(signal.SIGHUP)
    assert web.process.stderr
    said = web.line
    while "read again" not in said:
        line = web.process.stderr.readline()
        assert line, said
        said += line
    said += web.end()[1]
    assert "listening at" in said
    assert [each for each in secrets if each in said] == []


# ------------------------------------------------------------------ agents


def test_an_agent_whose_key_comes_later(
    locked: Controller, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused, tries again on new connections, and is welcome once it is known."""
    monkeypatch.setattr("lmkv.agent.controllers.QUIET", 1.0)
    keyfiles.make_client(keys, "late", tmp_path / "late", data=True)
    made = []

    def connect(address: str) -> Link:
        made.append(Link(address, keyfiles.read_client(tmp_path / "late")))
        return made[-1]

    instance = AgentInstance("late", [locked.state], connect)
    try:
        until(lambda: len(made) > 1)  # the first one was refused
        assert not instance.agent.background.ready
        locked.process.send_signal(signal.SIGHUP)
        until(lambda: instance.agent.background.ready)
    finally:
        instance.agent.close()
