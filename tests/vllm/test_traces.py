"""A real engine's own spans and lmkv's are in one trace, the client's."""

from __future__ import annotations

import pytest

pytest.importorskip("opentelemetry.sdk")

from tests.otlp import HEADERS, PARENT, TRACE, Collector
from tests.vllm.cluster import Cluster
from tests.vllm.models import prompt


@pytest.mark.nixl
def test_a_peer_hit_is_traced_beside_vllms_request(cluster: Cluster) -> None:
    with Collector("grpc") as collector:
        a = cluster.start("a")
        b = cluster.start("b", otlp_traces_endpoint=collector.endpoint)
        cluster.wait_ready(a, b)
        text = prompt(10, 700)
        a.generate(text)
        cluster.settle(a)
        told = b.call("tests.vllm.traced:generate", "traced", text, HEADERS)
        assert told["lmkv"]["hit_tokens"]["hit_peer"] == 512
        b.generate(prompt(11, 700))  # without a trace
        ours = collector.wait(4, "lmkv.")
        [request] = [span for span in collector.wait(1, "llm_request") if span.trace == TRACE]
    named = {span.name: span for span in ours}
    assert sorted(named) == ["lmkv.load", "lmkv.locate", "lmkv.lookup", "lmkv.pull"]
    assert len(ours) == 4
    assert {(span.trace, span.parent) for span in [*ours, request]} == {(TRACE, PARENT)}
    assert named["lmkv.pull"].attributes["lmkv.peer"] == "a"
    assert named["lmkv.load"].attributes["lmkv.hit_tokens.hit_peer"] == 512
    assert named["lmkv.lookup"].attributes["gen_ai.usage.cache_read.input_tokens"] == 512
    assert request.begin <= named["lmkv.lookup"].begin <= named["lmkv.load"].end <= request.end
