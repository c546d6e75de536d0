"""Commands against a real controller with its web process: over either socket they say the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from lmkv.cli.main import app
from lmkv.cli.top import rates
from lmkv.core.messages import InstanceState, StatusInfo
from typer.testing import CliRunner

from tests.contract.test_controller import DEADLINE, Instance, until
from tests.contract.test_controllers import Instance as Agent
from tests.contract.test_controllers import knows
from tests.ports import free_port
from tests.stub_instance import HOST_B, NAMESPACE, StubInstance, keys
from tests.web import TOKENS, Web, leave, prompt_keys, store

CHANGING = {"uptime", "heartbeat_age", "lag", "time", "age", "ended_age", "rate"}


@pytest.fixture
def trio(web: Web) -> Iterator[list[Instance]]:
    """`a` and `b` share; `z` has other weights."""
    stubs = [
        StubInstance("a", 1),
        StubInstance("b", 2, host=HOST_B),
        StubInstance("z", 3, namespace=NAMESPACE.replace("weights=one", "weights=two")),
    ]
    running = [Instance(stub, web) for stub in stubs]
    for each in running:
        each.join()
        each.beat()
    yield running
    for each in running:
        leave(each)
        each.__exit__()


def environment() -> dict[str, str]:
    mine = {name: value for name, value in os.environ.items() if not name.startswith("LMKV_")}
    return {**mine, "NO_COLOR": "1", "COLUMNS": "100"}


def lmkv(*words: str, status: int = 0) -> tuple[str, str]:
    """stdout and stderr."""
    ran = subprocess.run(
        [sys.executable, "-m", "lmkv.cli.main", *words],
        capture_output=True, text=True, timeout=60, env=environment(),
    )  # fmt: skip
    assert ran.returncode == status, ran
    return ran.stdout, ran.stderr


def data(*words: str) -> Any:
    """What a command prints as JSON, without what changes meanwhile."""
    out, err = lmkv(*words, "-o", "json")
    assert err == ""
    return without(json.loads(out))


def lines(*words: str) -> list[Any]:
    out, err = lmkv(*words, "-o", "json")
    assert err == ""
    return [without(json.loads(line)) for line in out.splitlines()]


def without(value: Any) -> Any:
    if isinstance(value, list):
        return [without(each) for each in value]
    if isinstance(value, dict):
        return {name: without(each) for name, each in value.items() if name not in CHANGING}
    return value


def both(web: Web, *words: str) -> Any:
    """The answer, which is the same over both sockets."""
    found = data(*words, "--controller", web.http)
    assert found == data(*words, "--controller", web.state)
    return found


# ------------------------------------------------------------------ lists


def test_lists_over_either_socket(web: Web, trio: list[Instance]) -> None:
    a, b, _ = trio
    store(a, prompt_keys(TOKENS))
    store(a, keys(31))
    for _ in range(2):
        assert b.found(31) == 1
    spoken = ["lookup", "--tokens", ",".join(map(str, TOKENS)), "--like", "a"]
    assert both(web, *spoken)["matched"] == {"a": 32}
    status = both(web, "status")
    assert [each["instance"] for each in status["instances"]] == ["a", "b", "z"]
    found = both(web, "get", "instances")
    assert found == status["instances"]
    alone = both(web, "describe", "instance", "z")
    assert (alone, alone["differs"], alone["differs_from"]) == (found[2], "weights", "a")
    [controller] = both(web, "get", "controllers")
    assert (controller["epoch"], controller["instances"]) == (status["epoch"], 3)
    [prefix] = both(web, "get", "prefixes", "--top", "1")
    assert (prefix["key"], prefix["hits"], prefix["holders"]) == (keys(31).hex(), 2, ["a"])


def test_all_controllers_are_asked(web: Web) -> None:
    """Asked again while a busy machine's are `unreachable`: each has half a second."""
    nobody = f"tcp://127.0.0.1:{free_port()}"
    other = Web("--peers", f"{web.state},{nobody}")

    def found(address: str) -> list[Any]:
        return data("get", "controllers", "--controller", address)

    def column() -> list[str]:
        out, _ = lmkv("get", "controllers", "--controller", other.state)
        return [line.split()[1] for line in out.splitlines()]

    try:
        other.up()
        until(lambda: [(each["state"], each["address"]) for each in found(other.http)] == [
            ("ready", other.state), ("unreachable", nobody), ("ready", web.state),
        ])  # fmt: skip
        until(lambda: found(other.http) == found(other.state))
        until(lambda: column() == ["state", "ready", "unreachable", "ready"])
    finally:
        assert other.end() == (0, "")


