"""Prometheus's page: what the controller counts, as `lmkv_*`, and its own process's figures.

Labels are causes, states, and the controller's own name: never a request, a key, a salt, and no
word that an instance has made up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from lmkv.core.causes import CAUSES
from lmkv.core.messages import StatusInfo

INSTANCE_STATES = ("live", "syncing", "suspect", "dead", "incompatible")
GRANULE_STATES = ("free", "reserved", "readable", "admitted", "pinned", "retired", "limbo")
OTHER = "other"

GAUGES = {  # a metric: the field of StatusInfo, and what it is
    "lmkv_uptime_seconds": ("uptime", "Seconds since the controller began."),
    "lmkv_directory_keys": ("keys", "Chunks in the directory."),
    "lmkv_directory_bytes": ("directory_bytes", "Memory of the directory."),
    "lmkv_syncs": ("syncs", "Full syncs that run or wait."),
    "lmkv_lag_seconds": ("lag", "Age of the oldest heartbeat of those that are not dead."),
}
COUNTERS = {
    "lmkv_locates": ("locates", "Locates answered."),
    "lmkv_locate_keys": ("locate_keys", "Keys asked for in locates."),
    "lmkv_located_keys": ("located_keys", "Keys found in locates."),
    "lmkv_drifts": ("drifts", "Heartbeats whose sums were not the directory's."),
    "lmkv_resyncs": ("resyncs", "Full syncs asked for."),
    "lmkv_bad_messages": ("bad_messages", "Messages that were none of lmkv's."),
}


class StatusCollector:
    """One status, to be scraped once."""

    def __init__(self, info: StatusInfo) -> None:
        self._info = info

    def collect(self) -> Iterator[Metric]:
        info = self._info
        about = GaugeMetricFamily(
            "lmkv_controller_info",
            "The controller, always 1.",
            labels=["cluster", "controller", "version"],
        )
        about.add_metric([info.cluster, info.controller, info.version], 1)
        yield about
        yield GaugeMetricFamily(
            "lmkv_ready", "0 while the controller is warming.", value=info.state == "ready"
        )
        for name, (field, text) in GAUGES.items():
            yield GaugeMetricFamily(name, text, value=getattr(info, field))
        for name, (field, text) in COUNTERS.items():
            yield CounterMetricFamily(name, text, value=getattr(info, field))
        instances = GaugeMetricFamily("lmkv_instances", "Instances by state.", labels=["state"])
        granules = GaugeMetricFamily("lmkv_pool_granules", "Pools' granules.", labels=["state"])
        hits = CounterMetricFamily("lmkv_hit_tokens", "Tokens that hit.", labels=["cause"])
        misses = CounterMetricFamily("lmkv_miss_tokens", "Tokens that missed.", labels=["cause"])
        for family, values, known in (
            (instances, info.states, INSTANCE_STATES),
            (granules, info.pool_granules, GRANULE_STATES),
            (hits, info.hit_tokens, CAUSES),
            (misses, info.miss_tokens, CAUSES),
        ):
            for label, value in _known(values, known):
                family.add_metric([label], value)
            yield family


def _known(values: Mapping[str, int], known: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Those of `known` that are there, and all others in one sum."""
    rest = dict(values)
    for label in known:
        if label in rest:
            yield label, rest.pop(label)
    if rest:
        yield OTHER, sum(rest.values())


def page(info: StatusInfo, controller_pid: int) -> bytes:
    """The text that Prometheus reads."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(StatusCollector(info))
    ProcessCollector("lmkv_controller", lambda: controller_pid, registry=registry)
    ProcessCollector("lmkv_web", registry=registry)
    return generate_latest(registry)
