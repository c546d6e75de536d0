"""LMCache's clients against our controller: the requests that its documentation shows, and answers
of the shapes that its own models have (tests/golden/lmcache.json)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.test_controller import Instance, until
from tests.scripted_jobs import KEYS, Worker, holders
from tests.stub_instance import HOST_B, NAMESPACE, StubInstance
from tests.web import TOKENS, Web, lasting, leave, prompt_keys, store

SHAPES = json.loads((Path(__file__).parents[1] / "golden" / "lmcache.json").read_text())
PATHS = SHAPES["paths"]
OPERATIONS = ["/pin", "/clear", "/compress", "/decompress", "/move"]
DOCUMENTED = {
    "/lookup": {"tokens": TOKENS},
    "/health": {"instance_id": "a"},
    "/query_instance": {"event_id": "x", "ip": "127.0.0.1"},
    "/query_worker_info": {"instance_id": "a", "worker_ids": [0]},
    "/pin": {"tokens": TOKENS, "instance_id": "a", "location": "LocalCPUBackend"},
    "/clear": {"instance_id": "a", "location": "LocalCPUBackend"},
    "/compress": {
        "instance_id": "a", "method": "cachegen", "location": "LocalCPUBackend", "tokens": TOKENS,
    },
    "/decompress": {"instance_id": "a", "method": "cachegen", "location": "LocalCPUBackend"},
    "/move": {
        "old_position": ["a", "LocalCPUBackend"], "new_position": ["b", "LocalCPUBackend"],
        "tokens": TOKENS, "should_copy": True,
    },
    "/check_finish": {"event_id": "Move1"},
}  # fmt: skip


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    with lasting("--compat", "lmcache") as running:
        yield running


def fits(value: Any, kind: str) -> bool:
    """Whether a JSON value is of a type that LMCache's source names."""
    whole = {"str": str, "int": int, "float": (int, float), "bool": bool}
    if kind in whole:
        return isinstance(value, whole[kind]) and (kind == "bool") == isinstance(value, bool)
    if kind == "WorkerInfo":
        return has(value, SHAPES["WorkerInfo"])
    outer, _, inner = kind.partition("[")
    inner = inner.removesuffix("]")
    if outer == "Optional":
        return value is None or fits(value, inner)
    if outer.lower() == "list":
        return isinstance(value, list) and all(fits(each, inner) for each in value)
    first, _, second = inner.partition(", ")
    if outer.lower() == "tuple":
        pair = zip(value, (first, second))
        return isinstance(value, list) and len(value) == 2 and all(fits(*each) for each in pair)
    assert outer.lower() == "dict", kind
    keys = [int(key) if first == "int" else key for key in value]
    return all(fits(key, first) for key in keys) and all(fits(v, second) for v in value.values())


def has(value: Any, shape: dict[str, Any]) -> bool:
    return set(value) == set(shape) and all(fits(value[n], shape[n]["type"]) for n in shape)


def test_the_requests_are_what_lmcache_takes() -> None:
    """Or the tests below would show nothing."""
    assert set(DOCUMENTED) == set(PATHS)
    for path, body in DOCUMENTED.items():
        takes = PATHS[path]["takes"]
        assert {n for n in takes if takes[n]["required"]} <= set(body) <= set(takes), path
        assert all(fits(body[name], takes[name]["type"]) for name in body), path


@pytest.mark.parametrize("path", [p for p in DOCUMENTED if p not in (*OPERATIONS, "/check_finish")])
def test_answers_have_lmcaches_shapes(web: Web, pair: tuple[Instance, Instance], path: str) -> None:
    store(pair[0], prompt_keys(TOKENS))
    answer = web.ask(path, DOCUMENTED[path])
    assert answer.status == 200, answer
    assert has(answer.json, PATHS[path]["gives"]), answer.json


def test_what_they_say(web: Web, pair: tuple[Instance, Instance]) -> None:
    a, b = pair
    made = prompt_keys(TOKENS)
    store(b, made)
    store(a, made[:16])
    found = web.ask("/lookup", DOCUMENTED["/lookup"]).json
    assert list(found["layout_info"].items()) == [
        ("b", ["LocalCPUBackend", 32]), ("a", ["LocalCPUBackend", 16]),
    ]  # fmt: skip
    assert re.fullmatch(r"Lookup[0-9a-f-]{36}", found["event_id"])
    assert web.ask("/lookup", {"tokens": [1]}).json["layout_info"] == {}
    assert web.ask("/health", {"instance_id": "a"}).json["error_codes"] == {"0": 0}
    assert web.ask("/query_instance", {"ip": "127.0.0.1"}).json["res"] == "a"
    [worker] = web.ask("/query_worker_info", {"instance_id": "a"}).json["worker_infos"]
    assert (worker["instance_id"], worker["worker_id"]) == ("a", 0)
    assert (worker["ip"], worker["port"]) == ("127.0.0.1", 8000)
    odd = StubInstance("z", 3, namespace=NAMESPACE.replace("weights=one", "weights=two"))
    with Instance(odd, web) as other:
        other.join()
        assert web.ask("/health", {"instance_id": "z"}).json["error_codes"] == {"0": 4}
        refused = web.ask("/lookup", DOCUMENTED["/lookup"])
        assert refused.status == 400 and "name one of" in refused.json["detail"]
        chosen = web.ask("/lookup", {"tokens": TOKENS, "like": "a"}).json
        assert list(chosen["layout_info"]) == ["b", "a"]
        leave(other)


