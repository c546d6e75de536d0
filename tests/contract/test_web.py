"""A real controller with its real web process, and instances that are a table and a socket.

What must follow is waited for; that something is refused says which field, and why.
"""

from __future__ import annotations

import json
import re
import socket
from contextlib import suppress
from pathlib import Path

import pytest
from lmkv import __version__, _native
from lmkv.core.messages import Heartbeat, HeartbeatOk, Refused, Resync
from prometheus_client.parser import text_string_to_metric_families

from tests.contract.test_controller import DEADLINE, Instance, until
from tests.http_client import Stream
from tests.stub_instance import NAMESPACE, StubInstance, keys
from tests.web import TOKENS, Web, leave, prompt_keys, store

# ------------------------------------------------------------------ health


def test_health_and_version(web: Web) -> None:
    assert web.http in web.line
    assert web.ask("/healthz").json == {"status": "ok"}
    for path in ("/healthz", "/readyz"):  # as load balancers may ask
        head = web.ask(path, method="HEAD")
        assert (head.status, head.text) == (200, "")
    assert web.ask("/readyz").json == {"status": "ready"}
    about = web.ask("/version").json
    assert (about["version"], about["protocol_max"], about["isa"]) == (
        __version__, 1, _native.isa(),
    )  # fmt: skip


def test_warming_is_alive_and_not_ready() -> None:
    running = Web("--warming-least", "3600", "--warming-most", "3600")
    try:
        until(lambda: running.ask("/healthz").status == 200)
        answer = running.ask("/readyz")
        assert (answer.status, answer.error["code"]) == (503, "warming")
        assert running.ask("/v1/cluster").json["state"] == "warming"
    finally:
        running.end()


def test_the_documentation_needs_no_other_host(web: Web) -> None:
    page = web.ask("/docs")
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "POST /v1/locate" in page.text
    assert "://" not in page.text and "<script" not in page.text
    api = web.ask("/openapi.json").json
    assert {"/v1/cluster", "/v1/lookup", "/v1/events", "/healthz", "/metrics"} <= set(api["paths"])


# ------------------------------------------------------------------ the cluster


def test_the_cluster_and_its_instances(web: Web, pair: tuple[Instance, Instance]) -> None:
    a, _ = pair
    store(a, keys(1, 2, 3))
    cluster = web.ask("/v1/cluster").json
    assert (cluster["cluster"], cluster["state"], cluster["keys"]) == ("default", "ready", 3)
    assert cluster["states"] == {"live": 2}
    first = web.ask("/v1/instances?limit=1").json
    assert [each["instance"] for each in first["instances"]] == ["a"]
    second = web.ask(f"/v1/instances?limit=1&after={first['next']}").json
    assert [each["instance"] for each in second["instances"]] == ["b"]
    assert second["next"] == ""
    alone = web.ask("/v1/instances/a").json
    assert (alone["keys"], alone["dp_rank"], alone["epoch"]) == (3, 3, f"{1:016x}")
    assert alone["serving_url"] == "http://127.0.0.1:8000"
    [controller] = web.ask("/v1/controllers").json["controllers"]
    assert controller["address"] == web.state
    assert (controller["epoch"], controller["keys"]) == (cluster["epoch"], 3)
    assert (controller["instances"], controller["drifts"]) == (2, 0)
    assert 0 <= controller["lag"] < DEADLINE


def test_an_instance_with_a_slash_in_its_name(web: Web) -> None:
    with Instance(StubInstance("rack/1"), web) as odd:
        odd.join()
        assert web.ask("/v1/instances/rack/1").json["instance"] == "rack/1"
        assert web.ask("/v1/instances/rack%2F1").json["instance"] == "rack/1"
        leave(odd)


def test_what_keeps_an_instance_from_sharing_is_named(
    web: Web, pair: tuple[Instance, Instance]
) -> None:
    stub = StubInstance("z", namespace=NAMESPACE.replace("weights=one", "weights=two"))
    with Instance(stub, web) as other, Stream(web.http, "?history=1000") as events:
        other.join()
        other.beat()
        state = web.ask("/v1/instances/z").json
        assert (state["state"], state["differs"]) == ("incompatible", "weights")
        assert state["differs_from"] == "a"
        told = next(each for each in events if each.kind == "incompatible")
        assert (told.data["instance"], told.data["text"]) == (
            "z", "weights differs from that of a: they do not share",
        )  # fmt: skip
        answer = web.ask("/v1/lookup", {"tokens": TOKENS})
        assert (answer.status, answer.error["field"]) == (400, "like")
        found = web.ask("/v1/lookup", {"tokens": TOKENS, "like": "a"}).json
        assert found["incompatible"] == {"z": "weights"}
        leave(other)


