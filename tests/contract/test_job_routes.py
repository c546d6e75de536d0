"""Jobs by REST: a real controller with its web process, and instances that are a script."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from lmkv.cli.main import app
from lmkv.core.client import Client
from lmkv.core.messages import AskJob, JobInfo, Refused, Submit, Unsupported
from typer.testing import CliRunner

from tests import http_client
from tests.contract.test_controller import DEADLINE, until
from tests.scripted_jobs import KEYS, WHOLE, Worker, holders
from tests.stub_instance import NAMESPACE
from tests.web import TOKENS, Web


def submit(web: Web, status: int = 202, **body: Any) -> Any:
    answer = web.ask("/v1/jobs", body)
    assert answer.status == status, answer
    assert answer.headers["location"] == f"/v1/jobs/{answer.json['id']}"
    return answer.json


def ended(web: Web, name: str) -> Any:
    job: Any = None

    def over() -> bool:
        nonlocal job
        job = web.ask(f"/v1/jobs/{name}").json
        return job["state"] in ("done", "failed", "cancelled")

    until(over)
    return job


def test_a_pin_from_its_asking_to_its_end(web: Web, a: Worker) -> None:
    job = submit(web, operation="pin", tokens=TOKENS, ttl_s=3600, owner="ops")
    assert (job["operation"], job["instances"]) == ("pin", 1)
    [command] = [each for each in a.commands if each.id == job["id"]]
    assert command.arguments["ttl"] == "3600.0" and command.arguments["owner"] == "ops"
    assert a.keys[job["id"]] == KEYS
    job = ended(web, job["id"])
    assert (job["state"], job["chunks"], job["chunks_total"], job["bytes"]) == ("done", 2, 2, 2000)
    assert job["asked_by"] == "127.0.0.1"
    [part] = job["parts"]
    assert (part["instance"], part["attempt"], part["owner"], part["ttl"]) == ("a", 1, "ops", 3600)
    [pin] = web.ask("/v1/pins?instance=a").json["pins"]
    assert (pin["id"], pin["owner"], pin["chunks"]) == (job["id"], "ops", 2)
    assert 0 < pin["left_s"] <= 3600 and pin["first"] == KEYS[:16].hex()
    assert ended(web, submit(web, operation="unpin", tokens=TOKENS)["id"])["state"] == "done"
    until(lambda: web.ask("/v1/pins").json == {"pins": [], "next": "", "total": 0})


# ------------------------------------------------------------------ where it is done


def test_without_an_instance_every_holder_has_its_part(web: Web, a: Worker, b: Worker) -> None:
    b.store(KEYS[:16])
    until(lambda: holders(web) == ["a", "b"])
    job = ended(web, submit(web, operation="clear", keys=[KEYS[:16].hex()])["id"])
    assert (job["state"], job["instances"], job["chunks"]) == ("done", 2, 2)
    assert [part["instance"] for part in job["parts"]] == ["a", "b"]
    assert a.commands[-1].arguments["parts"] == "2"


def test_whole_ones(web: Web, a: Worker, b: Worker) -> None:
    job = ended(web, submit(web, operation="clear", whole=True)["id"])
    assert (job["instances"], job["chunks"]) == (2, 2 * WHOLE)
    assert a.commands[-1].arguments["whole"] == "1" and a.keys[job["id"]] == b""
    one = ended(web, submit(web, operation="compress", whole=True, instance="b")["id"])
    assert [part["instance"] for part in one["parts"]] == ["b"]


def test_a_copy_is_done_at_its_target(web: Web, a: Worker, b: Worker) -> None:
    copy = submit(web, operation="copy", tokens=TOKENS, instance="b", source="a")
    job = ended(web, copy["id"])
    [part] = job["parts"]
    assert (part["instance"], job["source"]) == ("b", "a")
    assert b.commands[-1].arguments["source"] == "a" and b.keys[job["id"]] == KEYS
    anywhere = ended(web, submit(web, operation="move", tokens=TOKENS, instance="b")["id"])
    assert "source" not in b.commands[-1].arguments and anywhere["source"] == ""


# ------------------------------------------------------------------ lists, cancel, retry


def test_lists_are_paged_and_filtered(web: Web, a: Worker, b: Worker) -> None:
    before = web.ask("/v1/jobs?limit=1").json["total"]
    mine = [submit(web, operation="compress", whole=True, instance="b")["id"] for _ in range(3)]
    for name in mine:
        ended(web, name)
    a.hold()
    held = submit(web, operation="compress", whole=True, instance="a")["id"]
    until(lambda: web.ask(f"/v1/jobs/{held}").json["state"] == "running")
    page = web.ask("/v1/jobs?limit=2").json
    assert [job["id"] for job in page["jobs"]] == [held, mine[2]]
    assert (page["total"], page["next"], page["states"]["running"]) == (before + 4, mine[2], 1)
    rest = web.ask(f"/v1/jobs?limit=2&after={page['next']}").json
    assert [job["id"] for job in rest["jobs"]] == [mine[1], mine[0]]
    running = web.ask("/v1/jobs?state=running").json
    assert [job["id"] for job in running["jobs"]] == [held] and running["next"] == ""
    assert held not in [job["id"] for job in web.ask("/v1/jobs?instance=b").json["jobs"]]
    a.release()
    ended(web, held)
    assert web.ask("/v1/jobs?state=running").json["total"] == 0


def test_cancel_and_retry(web: Web, a: Worker) -> None:
    a.hold()
    name = submit(web, operation="compress", whole=True, instance="a")["id"]
    until(lambda: web.ask(f"/v1/jobs/{name}").json["state"] == "running")
    early = web.ask(f"/v1/jobs/{name}/retry", method="POST")
    assert (early.status, early.error["code"]) == (409, "conflict")
    cancelled = web.ask(f"/v1/jobs/{name}/cancel", method="POST")
    assert (cancelled.status, cancelled.json["state"]) == (200, "cancelled"), cancelled
    twice = web.ask(f"/v1/jobs/{name}/cancel", method="POST")
    assert (twice.status, twice.error["code"], twice.error["field"]) == (409, "ended", "id")
    said = rf"job {name} has ended \d+ s ago: it is cancelled"
    assert re.fullmatch(said, twice.error["message"])
    a.release()
    again = web.ask(f"/v1/jobs/{name}/retry", method="POST")
    assert (again.status, again.json["attempt"]) == (200, 2)
    assert ended(web, name)["state"] == "done"
    late = web.ask(f"/v1/jobs/{name}/retry", method="POST")
    assert (late.status, late.error["code"]) == (409, "ended")


def test_what_failed_says_why(web: Web, a: Worker) -> None:
    a.fails = "no_room", "every slot is pinned: 8 chunks need room for 8"
    job = ended(web, submit(web, operation="pin", tokens=TOKENS, ttl_s=1)["id"])
    assert (job["state"], job["code"]) == ("failed", "no_room")
    assert job["reason"] == "every slot is pinned: 8 chunks need room for 8"
    a.fails = None
    assert web.ask(f"/v1/jobs/{job['id']}/retry", method="POST").status == 200
    job = ended(web, job["id"])
    assert (job["state"], job["code"], job["reason"]) == ("done", "", "")


# ------------------------------------------------------------------ idempotency keys


def test_the_same_key_is_the_same_job(web: Web, a: Worker) -> None:
    body = {"operation": "pin", "tokens": TOKENS, "ttl_s": 60, "idempotency_key": "nightly 7"}
    first = submit(web, **body)
    commands = len(a.commands)
    again = submit(web, 200, **body)
    assert again["id"] == first["id"] and len(a.commands) == commands
    ended(web, first["id"])
    assert submit(web, 200, **body)["state"] == "done"
    other = web.ask("/v1/jobs", {**body, "ttl_s": 61})
    assert (other.status, other.error["code"]) == (409, "conflict")
    assert other.error["field"] == "idempotency_key"
    assert other.error["message"].startswith("idempotency_key 'nightly 7': another job had it")


# ------------------------------------------------------------------ events


def streamed(web: Web, name: str) -> Iterator[tuple[str, Any]]:
    with http_client.Stream(web.http, path=f"/v1/jobs/{name}/events") as stream:
        for event in stream:
            yield event.kind, event.data


def test_its_events_end_with_it(web: Web, a: Worker) -> None:
    a.hold()
    name = submit(web, operation="compress", whole=True, instance="a")["id"]
    stream = streamed(web, name)
    seen = [next(stream)]
    a.release()
    seen += stream
    assert {kind for kind, _ in seen} == {"job"}
    states = [job["state"] for _, job in seen]
    assert states[0] in ("queued", "running") and states[-1] == "done"
    assert "done" not in states[:-1]
    assert [state for _, state in ((k, j["state"]) for k, j in streamed(web, name))] == ["done"]


def test_the_clusters_events_have_it(web: Web, a: Worker) -> None:
    with http_client.Stream(web.http) as stream:
        assert stream.take(1)[0].kind == "start"
        name = submit(web, operation="compress", whole=True, instance="a")["id"]
        mine: list[Any] = []
        while len(mine) < 2:
            event = stream.until("job").data
            if event["job"] == name:
                mine.append(event)
    assert [each["instance"] for each in mine] == ["a", "a"]
    assert [each["text"] for each in mine] == ["compress runs", "compress is done"]


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("body", "status", "field", "words"),
    [
        ({}, 400, "operation", "required"),
        ({"operation": "sink"}, 400, "operation",
         "operation = 'sink': Input should be 'pin', 'unpin'"),
        ({"operation": "pin"}, 400, "tokens", "as tokens, text, messages, keys or whole"),
        ({"operation": "pin", "tokens": TOKENS, "keys": ["0" * 32]}, 400, "keys", "given once"),
        ({"operation": "pin", "tokens": TOKENS, "whole": True}, 400, "whole", "given once"),
        ({"operation": "pin", "tokens": TOKENS}, 400, "ttl_s", "give ttl, or owner"),
        ({"operation": "pin", "tokens": TOKENS, "ttl_s": -1}, 400, "ttl_s",
         "ttl_s = -1: Input should be greater"),
        ({"operation": "pin", "tokens": TOKENS, "ttl_s": 1e10}, 400, "ttl_s", "less than"),
        ({"operation": "pin", "tokens": TOKENS, "ttl_s": "1h"}, 400, "ttl_s", "number"),
        ({"operation": "pin", "whole": True, "ttl_s": 1}, 400, "instance", "needs one"),
        ({"operation": "clear", "tokens": TOKENS, "ttl_s": 1}, 400, "ttl_s", "only pin has one"),
        ({"operation": "clear", "tokens": TOKENS, "owner": "x"}, 400, "owner", "only pin and"),
        ({"operation": "pin", "tokens": TOKENS[:5], "ttl_s": 1}, 400, "tokens",
         "5 tokens are less than a chunk of 16"),
        ({"operation": "pin", "tokens": [7] * 32, "ttl_s": 1}, 404, "tokens",
         "no instance holds a chunk of it (2 looked for)"),
        ({"operation": "pin", "keys": ["f" * 32], "ttl_s": 1}, 404, "keys", "(1 looked for)"),
        ({"operation": "pin", "keys": ["no hex"], "ttl_s": 1}, 400, "keys.0", "pattern"),
        ({"operation": "pin", "keys": ["f" * 32], "salt": "x", "ttl_s": 1}, 400, "salt", "says it"),
        ({"operation": "copy", "tokens": TOKENS}, 400, "instance", "copy needs one"),
        ({"operation": "copy", "tokens": TOKENS, "instance": "nobody"}, 404, "instance",
         "'nobody' is not known here"),
        ({"operation": "move", "tokens": TOKENS, "instance": "a", "source": "a"}, 400, "source",
         "'a' is where it goes"),
        ({"operation": "move", "whole": True, "instance": "a"}, 400, "source", "needs one"),
        ({"operation": "pin", "tokens": TOKENS, "source": "a", "ttl_s": 1}, 400, "source", "only"),
        ({"operation": "pin", "tokens": TOKENS, "owner": "a\u0000b"}, 400, "owner", "printable"),
        ({"operation": "pin", "tokens": TOKENS, "owner": "x" * 257}, 400, "owner", "at most 256"),
        ({"operation": "pin", "tokens": TOKENS, "ttl_s": 1, "idempotency_key": "\x1b[2J"}, 400,
         "idempotency_key", "printable"),
        ({"operation": "pin", "tokens": TOKENS, "ttl_s": 1, "idempotency_key": "k" * 129}, 400,
         "idempotency_key", "at most 128"),
        ({"operation": "pin", "text": "x" * ((1 << 20) + 1), "ttl_s": 1}, 400, "text", "1048576"),
        ({"operation": "pin", "tokens": TOKENS, "ttl_s": 1, "until": 7}, 400, "until", "Extra"),
        (b"\x89PNG\r\n\x1a\n\x00\xff", 400, "", "parsing the body"),
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_one_sentence_for_each_mistake(
    web: Web, a: Worker, body: Any, status: int, field: str, words: str
) -> None:
    before = web.ask("/v1/jobs").json["total"]
    answer = web.ask("/v1/jobs", body)
    assert (answer.status, answer.error["field"]) == (status, field), answer
    assert words in answer.error["message"], answer
    assert len(answer.error["message"]) < 300
    assert web.ask("/v1/jobs").json["total"] == before


def test_what_is_not_there_says_so(web: Web, a: Worker) -> None:
    for path in ("jobs/j0", "jobs/j0/cancel", "jobs/j0/retry", "jobs/j0/events"):
        method = "POST" if path.endswith(("cancel", "retry")) else "GET"
        answer = web.ask(f"/v1/{path}", method=method)
        assert (answer.status, answer.error["code"]) == (404, "unknown_job"), path
        assert answer.error["message"].startswith("job 'j0' is not known here")
    gone = web.ask("/v1/jobs?after=j0")
    assert (gone.status, gone.error["field"]) == (404, "after")
    for query, field in (("state=gone", "state"), ("limit=0", "limit"), ("limit=x", "limit")):
        assert web.ask(f"/v1/jobs?{query}").error["field"] == field
    assert web.ask("/v1/pins?limit=0").error["field"] == "limit"
    assert web.ask("/v1/pins?instance=nobody").json["pins"] == []


def test_a_source_that_does_not_share(web: Web, a: Worker) -> None:
    odd = NAMESPACE.replace("weights=one", "weights=two")
    with Worker("z", [web], 3, namespace=odd):
        answer = web.ask(
            "/v1/jobs", {"operation": "copy", "tokens": TOKENS, "instance": "z", "source": "a"}
        )
        assert (answer.status, answer.error["code"]) == (409, "incompatible")
        assert answer.error["message"] == "source: 'a' and 'z' do not share: weights differs"
        both = web.ask("/v1/jobs", {"operation": "clear", "tokens": TOKENS})
        assert (both.status, both.error["field"]) == (400, "like")
        submit(web, operation="compress", tokens=TOKENS, like="a")


def test_an_instance_that_refuses(web: Web, a: Worker) -> None:
    before = web.ask("/v1/jobs").json["total"]
    body = {"operation": "pin", "tokens": TOKENS, "ttl_s": 1, "instance": "a"}
    a.refuses = Refused("busy", "16 jobs wait here, which is the most: try again later")
    answer = web.ask("/v1/jobs", body)
    assert (answer.status, answer.error["message"]) == (429, a.refuses.message)
    a.refuses = Unsupported("pin")
    answer = web.ask("/v1/jobs", body)
    assert (answer.status, answer.error["field"]) == (501, "operation")
    assert answer.error["message"] == "instance 'a' is of a release that does not know 'pin'"
    assert web.ask("/v1/jobs").json["total"] == before


def test_what_the_controller_would_not_take() -> None:
    """One that takes little; what is too much is said, and the next question is answered."""
    little = Web("--max-frame-bytes", str(1 << 17))
    try:
        little.up()
        keys = [f"{n:032x}" for n in range((1 << 13) + 1)]
        for body, field in (({"keys": keys}, "keys"), ({"text": "x" * (1 << 17)}, "text")):
            answer = little.ask("/v1/jobs", {"operation": "pin", "owner": "o", **body})
            assert (answer.status, answer.error["field"]) == (413, field), answer.text[:300]
            assert "max_frame_bytes" in answer.error["message"]
        words = ("unpin", "--keys", ",".join(keys[:8193]), "--controller", little.state)
        ran = CliRunner().invoke(app, words)
        assert ran.exit_code == 1 and "max_frame_bytes" in ran.stderr
        assert little.ask("/v1/jobs").json["total"] == 0
    finally:
        assert little.end() == (0, "")


# ------------------------------------------------------------------ the controller's own socket


def test_by_the_controllers_own_socket(web: Web, a: Worker) -> None:
    with Client(web.state, DEADLINE) as client:
        info, _ = client.ask(Submit(5, "pin", owner="ops", asked_by="cli"), KEYS)
        assert isinstance(info, JobInfo), info
        assert (info.request, info.new, info.job.asked_by) == (5, True, "cli")
        seen, _ = client.ask(AskJob(6, info.job.id))
        assert isinstance(seen, JobInfo) and seen.request == 6
        for question, keys, field in (
            (Submit(7, "sink"), KEYS, "operation"),
            (Submit(7, "pin", id="x" * 129), KEYS, "id"),
            (Submit(7, "pin", instance="\x1b" * 9), KEYS, "instance"),
            (Submit(7, "pin", asked_by="x" * 300), KEYS, "asked_by"),
            (Submit(7, "pin", owner="o"), b"", "keys"),
            (AskJob(7, info.job.id, "dance"), None, "action"),
        ):
            frames = [] if keys is None else [keys]
            refused, _ = client.ask(question, *frames)
            assert isinstance(refused, Refused), question
            assert (refused.field, refused.request) == (field, 7), refused
        torn, _ = client.ask(Submit(8, "pin", owner="o"), KEYS[:-1])
        assert isinstance(torn, Refused) and "multiple of 16" in torn.message
        many, _ = client.ask(Submit(9, "pin", owner="o"), bytes(16 * ((1 << 16) + 1)))
        assert isinstance(many, Refused) and "at most 65536" in many.message
