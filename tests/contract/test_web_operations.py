"""Operations on instances by REST: a real controller, its web process, and real agents."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator

import msgspec
import pytest
from lmkv.core.config import InstanceConfig, names
from lmkv.core.messages import Command, Done, Resync, SlotsResult

from tests.contract.test_command_lines import lmkv
from tests.contract.test_controller import Instance as Stub
from tests.contract.test_controller import until
from tests.contract.test_controllers import Instance
from tests.contract.test_relay import PROMPT
from tests.stub_instance import StubInstance
from tests.web import Web, leave

NAME = "rack/one"  # an id may have a slash


@pytest.fixture
def us(web: Web) -> Iterator[Instance]:
    us = Instance(NAME, [web.state])
    path = f"/v1/instances/{NAME}"
    until(lambda: web.ask(path).status == 200 and web.ask(path).json["state"] == "live")
    yield us
    us.agent.close()


def keys_of(web: Web) -> int:
    return int(web.ask(f"/v1/instances/{NAME}").json["keys"])


def test_sync(web: Web, us: Instance) -> None:
    us.hold(PROMPT)
    until(lambda: keys_of(web) == 2)
    answer = web.ask(f"/v1/instances/{NAME}/sync", method="POST")
    assert answer.status == 200, answer
    seconds = answer.json.pop("seconds")
    assert seconds >= 0
    assert {k: v for k, v in answer.json.items() if k != "seconds"} == {
        "instance": NAME, "keys_before": 2, "keys_after": 2, "missing": 0, "moved": 0, "gone": 0,
    }  # fmt: skip


def test_verify_without_slots_to_digest(web: Web, us: Instance) -> None:
    """There is no worker here: slots are digested in tests with one."""
    us.hold(PROMPT)
    until(lambda: keys_of(web) == 2)
    answer = web.ask(f"/v1/instances/{NAME}/verify", {"sample": 0})
    assert answer.status == 200, answer
    found = answer.json
    assert (found["keys"], found["slots"], found["sampled"], found["differing"]) == (2, 2, 0, [])
    late = web.ask(f"/v1/instances/{NAME}/verify?deadline=1.5", {"sample": 1})
    assert (late.status, late.error["code"]) == (504, "timeout")


def test_why(web: Web, us: Instance) -> None:
    assert us.cause(PROMPT) == "cold"
    answer = web.ask(f"/v1/instances/{NAME}/why?last=1")
    assert answer.status == 200, answer
    [entry] = answer.json["requests"]
    assert entry["miss_tokens"] == {"cold": 8, "too_short": 1}
    assert (entry["request"], entry["tokens"], entry["matched"]) == ("1", 9, 0)
    gone = web.ask(f"/v1/instances/{NAME}/why?request=nobody")
    assert (gone.status, gone.error["code"]) == (404, "unknown_request")


def test_config(web: Web, us: Instance) -> None:
    answer = web.ask(f"/v1/instances/{NAME}/config")
    assert answer.status == 200, answer
    found = {each["name"]: each for each in answer.json["settings"]}
    assert list(found) == names(InstanceConfig)
    assert found["controllers"] == {
        "name": "controllers", "value": [web.state], "origin": "inline", "used": "",
    }  # fmt: skip
    assert (found["pool_gib"]["value"], found["pool_gib"]["origin"]) == (None, "default")
    assert (found["chunk_tokens"]["used"], found["instance_id"]["used"]) == ("4", NAME)


@pytest.mark.parametrize(
    ("path", "body", "status", "field"),
    [
        ("/v1/instances/nobody/sync", {}, 404, "instance"),
        ("/v1/instances/nobody/verify", {}, 404, "instance"),
        (f"/v1/instances/{NAME}/verify", {"sample": -1}, 400, "sample"),
        (f"/v1/instances/{NAME}/verify", {"sample": "1"}, 400, "sample"),
        (f"/v1/instances/{NAME}/verify", {"samples": 1}, 400, "samples"),
        (f"/v1/instances/{NAME}/sync?deadline=0", {}, 400, "deadline"),
        (f"/v1/instances/{NAME}/sync?deadline=601", {}, 400, "deadline"),
        (f"/v1/instances/{NAME}/sync?deadline=inf", {}, 400, "deadline"),
    ],
)
def test_what_is_refused(
    web: Web, us: Instance, path: str, body: object, status: int, field: str
) -> None:
    answer = web.ask(path, body)
    assert (answer.status, answer.error["field"]) == (status, field), answer


def test_an_instance_that_does_not_answer(web: Web) -> None:
    with Stub(StubInstance("old", 5), web) as old:
        old.join()
        old.beat()
        answer = web.ask("/v1/instances/old/sync?deadline=0.2", method="POST")
        assert (answer.status, answer.error["code"]) == (504, "timeout")
        assert answer.error["message"] == "instance 'old' did not answer sync in 0.2 s"
        leave(old)


# ------------------------------------------------------------------ the command line


@pytest.fixture(params=["state", "http"])
def address(request: pytest.FixtureRequest, web: Web) -> str:
    return str(getattr(web, request.param))


def test_lmkv_sync(web: Web, us: Instance, address: str) -> None:
    us.hold(PROMPT)
    until(lambda: keys_of(web) == 2)
    out, _ = lmkv("sync", NAME, "--controller", address)
    assert out.startswith(f"{NAME}: 2 chunks before, 2 after, in ")
    assert out.rstrip().endswith("mended: 0 missing, 0 moved, 0 gone")
    found = json.loads(lmkv("sync", NAME, "--controller", address, "-o", "json")[0])
    assert (found["instance"], found["keys_after"]) == (NAME, 2)
    _, said = lmkv("sync", "nobody", "--controller", address, status=1)
    assert said == "lmkv: instance 'nobody' is not known here\n"


def test_lmkv_describe_config(web: Web, us: Instance, address: str) -> None:
    words = "describe", "instance", NAME, "--config", "--controller", address
    lines = [line.split() for line in lmkv(*words)[0].splitlines()]
    assert ["chunk_tokens", "auto", "(4)", "default"] in lines
    found = json.loads(lmkv(*words, "-o", "json")[0])
    assert [each["name"] for each in found] == names(InstanceConfig)
    said = lmkv("describe", "instance", "nobody", "--config", "--controller", address, status=1)[1]
    assert said == "lmkv: instance 'nobody' is not known here\n"


def test_lmkv_verify(web: Web, us: Instance, address: str) -> None:
    us.hold(PROMPT)
    until(lambda: keys_of(web) == 2)
    words = "verify", "--sample", "0", "--controller", address
    assert lmkv(*words)[0].split("\n")[1].split() == [NAME, "2", "2", "0", "0", "0"]
    [found] = json.loads(lmkv(*words, "-o", "json")[0])
    assert (found["keys"], found["slots"], found["differing"]) == (2, 2, [])


def test_lmkv_verify_of_one_that_drifts(web: Web) -> None:
    """Every heartbeat differs, whichever is the first that the command meets."""
    said: list[str] = []

    def run() -> None:
        words = "verify", "--instance", "s", "--controller", web.state
        said.append(lmkv(*words, status=1)[0])

    with Stub(StubInstance("s", 9), web) as s:
        s.join()
        s.beat()
        thread = threading.Thread(target=run)
        thread.start()
        number = 0
        while thread.is_alive():
            number += 1
            seq = s.stub.seq
            s.stub.store(number)
            s.stub.seq = seq  # lost
            s.tell(s.stub.heartbeat())
            resync = s.take(Resync)
            assert isinstance(resync, Resync)
            s.tell(*s.stub.sync(resync.sync))
            for message, _ in s.said:
                if isinstance(message, Command):
                    done = msgspec.msgpack.encode(SlotsResult(number))
                    s.tell((Done(message.request, message.id, done), ()))
            s.said.clear()
        thread.join()
        leave(s)
    [out] = said
    line = out.split("\n")[1].split()
    assert (line[0], line[3:]) == ("s", ["1", "0", "0"])
    assert re.fullmatch("s: [0-9a-f]{32} missing", out.split("\n")[2])