def test_hot_prefixes(web: Web, pair: tuple[Instance, Instance]) -> None:
    a, b = pair
    store(a, keys(11, 12, 13))
    store(b, keys(11))
    for _ in range(3):
        assert b.found(11, 12, 99) == 2
    assert b.found(11, 12, 13) == 3
    assert b.found(98) == 0
    hot = web.ask("/v1/prefixes?top=2").json["prefixes"]
    assert [(each["key"], each["hits"], each["tokens"]) for each in hot] == [
        (keys(12).hex(), 3, 32),
        (keys(13).hex(), 1, 48),
    ]
    assert (hot[0]["model"], hot[0]["copies"], hot[0]["holders"]) == ("m", 1, ["a"])
    assert a.found(11) == 1  # the other one's
    a.tell(*a.stub.retire(12, 13))
    a.beat()
    hot = web.ask("/v1/prefixes").json["prefixes"]
    assert [(each["key"], each["copies"]) for each in hot] == [(keys(11).hex(), 2)]


# ------------------------------------------------------------------ prompts


def test_lookup_by_tokens_and_by_keys(web: Web, pair: tuple[Instance, Instance]) -> None:
    a, b = pair
    made = prompt_keys(TOKENS)
    store(a, made)
    store(b, made[:16])
    found = web.ask("/v1/lookup", {"tokens": TOKENS}).json
    assert "".join(found["keys"]) == made.hex()
    assert (found["holders"], found["matched"]) == ([["a", "b"], ["a"]], {"a": 32, "b": 16})
    assert web.ask("/v1/lookup", {"keys": found["keys"]}).json == {**found, "tokens": 0}
    assert found["tokens"] == len(TOKENS)
    salted = web.ask("/v1/lookup", {"tokens": TOKENS, "salt": "s"}).json
    assert (salted["holders"], salted["matched"]) == ([[], []], {})


def test_locate_for_routers(web: Web, pair: tuple[Instance, Instance]) -> None:
    a, b = pair
    made = prompt_keys(TOKENS)
    store(a, made)
    store(b, made[:16])
    busy = Heartbeat(1, a.stub.number(), *a.stub.table.sums(), running=24, waiting=8)
    a.tell((busy, ()))
    a.take(HeartbeatOk)
    body = {"model": "m", "tokens": TOKENS}
    first, second = web.ask("/v1/locate", body).json["candidates"]
    assert (first["instance"], first["tokens"], first["url"], first["dp_rank"]) == (
        "a", 32, "http://127.0.0.1:8000", 3,
    )  # fmt: skip
    assert (second["instance"], second["tokens"]) == ("b", 16)
    assert 0 <= first["fresh_ms"] < DEADLINE * 1000
    assert len(web.ask("/v1/locate", body | {"limit": 1}).json["candidates"]) == 1
    several = web.ask(
        "/v1/locate",
        {"prompts": [{"tokens": TOKENS[:16]}, {"tokens": TOKENS, "salt": "s"}, {"tokens": []}]},
    ).json
    got = [[(c["instance"], c["tokens"]) for c in p["candidates"]] for p in several["prompts"]]
    assert got == [[("b", 16), ("a", 16)], [("b", 0), ("a", 0)], [("b", 0), ("a", 0)]]
    assert first["load"] == 2


