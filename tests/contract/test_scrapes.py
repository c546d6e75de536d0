"""What dashboards and rules ask of a controller is what a real one's page has."""

from __future__ import annotations

from lmkv.core.messages import Heartbeat, HeartbeatOk
from lmkv.core.metrics import CONTROLLER

from tests.contract.test_controller import Instance
from tests.observability import lacking
from tests.scrape import families, scraped
from tests.stub_instance import StubInstance, keys
from tests.web import Web, leave, store


def test_every_metric_and_label_is_in_a_live_scrape(web: Web) -> None:
    with Instance(StubInstance("a", 1), web) as one:
        one.join()
        store(one, keys(1, 2))
        stub = one.stub
        pool = stub.table.granules()
        one.tell((Heartbeat(1, stub.number(), *stub.table.sums(), pool_granules=pool), ()))
        one.take(HeartbeatOk)
        text = web.ask("/metrics").text
        leave(one)
    assert lacking(scraped(text), "lmkv_") == []
    listed = {metric.name: (metric.kind, metric.text) for metric in CONTROLLER}
    assert {n: about for n, about in families(text).items() if "_process_" not in n} == listed
    live = scraped(text)
    for metric in CONTROLLER:
        for name in metric.series:
            more = {"le"} if name.endswith("_bucket") else set()
            assert live[name] == {*metric.labels} | more, name


def test_what_is_not_there_is_found() -> None:
    """The check itself: against a page without anything, everything lacks."""
    assert "lmkv-fleet: Locates: lmkv_locates_total" in lacking({}, "lmkv_")
    assert "LmkvLimbo: lmkv_instance_pool_granules{state}" in lacking(
        {"lmkv_instance_pool_granules": {"peer"}}, "lmkv_"
    )
