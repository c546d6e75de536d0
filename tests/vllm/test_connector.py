"""The connector alone: what is not shared is one line, and no exception reaches vLLM."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

vllm = pytest.importorskip("vllm", reason="vllm is not installed")

from lmkv.connector import LmkvConnector, LmkvHandshake, LmkvWorkerMetadata  # noqa: E402
from lmkv.connector_metrics import LmkvStats  # noqa: E402
from lmkv.core.messages import PullResult  # noqa: E402
from lmkv.core.steps import LoadResult  # noqa: E402
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram  # noqa: E402
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole  # noqa: E402


def connector(monkeypatch: pytest.MonkeyPatch, device: str = "cpu", **parallel: int) -> Any:
    monkeypatch.setattr(vllm.platforms, "current_platform", SimpleNamespace(device_type=device))
    transfer = SimpleNamespace(
        kv_connector_extra_config={}, kv_load_failure_policy="fail", engine_id="e"
    )
    config = SimpleNamespace(
        kv_transfer_config=transfer, parallel_config=SimpleNamespace(**parallel)
    )
    return LmkvConnector(config, KVConnectorRole.SCHEDULER, kv_cache_config=None)


def answers_like_an_empty_cache(connector: Any) -> bool:
    request = SimpleNamespace(request_id="r", skip_reading_prefix_cache=False, num_tokens=700)
    connector.on_new_request(request)
    return (
        connector.get_num_new_matched_tokens(request, 0) == (0, False)
        and connector.request_finished(request, []) == (False, None)
        and not connector.build_connector_meta(SimpleNamespace()).plan
    )


def test_a_cuda_engine_is_told_in_one_line_and_served(monkeypatch: pytest.MonkeyPatch) -> None:
    off = connector(monkeypatch, "cuda")
    assert "does not share on a CUDA engine yet" in off._off
    assert answers_like_an_empty_cache(off)


@pytest.mark.parametrize("name", ["pipeline_parallel_size", "decode_context_parallel_size"])
def test_a_deployment_that_is_not_shared_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    off = connector(monkeypatch, **{name: 2})
    assert off._off == f"{name} = 2 is not shared yet, only 1"
    assert answers_like_an_empty_cache(off)


def test_a_rank_that_cannot_share_switches_all_off(monkeypatch: pytest.MonkeyPatch) -> None:
    one = connector(monkeypatch)
    assert not one._off
    one.set_xfer_handshake_metadata_pp_aware({(0, 0): LmkvHandshake(error="no room for a pool")})
    assert one._off == "no room for a pool"
    assert answers_like_an_empty_cache(one)


def test_an_exception_switches_off_and_is_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    one = connector(monkeypatch)
    one._agent = SimpleNamespace(match=lambda *_: 1 // 0)
    request = SimpleNamespace(request_id="r", skip_reading_prefix_cache=False, num_tokens=700)
    assert one.get_num_new_matched_tokens(request, 0) == (0, False)
    assert "internal error" in one._off


def test_failed_loads_are_recomputed_whatever_vllms_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = connector(monkeypatch)
    assert one._vllm_config.kv_transfer_config.kv_load_failure_policy == "recompute"


def test_alarms_are_counted_in_vllms_metrics_and_log() -> None:
    registry = CollectorRegistry()
    types = {kind: partial(kind, registry=registry) for kind in (Counter, Gauge, Histogram)}
    config = SimpleNamespace(kv_transfer_config=SimpleNamespace())
    metrics = LmkvConnector.build_prom_metrics(config, types, ["engine"], {0: ["0"]})
    stats = LmkvStats({"alarms": {"audit": 1}, "hit": {}, "miss": {}})
    stats.aggregate(LmkvStats({"alarms": {"audit": 1, "peer": 3}}))
    metrics.observe(stats.data)
    metrics.observe({})

    def count(kind: str) -> float | None:
        return registry.get_sample_value("vllm:lmkv_alarms_total", {"engine": "0", "kind": kind})

    assert (count("audit"), count("peer"), count("message")) == (2, 3, 0)
    assert stats.reduce() == {"alarms": 5}


def test_a_load_counts_as_far_as_every_rank_got() -> None:
    good, bad = LoadResult(2, bytes=10), LoadResult(1, PullResult.DIGEST, bytes=5)
    both = LmkvWorkerMetadata({"r": (1, good)}).aggregate(LmkvWorkerMetadata({"r": (1, bad)}))
    count, result = both.loads["r"]
    assert (count, result.good, result.result, result.bytes) == (2, 1, PullResult.DIGEST, 15)
