"""Jobs by REST, done by real agents with their threads; without workers, so that what is pulled is
not. What moves bytes is in tests/unit/test_operations.py and, with NIXL, in the tests of movers."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.contract.test_controller import Controller, until
from tests.contract.test_controllers import SLOTS, Instance
from tests.contract.test_lookup_text import Reader, Tokeniser
from tests.ports import free_port
from tests.web import Web

PROMPT = list(range(16))  # four chunks of 4
TEXT = "sixteen letters."  # four chunks, by a tokenizer that takes letters


@pytest.fixture
def us(web: Web) -> Iterator[Reader]:
    us = Reader("us", web, Tokeniser())
    until(lambda: state(web, "us") == "live")
    yield us
    us.agent.close()
    until(lambda: web.ask("/v1/pins").json["total"] == 0)


def state(web: Web, name: str) -> str:
    answer = web.ask(f"/v1/instances/{name}")
    return str(answer.json.get("state", ""))


def holds(web: Web, keys: int) -> None:
    until(lambda: web.ask("/v1/instances/us").json["keys"] == keys)


def run(web: Web, **body: Any) -> Any:
    """The job when it has ended."""
    answer = web.ask("/v1/jobs", body)
    assert answer.status == 202, answer
    return ended(web, answer.json["id"])


def ended(web: Web, name: str) -> Any:
    def over() -> bool:
        return web.ask(f"/v1/jobs/{name}").json["state"] in ("done", "failed", "cancelled")

    until(over)
    return web.ask(f"/v1/jobs/{name}").json


def matched(web: Web, **prompt: Any) -> int:
    return int(web.ask("/v1/lookup", prompt).json["matched"].get("us", 0))


def test_pin_unpin_and_clear(web: Web, us: Reader) -> None:
    us.hold(PROMPT)
    holds(web, 4)
    job = run(web, operation="pin", tokens=[*PROMPT, *[7] * 4], ttl_s=60)
    assert (job["state"], job["chunks"], job["skipped"]) == ("done", 5, {"absent": 1}), job
    [pin] = web.ask("/v1/pins").json["pins"]
    assert (pin["id"], pin["instance"], pin["chunks"]) == (job["id"], "us", 4)
    assert 0 < pin["left_s"] <= 60 and pin["bytes"] == job["bytes"] > 0
    cleared = run(web, operation="clear", tokens=PROMPT)
    assert (cleared["chunks"], cleared["skipped"]) == (4, {"pinned": 4})
    assert matched(web, tokens=PROMPT) == 16
    assert run(web, operation="unpin", tokens=PROMPT)["chunks"] == 4
    until(lambda: web.ask("/v1/pins").json["total"] == 0)
    assert run(web, operation="clear", tokens=PROMPT)["state"] == "done"
    holds(web, 0)
    gone = web.ask("/v1/jobs", {"operation": "clear", "tokens": PROMPT})
    assert (gone.status, gone.error["code"]) == (404, "unknown_prefix")


def test_text_and_whole(web: Web, us: Reader) -> None:
    us.keep(TEXT)
    us.hold(PROMPT)
    holds(web, 8)
    job = run(web, operation="pin", text=TEXT, owner="docs", idempotency_key="text 1")
    assert (job["state"], job["chunks"]) == ("done", 4)
    again = web.ask("/v1/jobs", {"operation": "pin", "text": TEXT, "owner": "docs",
                                 "idempotency_key": "text 1"})  # fmt: skip
    assert (again.status, again.json["id"]) == (200, job["id"])
    job = run(web, operation="clear", whole=True, instance="us")
    assert job["skipped"] == {"pinned": 4}
    assert (matched(web, text=TEXT), matched(web, tokens=PROMPT)) == (16, 0)
    other = run(web, operation="unpin", text=TEXT, owner="others")
    assert other["chunks"] == 0
    assert run(web, operation="unpin", whole=True, instance="us")["chunks"] == 4


def test_more_than_the_share_is_not_pinned(web: Web, us: Reader) -> None:
    many = list(range(4 * (SLOTS // 2 + 1)))
    us.hold(many)
    holds(web, SLOTS // 2 + 1)
    job = run(web, operation="pin", tokens=many, ttl_s=60)
    assert (job["state"], job["code"]) == ("failed", "no_room")
    assert job["reason"].startswith("pin_share = 0.5 of this pool is 32 of 64 slots")
    assert web.ask("/v1/pins").json["total"] == 0
    until(lambda: web.ask("/v1/instances/us").json["pool_granules"].get("pinned", 0) == 0)


def test_what_cannot_be_pulled_says_why(web: Web, us: Reader) -> None:
    us.hold(PROMPT)
    holds(web, 4)
    peer = Instance("peer", [web.state])
    try:
        until(lambda: state(web, "peer") == "live")
        job = run(web, operation="copy", tokens=PROMPT, instance="peer", source="us")
        assert job["state"] == "failed" and job["code"] and job["reason"]
        assert matched(web, tokens=PROMPT) == 16  # a move that fails takes nothing away
        job = run(web, operation="move", tokens=PROMPT, instance="peer")
        assert job["state"] == "failed"
        assert matched(web, tokens=PROMPT) == 16
    finally:
        peer.agent.close()


def test_a_controller_is_killed_in_the_middle() -> None:
    """The pin is the instance's: the other controller has it, and so has one that comes later."""
    ports = [free_port(3), free_port(3)]
    webs: list[Any] = [Controller(ports[0]), Web(port=ports[1])]
    us = Instance("us", [each.state for each in webs])
    try:
        web = webs[1]
        until(lambda: web.ask("/readyz").status == 200)
        us.hold(PROMPT)
        holds(web, 4)
        job = run(web, operation="pin", tokens=PROMPT, owner="o")
        webs[0].end(signal.SIGKILL)
        assert run(web, operation="unpin", tokens=PROMPT)["chunks"] == 4
        again = run(web, operation="pin", tokens=PROMPT, owner="o")
        web.end(signal.SIGKILL)
        webs = [Web(port=ports[0])]
        web = webs[0]
        until(lambda: web.ask("/readyz").status == 200 and state(web, "us") == "live")
        until(lambda: web.ask("/v1/jobs").json["total"] == 3)
        names = [each["id"] for each in web.ask("/v1/jobs").json["jobs"]]
        assert (names[0], names[2]) == (again["id"], job["id"])
        assert [each["id"] for each in web.ask("/v1/pins").json["pins"]] == [again["id"]]
    finally:
        us.agent.close()
        for each in webs:
            each.end()
