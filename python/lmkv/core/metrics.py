"""Every metric of lmkv, in one place: `lmkv_*` of a controller, `vllm:lmkv_*` of an instance.

`web/metrics.py` and `connector_metrics.py` make these and no others; docs/metrics.md, dashboards
and alert rules are held against this list by tests. A label is a cause, a state, a kind, or a
`peer`: the name of an instance as lmkv knows it (`instance` is Prometheus's own word, for whom it
scrapes). Never a request, a key or a salt.
"""

from __future__ import annotations

from dataclasses import dataclass

from lmkv.core.causes import ALARMS, HIT_CAUSES, MISS_CAUSES
from lmkv.core.messages import ENDED, OPEN, OPERATIONS, STATES, PullResult

COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"
OTHER = "other"  # the value of a label for all that are not known by name

INSTANCE_STATES = ("live", "syncing", "suspect", "dead", "incompatible")
GRANULE_STATES = ("free", "reserved", "readable", "pinned", "retired", "limbo")
CONTROLLER_STATES = ("ready", "warming", "silent", "refused")  # as an instance sees them
SYNC_REASONS = ("new", "gap", "drift", "asked")
PULL_RESULTS = ("good", *PullResult.CAUSES[1:])
COPIES = ("gather", "load")

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
AGES = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0)  # seconds
RATES = (1e6, 3e6, 1e7, 3e7, 1e8, 3e8, 1e9, 3e9, 1e10, 3e10, 1e11)  # bytes per second


@dataclass(frozen=True)
class Metric:
    """`name` as a scrape has it; `values` of the last label, where they are known beforehand: those
    are there from the start, as an increase from nothing to one is seen by nobody."""

    name: str
    text: str
    labels: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    field: str = ""  # of StatusInfo
    buckets: tuple[float, ...] = ()

    @property
    def kind(self) -> str:
        if self.name.endswith("_total"):
            return COUNTER
        return HISTOGRAM if self.buckets else GAUGE

    @property
    def key(self) -> str:
        """Of an instance's metric, where its numbers are collected (agent/stats.py)."""
        return self.name.removeprefix("vllm:lmkv_").removesuffix("_total")

    @property
    def series(self) -> tuple[str, ...]:
        """The names of its samples."""
        if self.kind == HISTOGRAM:
            return tuple(f"{self.name}_{end}" for end in ("bucket", "count", "sum"))
        return (self.name,)


CONTROLLER = (
    Metric(
        "lmkv_controller_info", "The controller, always 1.", ("cluster", "controller", "version")
    ),
    Metric("lmkv_ready", "0 while the controller is warming."),
    Metric("lmkv_uptime_seconds", "Seconds since the controller began.", field="uptime"),
    Metric("lmkv_instances", "Instances by state.", ("state",), INSTANCE_STATES, "states"),
    Metric("lmkv_directory_keys", "Chunks in the directory.", field="keys"),
    Metric("lmkv_directory_bytes", "Memory of the directory.", field="directory_bytes"),
    Metric("lmkv_announced_keys_total", "Keys announced as they came.", field="announced_keys"),
    Metric(
        "lmkv_retracted_keys_total",
        "Keys retracted, mostly as their slots were reused.",
        field="retracted_keys",
    ),
    Metric("lmkv_locates_total", "Locates answered.", field="locates"),
    Metric("lmkv_locate_keys_total", "Keys asked for in locates.", field="locate_keys"),
    Metric("lmkv_located_keys_total", "Keys found in locates.", field="located_keys"),
    Metric(
        "lmkv_hit_tokens_total",
        "Prompt tokens that were not computed, by source, as the instances count them.",
        ("cause",),
        HIT_CAUSES,
        "hit_tokens",
    ),
    Metric(
        "lmkv_miss_tokens_total",
        "Prompt tokens that were computed, by cause, as the instances count them.",
        ("cause",),
        MISS_CAUSES,
        "miss_tokens",
    ),
    Metric(
        "lmkv_pool_granules",
        "Granules of all pools (16 a slot), by state.",
        ("state",),
        GRANULE_STATES,
        "pool_granules",
    ),
    Metric(
        "lmkv_retired_age_seconds",
        "Age of slots as they were retired for room, in all pools: what their traffic lasts.",
        field="retired_ages",
        buckets=AGES,
    ),
    Metric("lmkv_heartbeats_total", "Heartbeats applied.", field="heartbeats"),
    Metric("lmkv_lag_seconds", "Age of the oldest heartbeat of any that is not dead.", field="lag"),
    Metric("lmkv_drifts_total", "Heartbeats whose sums differed.", field="drifts"),
    Metric("lmkv_resyncs_total", "Full syncs asked for.", field="resyncs"),
    Metric("lmkv_syncs", "Full syncs that run or wait.", field="syncs"),
    Metric("lmkv_syncs_waiting", "Full syncs that wait for their turn.", field="syncs_waiting"),
    Metric("lmkv_jobs", "Jobs that are remembered, by state.", ("state",), STATES, "jobs"),
    Metric("lmkv_jobs_ended_total", "Jobs that ended.", ("state",), ENDED, "jobs_ended"),
    Metric(
        "lmkv_job_bytes_total",
        "Bytes that jobs pulled, wrote or freed, in all ranks.",
        ("operation",),
        OPERATIONS,
        "job_bytes",
    ),
    Metric("lmkv_pins", "Pins that instances hold.", field="pins"),
    Metric("lmkv_bad_messages_total", "Messages that were none of lmkv's.", field="bad_messages"),
    Metric("lmkv_instance_keys", "Chunks of an instance; of the 64 that have most.", ("peer",)),
    Metric(
        "lmkv_instance_heartbeat_age_seconds",
        "Seconds since an instance was heard; of the same 64.",
        ("peer",),
    ),
    Metric(
        "lmkv_instance_pool_granules",
        "Granules of an instance's pool, by state; of the same 64.",
        ("peer", "state"),
        GRANULE_STATES,
    ),
)