@pytest.fixture
def workers(web: Web) -> Iterator[tuple[Worker, Worker]]:
    """`a`, which holds the prompt, and `b`."""
    with Worker("a", [web], 1) as a, Worker("b", [web], 2, host=HOST_B) as b:
        a.store(KEYS)
        until(lambda: holders(web) == ["a"])
        until(lambda: web.ask("/v1/instances/b").json["state"] == "live")
        yield a, b


def finished(web: Web, event: str) -> str:
    """What `/check_finish` says at the end."""
    seen = ""

    def over() -> bool:
        nonlocal seen
        seen = web.ask("/check_finish", {"event_id": event}).json["status"]
        return seen not in ("pending", "running")

    until(over)
    return seen


@pytest.mark.parametrize("path", OPERATIONS)
def test_an_operation_is_a_job(web: Web, workers: tuple[Worker, Worker], path: str) -> None:
    answer = web.ask(path, DOCUMENTED[path])
    assert answer.status == 200, answer
    assert has(answer.json, PATHS[path]["gives"]), answer.json
    assert answer.json["num_tokens"] == 32
    done = web.ask("/check_finish", {"event_id": answer.json["event_id"]})
    assert has(done.json, PATHS["/check_finish"]["gives"])
    assert finished(web, answer.json["event_id"]) == "finished"
    job = web.ask(f"/v1/jobs/{answer.json['event_id']}").json
    operation = {"/move": "copy"}.get(path, path[1:])
    assert (job["operation"], job["state"]) == (operation, "done")
    where = "b" if path == "/move" else "a"
    assert [part["instance"] for part in job["parts"]] == [where]


def test_what_they_do(web: Web, workers: tuple[Worker, Worker]) -> None:
    a, b = workers
    event = web.ask("/pin", DOCUMENTED["/pin"]).json["event_id"]
    assert (a.commands[-1].arguments["owner"], a.keys[event]) == ("lmcache", KEYS)
    event = web.ask("/clear", DOCUMENTED["/clear"]).json["event_id"]
    assert a.commands[-1].arguments["whole"] == "1" and a.keys[event] == b""
    whole = {**DOCUMENTED["/move"], "should_copy": False, "tokens": None}
    event = web.ask("/move", whole).json["event_id"]
    sent = b.commands[-1]
    assert (sent.operation, sent.arguments["source"], sent.arguments["whole"]) == ("move", "a", "1")
    a.fails = "no_room", "there is none"
    event = web.ask("/pin", DOCUMENTED["/pin"]).json["event_id"]
    assert finished(web, event) == "failed"


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/health", {"instance_id": "nobody"}, 404, "'nobody' is not known here"),
        ("/health", {"instance_id": ""}, 400, "instance_id"),
        ("/query_worker_info", {"instance_id": "x" * 257}, 400, "instance_id"),
        ("/query_worker_info", {"instance_id": "a", "worker_ids": [1]}, 404, "ranks 0 to 0, not 1"),
        ("/query_instance", {"ip": "192.0.2.1"}, 404, "'192.0.2.1'"),
        ("/query_instance", {"ip": ""}, 404, "ip"),
        ("/lookup", {"tokens": [99999] * 900_000}, 413, "max_frame_bytes"),
        ("/lookup", {"tokens": [-1]}, 422, "greater than"),
        ("/lookup", {"tokens": "x"}, 422, "list"),
        ("/lookup", {}, 422, "tokens"),
        ("/lookup", b"{", 422, "json"),
        ("/pin", {**DOCUMENTED["/pin"], "tokens": [7] * 32}, 404, "no instance holds a chunk"),
        ("/pin", {**DOCUMENTED["/pin"], "tokens": []}, 400, "tokens"),
        ("/pin", {**DOCUMENTED["/pin"], "instance_id": "nobody"}, 404, "'nobody' is not known"),
        ("/pin", {**DOCUMENTED["/pin"], "location": "LocalDiskBackend"}, 400, "LocalCPUBackend"),
        (
            "/move",
            {**DOCUMENTED["/move"], "new_position": ["a", "LocalCPUBackend"]},
            400,
            "'a' is where it goes",
        ),
        (
            "/move",
            {**DOCUMENTED["/move"], "new_position": ["nobody", "LocalCPUBackend"]},
            404,
            "'nobody' is not known",
        ),
        ("/move", {**DOCUMENTED["/move"], "old_position": ["a"]}, 422, "old_position"),
        ("/compress", {"instance_id": "a"}, 422, "method"),
        ("/check_finish", {"event_id": "Move1"}, 404, "job 'move1' is not known"),
        ("/check_finish", {"event_id": ""}, 422, "event_id"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_mistakes_are_no_500s(
    web: Web, pair: tuple[Instance, Instance], path: str, body: Any, status: int, said: str
) -> None:
    answer = web.ask(path, body)
    assert answer.status == status, answer
    assert set(answer.json) == {"detail"} and said.lower() in answer.text.lower()
    assert len(answer.text) < 4096


def test_our_own_paths_are_as_ever(web: Web) -> None:
    assert web.ask("/v1/cluster").status == 200
    assert web.ask("/v1/instances/nobody").error["code"] == "unknown_instance"
