"""Spans reach a real collector, joined to the client's trace; off, there is nothing of them."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("opentelemetry.sdk")  # the extra `otel`

from lmkv.agent import tracing
from lmkv.agent.tracing import OFF, UNTRACED, Tracer, Untraced
from lmkv.core.messages import PullResult
from lmkv.core.steps import LoadResult

from tests.fake_links import World
from tests.otlp import DEADLINE, HEADERS, PARENT, TRACE, Collector, Span
from tests.scripted_vllm import Vllm
from tests.unit.test_agent_groups import FULL, WINDOW, Groups

ROOT = Path(__file__).resolve().parents[2]
GOOD, GONE = PullResult.GOOD, PullResult.GONE


@pytest.fixture(params=["grpc", "http/protobuf"])
def collector(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Collector]:
    monkeypatch.setenv(tracing.PROTOCOL, request.param)
    with Collector(request.param) as running:
        yield running


def traced(collector: Collector) -> World:
    def make(clock) -> tracing.Off:
        made = tracing.tracer(collector.endpoint, "us", clock)
        assert isinstance(made, Tracer)
        return made

    return World(tracer=make)


def close(world: World) -> None:
    assert world.agent._tracer.flush(DEADLINE)  # type: ignore[attr-defined]
    world.agent._tracer.close()


def test_a_pull_from_a_peer(collector: Collector) -> None:
    world = traced(collector)
    prompt = world.prompt(2)
    world.begin("a", prompt, headers=HEADERS)
    world.clock.advance(0.25)
    world.located(2)
    assert world.match("a", prompt) is None
    world.peer_info()
    assert world.match("a", prompt) is None
    world.clock.advance(0.125)
    world.pulled([GOOD, GOOD], seconds=0.1, bytes=2048)
    assert world.match("a", prompt) == 8
    world.agent.allocated("a", [[1, 2, 3, 4, 5]], 8)
    world.clock.advance(0.5)
    world.agent.loaded("a", LoadResult(2))
    world.agent.finished("a")
    close(world)
    spans = collector.wait(4)
    assert {(span.trace, span.parent) for span in spans} == {(TRACE, PARENT)}
    assert {span.resource["lmkv.instance"] for span in spans} == {"us"}
    assert {span.attributes["gen_ai.request.id"] for span in spans} == {"a"}
    named = {span.name: span for span in spans}
    lookup, locate = named["lmkv.lookup"], named["lmkv.locate"]
    pull, load = named["lmkv.pull"], named["lmkv.load"]
    assert seconds(lookup) == 0.375 and seconds(locate) == 0.25
    assert seconds(pull) == 0.125 and seconds(load) == 0.5
    assert (lookup.begin, locate.end) == (locate.begin, pull.begin)
    assert pull.end == lookup.end == load.begin
    assert locate.attributes["lmkv.peers"] == ["peer"]
    assert (locate.attributes["lmkv.chunks"], locate.attributes["lmkv.cause"]) == (2, "cold")
    assert (pull.attributes["lmkv.peer"], pull.attributes["lmkv.bytes"]) == ("peer", 2048)
    assert (pull.attributes["lmkv.good_chunks"], pull.attributes["lmkv.causes"]) == (2, ["good"])
    assert load.attributes["lmkv.hit_tokens.hit_peer"] == 8
    assert load.attributes["lmkv.peers"] == ["peer"]
    assert lookup.attributes["lmkv.hit_tokens.hit_peer"] == 8
    assert lookup.attributes["lmkv.miss_tokens.too_short"] == 1
    assert lookup.attributes["lmkv.peer_tokens.peer"] == 8
    assert lookup.attributes["gen_ai.usage.cache_read.input_tokens"] == 8


def seconds(span: Span) -> float:
    return round((span.end - span.begin) / 1e9, 6)


def test_what_fails_says_why(collector: Collector) -> None:
    world = traced(collector)
    prompt = world.prompt(2)
    world.begin("a", prompt, headers=HEADERS)
    world.located(2)
    assert world.match("a", prompt) is None
    world.peer_info()
    assert world.match("a", prompt) is None
    world.pulled([GONE, GONE])
    assert world.match("a", prompt) == 0
    world.agent.allocated("a", [], 0)
    world.agent.finished("a")
    world.begin("b", [99, *prompt], headers=HEADERS)
    assert world.match("b", [99, *prompt]) is None
    world.clock.advance(1.0)
    assert world.match("b", [99, *prompt]) == 0
    world.agent.allocated("b", [], 0)
    world.agent.finished("b")
    close(world)
    found = {(span.attributes["gen_ai.request.id"], span.name): span for span in collector.wait(5)}
    assert sorted(found) == [
        ("a", "lmkv.locate"), ("a", "lmkv.lookup"), ("a", "lmkv.pull"),
        ("b", "lmkv.locate"), ("b", "lmkv.lookup"),
    ]  # fmt: skip
    assert found["a", "lmkv.pull"].attributes["lmkv.causes"] == ["gone"]
    assert found["a", "lmkv.lookup"].attributes["lmkv.miss_tokens.gone"] == 8
    assert found["b", "lmkv.locate"].attributes["lmkv.cause"] == "locate_timeout"
    assert found["b", "lmkv.lookup"].attributes["lmkv.miss_tokens.locate_timeout"] == 8


def test_a_scripted_engine(collector: Collector) -> None:
    """A prompt is computed and stored, and loaded from the pool when it comes again."""
    vllm = Vllm(
        lambda n: 0,
        caching=False,
        tracer=lambda clock: tracing.tracer(collector.endpoint, "us", clock),
    )
    for _ in range(2):
        vllm.add([1, 2, 3, 4, 5, 6, 7, 8, 9], 1, headers=HEADERS)
        vllm.add([1, 2, 3], 1)  # nobody traces it
        while vllm.requests:
            vllm.schedule(8)
            vllm.execute()
            for rank in vllm.ranks:
                rank.step()
            vllm.world.turn()
        vllm.settle()
    close(vllm.world)
    spans = collector.wait(3)
    assert Counter(span.name for span in spans) == {"lmkv.lookup": 2, "lmkv.load": 1}
    [load] = [span for span in spans if span.name == "lmkv.load"]
    assert load.attributes["lmkv.hit_tokens.hit_pool"] == 8


def test_each_cache_groups_pull_has_a_span(collector: Collector) -> None:
    world = Groups(tracer=lambda clock: tracing.tracer(collector.endpoint, "us", clock))
    prompt = world.prompt(3)
    world.begin("a", prompt, headers=HEADERS)
    (full, _), (window, _) = world.locates()[-2:]
    world.located_in(full, (0, 3))
    world.located_in(window, (1, 3))
    assert world.match("a", prompt) is None
    world.peer_info()
    assert world.match("a", prompt) is None
    for group, n in ((FULL, 3), (WINDOW, 2)):
        ((pull, _),) = world.pulls_of(group)
        world.ended(pull, *[GOOD] * n)
    assert world.match("a", prompt) == 12
    world.load("a", 12)
    world.agent.loaded("a", LoadResult(5))
    world.over("a")
    close(world)
    named = Counter(span.name for span in collector.wait(5))
    assert named == {"lmkv.locate": 1, "lmkv.pull": 2, "lmkv.load": 1, "lmkv.lookup": 1}
    [locate] = [span for span in collector.spans if span.name == "lmkv.locate"]
    assert locate.attributes["lmkv.chunks"] == 5


@pytest.mark.parametrize(
    "headers",
    [
        None,
        {},
        {"traceparent": f"00-{TRACE}-{PARENT}-00"},  # not sampled
        {"traceparent": "nonsense"},
        {"traceparent": ""},
    ],
)
def test_a_request_without_a_sampled_trace_is_untraced(headers: dict[str, str] | None) -> None:
    with Collector() as running:
        tracer = Tracer(running.endpoint, "http/protobuf", "us", lambda: 1.0)
        assert tracer.begin("a", headers) is UNTRACED
        assert tracer.begin("a", HEADERS) is not UNTRACED
        tracer.close()


def test_a_collector_that_is_not_there_costs_nothing_but_spans() -> None:
    """Four times what the queue holds: spans are dropped, and the request ends as ever."""
    tracer = Tracer("http://127.0.0.1:9/v1/traces", "http/protobuf", "us", lambda: 1.0)
    trace = tracer.begin("a", HEADERS)
    for _ in range(8192):
        trace.loaded(_state(), 1, 1)
    tracer.close()
    trace.ended(_state())  # after its end too


def _state():
    from lmkv.agent.request import RequestState

    return RequestState("a", None, 1, 1)


# ------------------------------------------------------------------ off


@pytest.mark.parametrize(
    ("endpoint", "environ"),
    [
        (None, {}),
        ("", {}),
        ("http://127.0.0.1:4317", {"OTEL_SDK_DISABLED": "true"}),
        ("http://127.0.0.1:4317", {tracing.PROTOCOL: "smoke"}),
    ],
)
def test_off(endpoint: str | None, environ: dict[str, str]) -> None:
    assert tracing.tracer(endpoint, "us", environ=environ) is OFF


def test_the_variable_stands_for_vllms_option() -> None:
    with Collector() as running:
        environ = {tracing.ENDPOINT: running.endpoint, tracing.PROTOCOL: "http/protobuf"}
        tracer = tracing.tracer(None, "us", environ=environ)
        assert isinstance(tracer, Tracer)
        tracer.close()


def test_off_opentelemetry_is_not_loaded_and_each_request_costs_a_few_empty_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: Counter[str] = Counter()
    for name in ("locating", "located", "matched", "pulled", "loading", "loaded", "ended"):
        monkeypatch.setattr(Untraced, name, lambda *_, name=name: calls.update([name]))
    world = World()
    prompt = world.prompt(2)
    world.begin("a", prompt, headers=HEADERS)
    world.located(2)
    assert world.match("a", prompt) is None
    world.peer_info(mapped=True)
    assert world.match("a", prompt) == 8
    world.agent.allocated("a", [[1, 2, 3, 4, 5]], 8)
    for _ in range(100):
        world.agent.step([], [])
    world.agent.loaded("a", LoadResult(2))
    world.agent.finished("a")
    assert calls == dict.fromkeys(
        ("locating", "located", "matched", "loading", "loaded", "ended"), 1
    )
    script = (
        f"import sys; from tests.fake_links import World; w = World(); "
        f"w.begin('a', w.prompt(2), headers={HEADERS!r}); w.agent.finished('a'); "
        f"print([n for n in sys.modules if n.split('.')[0] in ('opentelemetry', 'grpc')])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert ran.stdout == "[]\n", ran.stderr


def test_a_missing_extra_is_named(caplog: pytest.LogCaptureFixture, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    assert tracing.tracer("http://127.0.0.1:4317", "us", environ={}) is OFF
    assert "pip install 'lmkv[otel]'" in caplog.text
