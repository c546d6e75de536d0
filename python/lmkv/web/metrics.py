"""Prometheus's page: what the controller counts, as `lmkv_*`, and its own process's figures.

The metrics are `core/metrics.py`'s. Labels are causes, states, the controller's own name, and the
names of few instances, which the registry has found printable; what this release does not know of
causes and states is one, `other`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.core import Metric as Family

from lmkv.core.messages import InstanceState, StatusInfo
from lmkv.core.metrics import CONTROLLER, COUNTER, HISTOGRAM, OTHER, Metric

INSTANCES = 64  # that have series of their own
Samples = Iterator[tuple[tuple[str, ...], float]]  # values of labels, and the sample's


class StatusCollector:
    """One status, to be scraped once."""

    def __init__(self, info: StatusInfo) -> None:
        self._info = info

    def collect(self) -> Iterator[Family]:
        for metric in CONTROLLER:
            if metric.kind == HISTOGRAM:
                yield _histogram(self._info, metric)
                continue
            kind = CounterMetricFamily if metric.kind == COUNTER else GaugeMetricFamily
            family = kind(metric.name, metric.text, labels=metric.labels)
            for labels, value in self._samples(metric):
                family.add_metric(labels, value)
            yield family

    def _samples(self, metric: Metric) -> Samples:
        info = self._info
        if metric.name == "lmkv_controller_info":
            yield (info.cluster, info.controller, info.version), 1
        elif metric.name == "lmkv_ready":
            yield (), info.state == "ready"
        elif metric.labels[:1] == ("peer",):
            for instance in info.instances:
                for labels, value in _of(instance, metric):
                    yield (instance.instance, *labels), value
        elif metric.labels:
            yield from _known(getattr(info, metric.field), metric)
        else:
            yield (), getattr(info, metric.field)


def _histogram(info: StatusInfo, metric: Metric) -> Family:
    counts = [*info.retired_ages, *[0] * (len(metric.buckets) + 1)][: len(metric.buckets) + 1]
    bounds = [*map(str, metric.buckets), "+Inf"]
    family = HistogramMetricFamily(metric.name, metric.text)
    family.add_metric((), list(zip(bounds, accumulate(counts))), info.retired_seconds)
    return family


def _of(instance: InstanceState, metric: Metric) -> Samples:
    if metric.name == "lmkv_instance_keys":
        yield (), instance.keys
    elif metric.name == "lmkv_instance_heartbeat_age_seconds":
        yield (), instance.heartbeat_age
    elif metric.name == "lmkv_instance_pool_granules":
        yield from _known(instance.pool_granules, metric)


def _known(values: Mapping[str, float], metric: Metric) -> Samples:
    """Every value of the label that is known, and all others in one sum."""
    for label in metric.values:
        yield (label,), values.get(label, 0)
    rest = [value for label, value in values.items() if label not in metric.values]
    if rest:
        yield (OTHER,), sum(rest)


def page(info: StatusInfo, controller_pid: int) -> bytes:
    """The text that Prometheus reads."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(StatusCollector(info))
    ProcessCollector("lmkv_controller", lambda: controller_pid, registry=registry)
    ProcessCollector("lmkv_web", registry=registry)
    return generate_latest(registry)