def test_instances_are_chosen_and_paged(web: Web, trio: list[Instance]) -> None:
    words = ["get", "instances", "--controller", web.state]
    assert [each["instance"] for each in data(*words, "--after", "a")] == ["b", "z"]
    assert [each["instance"] for each in data(*words, "-l", "state=incompatible")] == ["z"]
    assert data(*words, "-l", "state=live", "-l", "model=n") == []
    out, err = lmkv(*words, "--limit", "2")
    assert [line.split()[0] for line in out.splitlines()] == ["instance", "a", "b"]
    assert err == "there are more: --after b\n"
    assert lmkv(*words, "--limit", "3")[1] == ""
    assert lmkv(*words, "-l", "model=n") == ("", "no instances\n")
    assert "allowed is NAME=VALUE" in lmkv(*words, "-l", "load=1", status=2)[1]


def test_all_pages_are_asked_for(
    web: Web, trio: list[Instance], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmkv.cli.get.PAGE", 1)
    for address in (web.state, web.http):
        words = ["get", "instances", "-o", "json", "--controller", address]
        found = json.loads(CliRunner().invoke(app, words).stdout)
        assert [each["instance"] for each in found] == ["a", "b", "z"]


def test_tables(web: Web, trio: list[Instance]) -> None:
    at = ["--controller", web.http]
    out, _ = lmkv("describe", "instance", "z", *at)
    assert "state         incompatible (weights)\n" in out
    assert "differs       weights is not that of a: they do not share\n" in out
    assert lmkv("get", "controllers", *at)[0].splitlines()[1].split()[1] == "ready"
    assert "'nobody' is not known here" in lmkv("describe", "instance", "nobody", *at, status=1)[1]


# ------------------------------------------------------------------ top


def looked(uptime: float, hits: dict[str, int], epoch: int = 1) -> StatusInfo:
    instance = InstanceState("a", 5, "live", hit_tokens=hits)
    return StatusInfo(
        0, "c", "x", epoch, "ready", "0", uptime, 0, 0, 0, 0, 0, 0, [instance], hit_tokens=hits,
        miss_tokens={"cold": 10},
    )  # fmt: skip


def test_rates_are_differences_over_the_controllers_own_time() -> None:
    before, now = looked(10, {"hit_peer": 100}), looked(14, {"hit_peer": 300, "hit_vllm": 20})
    found = rates(before, now)
    assert (found.hit, found.miss) == (55, 0)
    assert (found.hits, found.misses) == ({"hit_peer": 50, "hit_vllm": 5}, {})
    assert found.instances == {"a": 55}
    for unlike in (None, looked(10, {}, epoch=2), looked(14, {})):
        assert rates(unlike, now).hit is None


def test_top_without_a_terminal(web: Web, trio: list[Instance]) -> None:
    words = ["top", "--interval", "0.1", "-n", "2", "--controller", web.state]
    out, err = lmkv(*words)
    assert err == ""
    assert out.count("cluster default") == 2 and out.count("\nz ") == 2
    assert out.count("tokens/s\n") == 4  # twice the column, once each of hit and missed
    first, second = lines(*words)
    assert (first["rates"]["hit"], second["rates"]["hit"]) == (None, 0)


# ------------------------------------------------------------------ events


def test_history_over_either_socket(web: Web, trio: list[Instance]) -> None:
    found = lines("events", "--controller", web.state)
    assert found == lines("events", "--controller", web.http)
    assert [each["instance"] for each in found[-4:]] == ["a", "b", "z", "z"]
    assert (found[-1]["kind"], found[-2]["kind"]) == ("incompatible", "registered")
    for address in (web.state, web.http):
        since = ["events", "--controller", address, "--since"]
        assert lines(*since, found[-3]["id"]) == found[-2:]
        assert lines(*since, found[-1]["id"]) == []
        assert lines(*since, "1h") == found
        assert lines(*since, "0s") == []
        other = lines(*since, "0123456789abcdef-1")
        assert [each["kind"] for each in other[:2]] == ["reset", found[0]["kind"]]
        assert other[1:] == found
    out, _ = lmkv("events", "--controller", web.state)
    assert out.splitlines()[-1].split()[2:4] == ["incompatible", "z"]
    assert "allowed is an event's id" in lmkv("events", "--since", "monday", status=2)[1]


# Each question that waits for events is over sooner, so that a silence is seen sooner.
SOON = "import lmkv.cli.events as e, lmkv.cli.main as m; e.WAIT = 1.0; m.app()"


@contextmanager
def following(address: str, since: str) -> Iterator[subprocess.Popen[str]]:
    words = ["events", "-f", "--since", since, "-o", "json", "--controller", address]
    # Of a shell's background job ctrl-C is ignored, and what it starts would ignore it too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(
        [sys.executable, "-c", SOON, *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(),
    ) as running:  # fmt: skip
        signal.signal(signal.SIGINT, before)
        try:
            yield running
        finally:
            running.kill()


@pytest.mark.parametrize("socket", ["state", "http"])
def test_events_are_followed_over_a_controllers_restart(socket: str) -> None:
    port = free_port(3)
    web = Web(port=port)
    try:
        web.up()
        with Instance(StubInstance("e", 5), web) as e:
            e.join()
        [registered] = lines("events", "--controller", web.state)[:1]
        with following(getattr(web, socket), "1h") as running:
            assert running.stdout is not None and running.stderr is not None
            assert json.loads(running.stdout.readline())["id"] == registered["id"]
            web.end()
            # Whatever it saw of the end of the old life, the new one's first word is `reset`.
            assert "waiting for it" in running.stderr.readline()
            web = Web(port=port)
            web.up()
            with Instance(StubInstance("f", 6), web) as f:
                f.join()
                leave(f)
                kinds = []
                while not kinds or kinds[-1] != ("left", "f"):
                    each = json.loads(running.stdout.readline())
                    kinds.append((each["kind"], each["instance"]))
            assert kinds[-3:] == [("reset", ""), ("registered", "f"), ("left", "f")]
            running.send_signal(signal.SIGINT)
            assert running.wait(DEADLINE) == 0
    finally:
        web.end()


# ------------------------------------------------------------------ doctor


@pytest.mark.nixl
def test_doctor_finds_what_is_wrong(web: Web, trio: list[Instance]) -> None:
    for address in (web.state, web.http):
        out, err = lmkv("doctor", "-o", "json", "--controller", address)
        assert err == ""
        found = json.loads(out)
        level = {each["name"]: each["level"] for each in found}
        assert (level["package"], level["NIXL"], level["UCX"]) == ("OK", "OK", "OK")
        assert (level["controller"], level["versions"], level["fingerprint"]) == (
            "OK", "OK", "WARN",
        )  # fmt: skip
        assert all(bool(each["fix"]) == (each["level"] != "OK") for each in found)
    out, _ = lmkv("doctor", "--controller", f"tcp://127.0.0.1:{free_port()}", status=1)
    assert out.splitlines()[-2].startswith("FAIL  controller   no controller listens")


# ------------------------------------------------------------------ why

PROMPT = list(range(8))  # two chunks of 4


@pytest.fixture
def agents() -> Iterator[tuple[Web, Agent, Agent]]:
    web = Web("--dead-after-beats", "1000", "--suspect-after-beats", "999")
    web.up()
    both = Agent("us", [web.state]), Agent("peer", [web.state])
    until(lambda: knows(web, 0))
    yield web, *both
    for each in both:
        each.agent.close()
    assert web.end() == (0, "")


def test_why_over_either_socket(agents: tuple[Web, Agent, Agent]) -> None:
    web, us, peer = agents
    peer.hold(PROMPT)
    until(lambda: knows(web, 2))
    assert us.cause(PROMPT) == "mover_down"
    assert us.cause([7, *PROMPT]) == "cold"
    words = ["why", "--instance", "us"]
    newest, oldest = both(web, *words)
    assert (newest["instance"], newest["request"], newest["miss_tokens"]) == (
        "us", "2", {"cold": 8, "too_short": 2},
    )  # fmt: skip
    assert oldest["miss_tokens"] == {"mover_down": 8, "too_short": 1}
    every = both(web, "why")
    assert [each for each in every if each["instance"] == "us"] == [newest, oldest]
    assert both(web, *words, "--last", "1") == [newest]
    at = ["--controller", web.http]
    out, err = lmkv(*words, *at)
    assert err == "" and "cold 8, too_short 2" in out.splitlines()[1]
    said = lmkv("why", "request-99", *at, status=1)[1]
    assert said == "lmkv: no instance remembers a request 'request-99'\n"
    assert "'nobody' is not known here" in lmkv("why", "--instance", "nobody", *at, status=1)[1]
    assert lmkv("why", "--last", "0", *at, status=2)[0] == ""
