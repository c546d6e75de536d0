"""What lmkv counts, in vLLM's own `/metrics` and log: `vllm:lmkv_*`, as core/metrics.py lists them.

vLLM carries stats from the scheduler and the workers to its API server as plain dictionaries with
each step's output; without requests nothing is updated. Their form is agent/stats.py's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

from prometheus_client import Counter, Gauge, Histogram
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
    KVConnectorPromMetrics,
    KVConnectorStats,
)

from lmkv.core.metrics import BY_KEY, COUNTER, GAUGE, INSTANCE, OTHER, Metric
from lmkv.core.peer_labels import IDLE, PeerLabels


class LmkvStats(KVConnectorStats):
    """data: numbers by the keys of `core/metrics.py` and by labels, lists of observed values."""

    data: dict[str, Any]

    def reset(self) -> None:
        self.data = {}

    def is_empty(self) -> bool:
        return not self.data

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        for key, theirs in other.data.items():
            gauge = key in BY_KEY and BY_KEY[key].kind == GAUGE
            mine = self.data.get(key)
            self.data[key] = theirs if gauge or mine is None else _sum(mine, theirs)
        return self

    def reduce(self) -> dict[str, int | float]:
        """vLLM's log line: tokens by cause, pulls, alarms, and how full the pool is."""
        data = self.data
        found = {**data.get("hit_tokens", {}), **data.get("miss_tokens", {})}
        if data.get("alarms"):
            found["alarms"] = sum(data["alarms"].values())
        if data.get("pull_bytes"):
            found["pulled_MiB"] = round(data["pull_bytes"] / 2**20, 1)
        if granules := data.get("pool_granules"):
            held = sum(granules.values()) - granules.get("free", 0)
            found["pool_percent"] = round(100 * held / max(1, sum(granules.values())), 1)
        return found


def _sum(mine: Any, theirs: Any) -> Any:
    if not isinstance(mine, dict):
        return mine + theirs  # numbers, or lists of what was observed
    found = dict(mine)
    for label, value in theirs.items():
        found[label] = _sum(found[label], value) if label in found else value
    return found


def copies(taken: dict[str, float]) -> LmkvStats | None:
    """A worker's `take_stats`; None where it has copied nothing."""
    if not any(taken.values()):
        return None
    keys = {
        "copied_bytes": ("gather_bytes", "load_bytes"),
        "copy_seconds": ("gather_seconds", "load_seconds"),
        "failed_copies": ("gathers_failed", "loads_failed"),
    }
    return LmkvStats(
        {key: {"gather": taken[one], "load": taken[two]} for key, (one, two) in keys.items()}
    )


class LmkvPromMetrics(KVConnectorPromMetrics):
    def __init__(
        self, vllm_config: Any, metric_types: Any, labelnames: Any, per_engine_labelvalues: Any
    ) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._engines = per_engine_labelvalues
        self._families = {
            metric.key: _family(metric, metric_types, list(labelnames)) for metric in INSTANCE
        }
        self._children: dict[tuple[Any, ...], Any] = {}  # by key, engine and values of labels
        # Series cannot be removed from the files that several API servers share, nor from Ray.
        shared = "PROMETHEUS_MULTIPROC_DIR" in os.environ
        removable = not shared and hasattr(self._families["peer_hit_tokens"], "remove")
        self._peers = PeerLabels(time.monotonic, idle=IDLE if removable else None)
        for engine in per_engine_labelvalues:
            for metric in INSTANCE:
                if not metric.labels:
                    self._child(metric.key, engine, ())
                elif len(metric.labels) == 1:
                    for value in metric.values:
                        self._child(metric.key, engine, (value,))

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        for key, counted in transfer_stats_data.items():
            metric = BY_KEY.get(key)
            if metric is None:  # of a worker of another release
                continue
            for names, value in _flat(counted):
                child = self._child(key, engine_idx, self._labels(metric, names))
                if metric.kind == COUNTER:
                    child.inc(value)
                elif metric.kind == GAUGE:
                    child.set(value)
                else:
                    for each in value:
                        child.observe(each)
        for peer in self._peers.take_gone():
            self._forget(peer)

    def _labels(self, metric: Metric, names: tuple[str, ...]) -> tuple[str, ...]:
        """What may stand as values of labels."""
        if metric.values and names[-1] not in metric.values:
            names = (*names[:-1], OTHER)
        if metric.labels[:1] == ("peer",):
            names = (self._peers.of(names[0]), *names[1:])
        return names

    def _child(self, key: str, engine: int, values: tuple[str, ...]) -> Any:
        at = (key, engine, *values)
        if at not in self._children:
            self._children[at] = self._families[key].labels(*self._engines[engine], *values)
        return self._children[at]

    def _forget(self, peer: str) -> None:
        for at in list(self._children):
            key, engine, *values = at
            if BY_KEY[key].labels[:1] == ("peer",) and values[0] == peer:
                del self._children[at]
                self._families[key].remove(*self._engines[engine], *values)


def _family(metric: Metric, metric_types: Any, labelnames: list[str]) -> Any:
    kinds = {COUNTER: Counter, GAUGE: Gauge}
    more: dict[str, Any] = {}
    if metric.kind == GAUGE:
        more["multiprocess_mode"] = "mostrecent"
    elif metric.buckets:
        more["buckets"] = metric.buckets
    return metric_types[kinds.get(metric.kind, Histogram)](
        name=metric.name.removesuffix("_total"),
        documentation=metric.text,
        labelnames=[*labelnames, *metric.labels],
        **more,
    )


def _flat(counted: Any, names: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(names of labels' values, number or list) of what is nested by label."""
    if not isinstance(counted, dict):
        yield names, counted
        return
    for name, value in counted.items():
        yield from _flat(value, (*names, name))
