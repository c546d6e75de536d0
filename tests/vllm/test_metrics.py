"""The connector's half of vLLM's `/metrics`: the list of core/metrics.py, no more and no less."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vllm is not installed")

from lmkv.connector import LmkvConnector
from lmkv.connector_metrics import LmkvStats, copies
from lmkv.core.clock import ManualClock
from lmkv.core.metrics import INSTANCE
from lmkv.core.peer_labels import IDLE, PeerLabels
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

from tests.observability import lacking
from tests.scrape import every_stat, families, scraped

KINDS = (Counter, Gauge, Histogram)


class Page:
    """The metrics of two engines in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        types = {kind: partial(kind, registry=self.registry) for kind in KINDS}
        config = SimpleNamespace(kv_transfer_config=SimpleNamespace())
        self.metrics = LmkvConnector.build_prom_metrics(
            config, types, ["model_name", "engine"], {0: ["m", "0"], 1: ["m", "1"]}
        )

    @property
    def text(self) -> str:
        return generate_latest(self.registry).decode()

    def __call__(self, name: str, engine: str = "0", **labels: str) -> float | None:
        labels = {"model_name": "m", "engine": engine, **labels}
        return self.registry.get_sample_value(f"vllm:lmkv_{name}", labels)


def test_what_is_on_the_list_is_on_the_page_and_nothing_else() -> None:
    page = Page()
    assert {name: kind for name, (kind, _) in families(page.text).items()} == {
        metric.name: metric.kind for metric in INSTANCE
    }
    page.metrics.observe(every_stat(), 1)
    found = scraped(page.text)
    for metric in INSTANCE:
        for name in metric.series:
            ours = {"model_name", "engine", *metric.labels}
            assert found[name] == ours | ({"le"} if name.endswith("_bucket") else set()), name
    help_texts = {name: text for name, (_, text) in families(page.text).items()}
    assert help_texts == {metric.name: metric.text for metric in INSTANCE}


def test_what_dashboards_and_rules_ask_for_is_there() -> None:
    page = Page()
    page.metrics.observe(every_stat())
    assert lacking(scraped(page.text), "vllm:") == []


def test_whatever_may_count_is_there_with_zero() -> None:
    page = Page()
    for engine in ("0", "1"):
        assert page("alarms_total", engine, kind="audit") == 0
        assert page("hit_tokens_total", engine, cause="hit_peer") == 0
        assert page("pulled_chunks_total", engine, result="digest") == 0
        assert page("outbox_overflows_total", engine) == 0
        assert page("pull_seconds_count", engine) == 0


def test_stats_add_up_and_gauges_do_not() -> None:
    stats = LmkvStats({"alarms": {"audit": 1}, "pool_granules": {"free": 9}, "pull_seconds": [1.0]})
    stats.aggregate(
        LmkvStats(
            {
                "alarms": {"audit": 1, "peer": 3},
                "peer_hit_tokens": {"p": {"hit_peer": 8}},
                "pool_granules": {"free": 16, "readable": 48},
                "pull_seconds": [2.0],
                "pull_bytes": 1 << 20,
            }
        )
    )
    stats.aggregate(LmkvStats({"peer_hit_tokens": {"p": {"hit_peer": 1, "hit_mapped": 2}}}))
    page = Page()
    page.metrics.observe(stats.data)
    page.metrics.observe({})
    page.metrics.observe({"of_a_later_release": {"x": 1}, "hit_tokens": {"of it too": 5}})
    assert [page("alarms_total", kind=kind) for kind in ("audit", "peer", "message")] == [2, 3, 0]
    assert page("peer_hit_tokens_total", peer="p", cause="hit_peer") == 9
    assert page("peer_hit_tokens_total", peer="p", cause="hit_mapped") == 2
    assert page("pool_granules", state="free") == 16
    assert (page("pull_seconds_count"), page("pull_seconds_sum")) == (2, 3.0)
    assert page("pull_seconds_bucket", le="1.0") == 1
    assert page("hit_tokens_total", cause="other") == 5
    assert stats.reduce() == {"alarms": 5, "pulled_MiB": 1.0, "pool_percent": 75.0}


def test_a_workers_copies() -> None:
    names = ("gather_seconds", "gather_bytes", "gathers_failed")
    nothing = dict.fromkeys((*names, "load_seconds", "load_bytes", "loads_failed"), 0.0)
    assert copies(nothing) is None and copies({}) is None
    told = copies(nothing | {"gather_bytes": 4096.0, "gather_seconds": 0.5, "loads_failed": 1.0})
    assert told is not None
    page = Page()
    page.metrics.observe(told.aggregate(LmkvStats({"alarms": {}})).data)
    assert page("copied_bytes_total", kind="gather") == 4096
    assert page("copy_seconds_total", kind="gather") == 0.5
    assert page("failed_copies_total", kind="load") == 1


def test_peers_make_up_names_and_neither_break_nor_flood_the_page() -> None:
    page, clock = Page(), ManualClock()
    page.metrics._peers = PeerLabels(clock, most=3)
    odd = 'a"} 1\nvllm:lmkv_alarms_total{kind="\\'
    for name in (odd, "b", "c", *(f"peer{n}" for n in range(100))):
        page.metrics.observe({"peer_hit_tokens": {name: {"hit_peer": 8}}})
    peers = {s.labels["peer"]: s.value for s in _samples(page, "peer_hit_tokens")}
    assert peers == {odd.replace("\n", "?"): 8, "b": 8, "c": 8, "other": 800}
    page.metrics.observe({"peer_pull_bytes": {"b": 5}}, 1)
    clock.advance(IDLE)
    page.metrics.observe({"peer_hit_tokens": {"d": {"hit_peer": 1}}})  # makes room: the oldest goes
    peers = {s.labels["peer"]: s.value for s in _samples(page, "peer_hit_tokens")}
    assert peers == {"b": 8, "c": 8, "d": 1, "other": 800}
    clock.advance(IDLE)
    for name in ("e", "f", "g"):
        page.metrics.observe({"peer_hit_tokens": {name: {"hit_peer": 1}}})
    assert list(_samples(page, "peer_pull_bytes")) == []
    assert len(page.metrics._children) == len(Page().metrics._children) + 4


def test_where_files_are_shared_no_label_is_given_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "/nowhere")
    assert Page().metrics._peers._idle is None


def _samples(page: Page, name: str) -> list[Any]:
    [family] = [f for f in page.registry.collect() if f.name == f"vllm:lmkv_{name}"]
    return [sample for sample in family.samples if sample.name.endswith("_total")]
