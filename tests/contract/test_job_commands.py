"""The commands of jobs, over either socket, against a real controller and a scripted instance."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lmkv.cli.main import app
from lmkv.cli.operations import COMMANDS
from typer.testing import CliRunner

from tests.contract.test_command_lines import environment, without
from tests.contract.test_controller import until
from tests.scripted_jobs import KEYS, WHOLE, Worker
from tests.web import TOKENS, Web

IDS = ",".join(map(str, TOKENS))


@pytest.fixture(params=["state", "http"])
def address(request: pytest.FixtureRequest, web: Web) -> str:
    return str(getattr(web, request.param))


def lmkv(*words: str, status: int = 0) -> tuple[str, str]:
    """stdout and stderr, of this process: there are many of them."""
    ran = CliRunner().invoke(app, list(words))
    assert ran.exit_code == status, (ran.output, ran.exception)
    return ran.stdout, ran.stderr


def data(*words: str) -> Any:
    """What a command prints as JSON, without what changes meanwhile."""
    return without(json.loads(lmkv(*words, "-o", "json")[0]))


def test_a_pin_from_its_command_to_its_end(web: Web, address: str, a: Worker) -> None:
    where = ("--controller", address)
    out, err = lmkv("pin", "--tokens", IDS, "--ttl", "1h", "--owner", "ops", *where)
    name = out.split()[1]
    assert out == f"pin {name} is done: 2 chunks, 2.0 KiB\n"
    lines = err.splitlines()
    assert lines and all(line.startswith(f"lmkv: job {name}: pin is ") for line in lines)
    shown = data("jobs", "show", name, *where)
    assert shown["asked_by"] and shown["parts"][0]["ttl"] == 3600
    assert data("describe", "job", name, *where)["parts"] == shown["parts"]
    assert "asked by" in lmkv("describe", "job", name, *where)[0]
    [pin] = data("get", "pins", "--instance", "a", *where)
    assert (pin["id"], pin["owner"], pin["first"]) == (name, "ops", KEYS[:16].hex())
    assert "ops" in lmkv("get", "pins", *where)[0]
    lmkv("unpin", "--keys", KEYS[:16].hex(), *where)
    assert lmkv("get", "pins", *where) == ("", "no pins\n")


def test_both_sockets_say_the_same(web: Web, a: Worker) -> None:
    first = data("compress", "--whole", "--instance", "a", "--controller", web.http)
    for words in (("jobs", "show", first["id"]), ("jobs", "list", "--limit", "1")):
        found = [data(*words, "--controller", each) for each in (web.state, web.http)]
        assert found[0] == found[1]


def test_every_operation(web: Web, address: str, a: Worker, b: Worker, tmp_path: Path) -> None:
    (tmp_path / "ids").write_text(IDS)
    prompt = ("--tokens", f"@{tmp_path / 'ids'}")
    more: dict[str, tuple[str, ...]] = {
        "pin": ("--owner", "o"), "copy": ("--to", "b"), "move": ("--to", "b", "--from", "a"),
        "clear": ("--yes",),
    }  # fmt: skip
    for command in COMMANDS:
        name = command.__name__
        job = data(name, *prompt, *more.get(name, ()), "--controller", address)
        assert (job["operation"], job["state"], job["chunks"]) == (name, "done", 2)
    whole = data("clear", "--whole", "--yes", "--controller", address)
    assert (whole["instances"], whole["chunks"]) == (2, 2 * WHOLE)


def test_what_failed_ends_with_1(web: Web, address: str, a: Worker) -> None:
    where = ("--controller", address)
    a.fails = "no_room", "every slot is pinned"
    out, _ = lmkv("pin", "--tokens", IDS, "--ttl", "1s", *where, status=1)
    name = out.split()[1]
    assert out == f"pin {name} failed: every slot is pinned\n"
    lmkv("jobs", "wait", name, *where, status=1)
    a.fails = None
    assert "retry" not in lmkv("jobs", "retry", name, *where)[0]
    assert lmkv("jobs", "wait", name, *where)[0].startswith(f"pin {name} is done")
    _, said = lmkv("jobs", "retry", name, *where, status=1)
    assert said.startswith(f"lmkv: job {name} has ended ")


def test_no_wait_list_and_cancel(web: Web, address: str, a: Worker) -> None:
    where = ("--controller", address)
    a.hold()
    words = ("compress", "--whole", "--instance", "a", "--no-wait", "--id", f"k {address}", *where)
    name = data(*words)["id"]
    assert data(*words)["id"] == name  # once is enough
    until(lambda: data("jobs", "show", name, *where)["state"] == "running")
    [job] = data("get", "jobs", "--state", "running", *where)
    assert job["id"] == name
    assert name in lmkv("jobs", "list", *where)[0]
    _, said = lmkv("jobs", "wait", name, "--timeout", "0.2", *where, status=1)
    assert said.splitlines()[-1] == f"lmkv: job {name} is running after 0.2 s; it goes on"
    assert lmkv("jobs", "cancel", name, *where)[0].startswith(f"compress {name} was cancelled")
    _, said = lmkv("jobs", "cancel", name, *where, status=1)
    assert "has ended" in said
    clash = ("pin", "--whole", "--instance", "a", "--owner", "o", "--id", f"k {address}", *where)
    assert "another job had it" in lmkv(*clash, status=1)[1]
    a.release()


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["pin", "--tokens", IDS], 2, "pin: give --ttl, or --owner"),
        (["pin", "--tokens", IDS, "--ttl", "soon"], 2, "--ttl 'soon': allowed is a number with"),
        (["pin", "--tokens", IDS, "--ttl", "1h", "--whole"], 2, "give one of TEXT"),
        (["pin", "--owner", "o"], 2, "TEXT: give one of"),
        (["copy", "--tokens", IDS], 2, "copy: give --to"),
        (["move", "--whole", "--to", "a"], 2, "move: give --from"),
        (["unpin", "--keys", "xyz"], 2, "--keys: 'xyz' is no key, 32 hex digits"),
        (["unpin", "--keys", "@/nowhere"], 2, "--keys @/nowhere: No such file"),
        (["clear", "--tokens", IDS], 2, "there is no terminal to ask at; --yes says"),
        (["copy", "--tokens", IDS, "--to", "nobody"], 1, "'nobody' is not known here"),
        (["clear", "--tokens", "7," * 32, "--yes"], 1, "no instance holds a chunk of it"),
        (["jobs", "show", "j0"], 1, "job 'j0' is not known here"),
        (["jobs", "show", ""], 2, "JOB: allowed is a job's id"),
        (["jobs", "list", "--state", "gone"], 2, "state"),
    ],
    ids=lambda value: " ".join(value[:4])[:40] if isinstance(value, list) else str(value)[:20],
)
def test_what_is_wrong_is_said(
    web: Web,
    address: str,
    a: Worker,
    words: list[str],
    status: int,
    said: str,
) -> None:
    _, err = lmkv(*words, "--controller", address, status=status)
    assert said in err and err.count("\n") == 1


def test_jobs_are_events_and_in_the_heading(web: Web, address: str, a: Worker) -> None:
    where = ("--controller", address)
    a.hold()
    name = data("compress", "--whole", "--instance", "a", "--no-wait", *where)["id"]
    until(lambda: data("jobs", "show", name, *where)["state"] == "running")
    assert "jobs: 1 running\n" in lmkv("status", *where)[0]
    assert "jobs: 1 running\n" in lmkv("top", "-n", "1", *where)[0]
    assert lmkv("events", *where)[0].endswith(f"  a  compress runs ({name})\n")
    last = lmkv("events", "-o", "json", *where)[0].splitlines()[-1]
    assert (json.loads(last)["kind"], json.loads(last)["job"]) == ("job", name)
    a.release()
    lmkv("jobs", "wait", name, *where)
    assert "jobs:" not in lmkv("status", *where)[0]


def test_nobody_answers() -> None:
    for address in ("tcp://127.0.0.1:1", "http://127.0.0.1:1"):
        lmkv("pin", "--tokens", IDS, "--owner", "o", "--controller", address, status=3)


def on_terminal(*words: str, said: str = "") -> tuple[int, str]:
    """Status, and what a person sees who types `said`."""
    theirs, ours = pty.openpty()
    ran = subprocess.Popen(
        [sys.executable, "-m", "lmkv.cli.main", *words],
        stdin=ours, stdout=ours, stderr=ours, env={**environment(), "TERM": "xterm"},
    )  # fmt: skip
    os.close(ours)
    os.write(theirs, said.encode())
    seen = b""
    try:
        while more := os.read(theirs, 4096):
            seen += more
    except OSError:  # its end
        pass
    os.close(theirs)
    return ran.wait(60), seen.decode(errors="replace")


def test_a_person_is_asked_and_sees_bars(web: Web, address: str, a: Worker) -> None:
    words = ("clear", "--whole", "--instance", "a", "--controller", address)
    commands = len(a.commands)
    status, seen = on_terminal(*words, said="b\n")
    assert status == 2 and "Type a to go on" in seen and "nothing was done" in seen
    assert len(a.commands) == commands
    status, seen = on_terminal(*words, said="a\n")
    assert status == 0 and "━" in seen and f"{WHOLE}/{WHOLE}" in seen