INSTANCE = (
    Metric(
        "vllm:lmkv_instance_info",
        "The name that other instances and controllers know it by, always 1.",
        ("peer",),
    ),
    Metric(
        "vllm:lmkv_hit_tokens_total",
        "Prompt tokens that were not computed, by source.",
        ("cause",),
        HIT_CAUSES,
    ),
    Metric(
        "vllm:lmkv_miss_tokens_total",
        "Prompt tokens that were computed, by cause.",
        ("cause",),
        MISS_CAUSES,
    ),
    Metric(
        "vllm:lmkv_peer_hit_tokens_total",
        "Prompt tokens that came from a peer, by which and how.",
        ("peer", "cause"),
    ),
    Metric(
        "vllm:lmkv_peer_miss_tokens_total",
        "Prompt tokens that were computed although a peer had announced the first of them.",
        ("peer", "cause"),
    ),
    Metric("vllm:lmkv_alarms_total", "What must not happen and did, by kind.", ("kind",), ALARMS),
    Metric("vllm:lmkv_pull_seconds", "Duration of pulls.", buckets=SECONDS),
    Metric("vllm:lmkv_pull_bytes_per_second", "Rate of each pull.", buckets=RATES),
    Metric("vllm:lmkv_pull_bytes_total", "Bytes pulled from peers."),
    Metric(
        "vllm:lmkv_pulled_chunks_total",
        "Chunks of pulls that have ended, by result.",
        ("result",),
        PULL_RESULTS,
    ),
    Metric("vllm:lmkv_peer_pull_bytes_total", "Bytes pulled, by peer.", ("peer",)),
    Metric(
        "vllm:lmkv_peer_pull_seconds_total", "Seconds that those pulls took, by peer.", ("peer",)
    ),
    Metric("vllm:lmkv_open_pulls", "Pulls that have not ended, limbo included."),
    Metric("vllm:lmkv_avoided_peers", "Peers that are not asked for a while: they failed."),
    Metric(
        "vllm:lmkv_prefill_tokens_per_second",
        "Rate at which prompts are computed, as pulls are weighed against it; 0: not measured.",
    ),
    Metric(
        "vllm:lmkv_pool_granules",
        "Granules of the pool (16 a slot), by state.",
        ("state",),
        GRANULE_STATES,
    ),
    Metric("vllm:lmkv_pins", "Pins of operators and requests that are held."),
    Metric(
        "vllm:lmkv_pinned_granules",
        "Granules of slots that those pins hold, each once; pin_share limits them.",
    ),
    Metric("vllm:lmkv_jobs", "Jobs of operators that have not ended, by state.", ("state",), OPEN),
    Metric("vllm:lmkv_jobs_ended_total", "Jobs of operators that ended.", ("state",), ENDED),
    Metric(
        "vllm:lmkv_retired_age_seconds",
        "Age of slots as they were retired for room.",
        buckets=AGES,
    ),
    Metric("vllm:lmkv_announced_keys_total", "Chunks that others can find since."),
    Metric("vllm:lmkv_retracted_keys_total", "Chunks that others find no more."),
    Metric(
        "vllm:lmkv_copied_bytes_total",
        "Bytes copied from vLLM's blocks to the pool (gather) and to the blocks (load).",
        ("kind",),
        COPIES,
    ),
    Metric("vllm:lmkv_copy_seconds_total", "Seconds that those copies took.", ("kind",), COPIES),
    Metric("vllm:lmkv_failed_copies_total", "Copies that did not end well.", ("kind",), COPIES),
    Metric(
        "vllm:lmkv_controllers",
        "Controllers of this instance, by what it hears of them.",
        ("state",),
        CONTROLLER_STATES,
    ),
    Metric(
        "vllm:lmkv_heartbeat_seconds", "From a heartbeat to a controller's answer.", buckets=SECONDS
    ),
    Metric(
        "vllm:lmkv_outbox_messages",
        "Messages that wait for a controller, of the one for which most do.",
    ),
    Metric(
        "vllm:lmkv_outbox_overflows_total",
        "Outboxes that were full and dropped: a full sync follows.",
    ),
    Metric("vllm:lmkv_open_syncs", "Full syncs that are being sent."),
    Metric(
        "vllm:lmkv_syncs_total",
        "Full syncs that controllers asked for, by reason.",
        ("reason",),
        SYNC_REASONS,
    ),
)

BY_KEY = {metric.key: metric for metric in INSTANCE}
