"""What lmkv counts, in vLLM's own `/metrics` and log: `vllm:lmkv_*` (docs/metrics are the names).

vLLM carries stats from the scheduler to its API server as plain dictionaries with each step's
output; without requests nothing is updated.
"""

from __future__ import annotations

from typing import Any

from prometheus_client import Counter, Gauge, Histogram
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
    KVConnectorPromMetrics,
    KVConnectorStats,
)

from lmkv.core.causes import ALARMS, HIT_CAUSES, MISS_CAUSES

PULL_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class LmkvStats(KVConnectorStats):
    """data: hit, miss (tokens by cause), alarms (by kind), pull_seconds (list), pull_bytes,
    granules (by state)."""

    data: dict[str, Any]

    def reset(self) -> None:
        self.data = {}

    def is_empty(self) -> bool:
        return not self.data

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        mine, theirs = self.data, other.data
        for kind in ("hit", "miss", "alarms"):
            counts = dict(mine.get(kind, {}))
            for cause, tokens in theirs.get(kind, {}).items():
                counts[cause] = counts.get(cause, 0) + tokens
            mine[kind] = counts
        mine["pull_seconds"] = [*mine.get("pull_seconds", []), *theirs.get("pull_seconds", [])]
        mine["pull_bytes"] = mine.get("pull_bytes", 0) + theirs.get("pull_bytes", 0)
        mine["granules"] = theirs.get("granules") or mine.get("granules", {})
        return self

    def reduce(self) -> dict[str, int | float]:
        """vLLM's log line: tokens by cause, and pulls."""
        found: dict[str, int | float] = {**self.data.get("hit", {}), **self.data.get("miss", {})}
        if self.data.get("alarms"):
            found["alarms"] = sum(self.data["alarms"].values())
        if self.data.get("pull_bytes"):
            found["pulled_MiB"] = round(self.data["pull_bytes"] / 2**20, 1)
        return found


class LmkvPromMetrics(KVConnectorPromMetrics):
    def __init__(
        self, vllm_config: Any, metric_types: Any, labelnames: Any, per_engine_labelvalues: Any
    ) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        counter, gauge, histogram = (metric_types[kind] for kind in (Counter, Gauge, Histogram))
        labels = list(labelnames)
        hit = counter(
            name="vllm:lmkv_hit_tokens",
            documentation="Prompt tokens that were not computed, by source.",
            labelnames=[*labels, "cause"],
        )
        miss = counter(
            name="vllm:lmkv_miss_tokens",
            documentation="Prompt tokens that were computed, by cause.",
            labelnames=[*labels, "cause"],
        )
        alarms = counter(
            name="vllm:lmkv_alarms",
            documentation="What must not happen and did, by kind.",
            labelnames=[*labels, "kind"],
        )
        pull_bytes = counter(
            name="vllm:lmkv_pull_bytes",
            documentation="Bytes pulled from peers.",
            labelnames=labels,
        )
        pull_seconds = histogram(
            name="vllm:lmkv_pull_seconds",
            documentation="Duration of pulls.",
            buckets=PULL_SECONDS,
            labelnames=labels,
        )
        granules = gauge(
            name="vllm:lmkv_pool_granules",
            documentation="Granules of the pool, by state.",
            labelnames=[*labels, "state"],
        )
        self._granules, self._engines = granules, per_engine_labelvalues
        self._tokens = {
            (engine, kind, cause): family.labels(*values, cause)
            for engine, values in per_engine_labelvalues.items()
            for kind, family, causes in (("hit", hit, HIT_CAUSES), ("miss", miss, MISS_CAUSES))
            for cause in causes
        }
        self._alarms = {
            (engine, kind): alarms.labels(*values, kind)
            for engine, values in per_engine_labelvalues.items()
            for kind in ALARMS
        }
        self._pull_bytes = {e: pull_bytes.labels(*v) for e, v in per_engine_labelvalues.items()}
        self._pull_seconds = {e: pull_seconds.labels(*v) for e, v in per_engine_labelvalues.items()}

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        data = transfer_stats_data
        for kind in ("hit", "miss"):
            for cause, tokens in data.get(kind, {}).items():
                self._tokens[engine_idx, kind, cause].inc(tokens)
        for kind, count in data.get("alarms", {}).items():
            self._alarms[engine_idx, kind].inc(count)
        self._pull_bytes[engine_idx].inc(data.get("pull_bytes", 0))
        for seconds in data.get("pull_seconds", []):
            self._pull_seconds[engine_idx].observe(seconds)
        for state, count in data.get("granules", {}).items():
            self._granules.labels(*self._engines[engine_idx], state).set(count)