@pytest.mark.parametrize(
    ("path", "body", "status", "field", "said"),
    [
        ("/v1/locate", {"tokens": [1], "model": "x"}, 404, "model", "'m' are served"),
        ("/v1/locate", {"messages": [{"role": "user"}]}, 400, "messages.0.content", "required"),
        ("/v1/locate", {"prompts": []}, 400, "prompts", "at least 1 item"),
        ("/v1/locate", {"prompts": [{}] * 65}, 400, "prompts", "at most 64 items"),
        ("/v1/locate", {"tokens": [1], "limit": 0}, 400, "limit", "greater than"),
        ("/v1/locate", {"tokens": [1], "limit": "all"}, 400, "limit", "integer"),
        ("/v1/locate", {"tokens": [1], "modl": "m"}, 400, "modl", "not permitted"),
        ("/v1/lookup", {}, 400, "tokens", "tokens, text, messages or keys"),
        ("/v1/lookup", {"tokens": [-1]}, 400, "tokens.0", "greater than"),
        ("/v1/lookup", {"tokens": [1 << 32]}, 400, "tokens.0", "less than"),
        ("/v1/lookup", {"tokens": ["1"]}, 400, "tokens.0", "integer"),
        ("/v1/lookup", {"tokens": [True]}, 400, "tokens.0", "integer"),
        ("/v1/lookup", {"tokens": [1], "salt": 5}, 400, "salt", "string"),
        ("/v1/lookup", {"tokens": [1], "salt": "s" * 4097}, 400, "salt", "4096"),
        ("/v1/lookup", {"tokens": [1], "like": "nobody"}, 404, "like", "not known here"),
        ("/v1/lookup", {"keys": ["xyz"]}, 400, "keys.0", "pattern"),
        ("/v1/lookup", {"tokens": list(range(16 * 4097))}, 413, "tokens", "4097 chunks"),
        ("/v1/lookup", {"tokens": [1] * (1 << 20), "like": "a"}, 413, "tokens", "65536 chunks"),
        ("/v1/lookup", {"tokens": [99999] * 900_000}, 413, "tokens", "max_frame_bytes"),
        ("/v1/lookup", b"{", 400, "", "no JSON"),
        ("/v1/lookup", b"\xff\xfe", 400, "", "JSON"),
        ("/v1/lookup", b"[" * 100_000, 400, "", "parsing the body"),
        ("/v1/lookup", b"[1]", 400, "", "an object"),
        ("/v1/lookup", b" " * (9 << 20), 413, "", "at most 8388608"),
        ("/v1/instances?limit=0", None, 400, "limit", "greater than"),
        ("/v1/instances?limit=x", None, 400, "limit", "integer"),
        ("/v1/instances?after=" + "a" * 257, None, 400, "after", "256"),
        ("/v1/instances/nobody", None, 404, "instance", "'nobody' is not known here"),
        ("/v1/instances/", None, 400, "instance", "at least 1"),
        ("/v1/prefixes?top=501", None, 400, "top", "less than"),
        ("/v1/events?history=-1", None, 400, "history", "greater than"),
        ("/v1/nothing", None, 404, "", "not found"),
        ("/v1/" + "no%0Athing" * 100, None, 404, "", "no%0Athing"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, (str, dict, bytes)) else "",
)
def test_a_mistake_of_the_callers(
    web: Web, pair: tuple[Instance, Instance], path: str, body: object, status: int, field: str,
    said: str,
) -> None:  # fmt: skip
    answer = web.ask(path, body)
    assert (answer.status, answer.error["field"]) == (status, field), answer
    assert said in answer.error["message"]
    assert web.ask("/healthz").status == 200


def test_other_mistakes(web: Web) -> None:
    wrong = web.ask("/v1/cluster", method="DELETE")
    assert (wrong.status, wrong.error["code"]) == (405, "method_not_allowed")
    wrong = web.ask("/v1/events", Last_Event_ID="yesterday")
    assert (wrong.status, wrong.error["field"]) == (400, "last-event-id")
    with socket.create_connection(("127.0.0.1", int(web.http.rpartition(":")[2]))) as raw:
        raw.sendall(b"\x00\xff garbage\r\n\r\n")
        head, _, body = raw.makefile("rb").read().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400")
        assert json.loads(body)["error"]["code"] == "http"
    with socket.create_connection(("127.0.0.1", int(web.http.rpartition(":")[2]))) as raw:
        raw.sendall(b"POST /v1/lookup HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        raw.settimeout(DEADLINE)
        with suppress(OSError):  # it stops reading, and closes
            for _ in range(9):
                raw.sendall(b"100000\r\n" + b" " * (1 << 20) + b"\r\n")
        assert raw.recv(4096).startswith(b"HTTP/1.1 413")


# ------------------------------------------------------------------ events


def test_events_resume_where_a_reader_was(web: Web) -> None:
    with Stream(web.http) as stream, Instance(StubInstance("e", 5), web) as e:
        assert stream.take(1)[0].kind == "start"
        e.join()
        registered = stream.until("registered")  # what others did before may come yet
        assert registered.data["instance"] == "e"
        assert registered.data["age"] < DEADLINE
        e.stub.seq += 1  # a message was lost
        e.beat()
        assert [each.kind for each in stream.take(1)] == ["resync"]
        e.tell(*e.stub.sync(e.take(Resync).sync))  # type: ignore[attr-defined]
        e.stub.store(1)
        e.stub.seq -= 1  # an announcement was never sent
        e.beat()
        assert [each.kind for each in stream.take(2)] == ["drift", "resync"]
        leave(e)
        left = stream.take(1)[0]
        assert (left.kind, left.data["text"]) == ("left", "")
    with Stream(web.http, last=registered.id) as again:
        found = again.take(4)
        assert [each.kind for each in found] == ["resync", "drift", "resync", "left"]
        assert found[-1].id == left.id
    with Stream(web.http, "?history=2") as late:
        assert [each.kind for each in late.take(3)] == ["start", "resync", "left"]
    with Stream(web.http, last="0123456789abcdef-3") as other:
        reset = other.take(1)[0]
        assert (reset.kind, reset.id.partition("-")[0]) == ("reset", left.id.partition("-")[0])


def test_silence_death_and_return() -> None:
    running = Web()
    try:
        running.up()
        with Stream(running.http) as stream, Instance(StubInstance("s", 5), running) as s:
            s.join()
            assert stream.until("suspect").data["instance"] == "s"
            s.beat()
            assert stream.until("back").data["text"] == "it was suspect"
            assert stream.until("dead").data["instance"] == "s"
            s.join()
            assert stream.until("back").data["text"] == "it registered again"
    finally:
        assert running.end() == (0, "")


# ------------------------------------------------------------------ metrics


def samples(text: str) -> dict[str, float]:
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_metrics(web: Web, pair: tuple[Instance, Instance]) -> None:
    a, b = pair
    store(a, keys(21, 22))
    before = samples(web.ask("/metrics").text)
    assert b.found(21, 22, 23) == 2
    pool = a.stub.table.granules()
    told = Heartbeat(
        1, a.stub.number(), *a.stub.table.sums(), hit_tokens={"hit_peer": 7},
        miss_tokens={"cold": 5, "invented": 2}, pool_granules={**pool, "limbo": 32, "new": 3},
    )  # fmt: skip
    a.tell((told, ()))
    a.take(HeartbeatOk)
    answer = web.ask("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    after = samples(answer.text)

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0.0)

    assert grown("lmkv_locates_total") == 1
    assert (grown("lmkv_locate_keys_total"), grown("lmkv_located_keys_total")) == (3, 2)
    assert grown('lmkv_hit_tokens_total{cause="hit_peer"}') == 7
    assert grown('lmkv_miss_tokens_total{cause="cold"}') == 5
    assert grown('lmkv_miss_tokens_total{cause="other"}') == 2
    assert after['lmkv_instances{state="live"}'] == 2
    assert after['lmkv_pool_granules{state="other"}'] == 3
    told_pool = {n: after[f'lmkv_pool_granules{{state="{n}"}}'] for n in pool}
    assert told_pool == pool | {"limbo": 32}
    assert (after["lmkv_syncs"], after["lmkv_syncs_waiting"]) == (0, 0)
    assert grown("lmkv_heartbeats_total") == 1
    assert after['lmkv_miss_tokens_total{cause="digest"}'] == 0, "seen before it grows"
    assert after["lmkv_ready"] == 1
    assert 0 < after["lmkv_controller_process_resident_memory_bytes"] < 64 << 20
    assert after["lmkv_web_process_resident_memory_bytes"] > 0
    assert all(name.startswith("lmkv_") for name in after)
    assert "invented" not in answer.text
    assert keys(21).hex() not in answer.text


def test_metrics_of_an_instance_by_name(web: Web, pair: tuple[Instance, Instance]) -> None:
    a, _ = pair
    store(a, keys(21, 22))
    a.tell(*a.stub.retire(22))
    pool = a.stub.table.granules()
    a.tell((Heartbeat(1, a.stub.number(), *a.stub.table.sums(), pool_granules=pool), ()))
    a.take(HeartbeatOk)
    odd = 'c"} 1\\n{\\'  # no line of it ends early
    with Instance(StubInstance(odd, 3), web) as third:
        third.join()
        third.beat()
        text = web.ask("/metrics").text
        leave(third)
    found = samples(text)
    assert found['lmkv_instance_keys{peer="a"}'] == 1
    assert found['lmkv_instance_pool_granules{peer="a",state="readable"}'] == 16
    assert 0 <= found['lmkv_instance_heartbeat_age_seconds{peer="b"}'] < DEADLINE
    families = {family.name: family for family in text_string_to_metric_families(text)}
    told = {
        sample.labels["peer"]: sample.value for sample in families["lmkv_instance_keys"].samples
    }
    assert told == {"a": 1, "b": 0, odd: 0}
    with Instance(StubInstance("line\nfeed", 4), web) as fourth:
        refused, _ = fourth.state.ask(fourth.stub.registration)
        assert isinstance(refused, Refused) and refused.field == "instance"


def test_the_page_lists_what_the_api_has(web: Web) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "rest.md").read_text()
    paths = {
        path.replace("{instance}", "NAME").replace("{id}", "ID")
        for path in web.ask("/openapi.json").json["paths"]
    }
    assert set(re.findall(r"^\| `(?:GET|POST) ([^`?]+)", page, re.MULTILINE)) == paths
