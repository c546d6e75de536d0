"""One or several instances, from vLLM's own metrics: they move with requests, and stand without."""

from __future__ import annotations

from .model import Choice, Dashboard, Panel, Query, Row

OF = 'instance=~"$instance"'


def _rate(metric: str, by: str) -> str:
    return f"sum by ({by}) (rate({metric}{{{OF}}}[$__rate_interval]))"


def _quantile(share: float, metric: str) -> Query:
    buckets = _rate(f"{metric}_bucket", "le")
    return Query(f"histogram_quantile({share}, {buckets})", f"p{share * 100:g}")


def _counter(title: str, description: str, metric: str, *by: str, unit: str = "cps") -> Panel:
    legend = " ".join(f"{{{{{label}}}}}" for label in by)
    query = Query(_rate(metric, ", ".join(by)), legend)
    return Panel(title, description, (query,), unit=unit, stacked=True)


def _over(title: str, description: str, parts: tuple[str, str], by: str) -> Panel:
    """Bytes of one counter over the seconds of another."""
    one, other = (_rate(metric, by) for metric in parts)
    return Panel(title, description, (Query(f"{one} / {other}", f"{{{{{by}}}}}"),), unit="Bps")


def _gauge(title: str, description: str, metric: str) -> Panel:
    return Panel(title, description, (_largest(metric, "{{instance}}"),))


def _largest(metric: str, legend: str) -> Query:
    """Of an instance's engines."""
    return Query(f"max by (instance) ({metric}{{{OF}}})", legend)


HITS = Row(
    "Hits",
    (
        _counter(
            "Prompt tokens not computed, by source",
            "hit_vllm: vLLM's own prefix cache; hit_pool: the own pool; hit_mapped: a peer's pool"
            " on the same host; hit_peer: pulled.",
            "vllm:lmkv_hit_tokens_total",
            "cause",
        ),
        _counter(
            "Prompt tokens computed, by cause",
            "cold: nobody has them. Every other cause is a hit that did not come about.",
            "vllm:lmkv_miss_tokens_total",
            "cause",
        ),
        Panel(
            "Share of prompt tokens not computed",
            "Of all prompt tokens of each instance.",
            (
                Query(
                    f"{_rate('vllm:lmkv_hit_tokens_total', 'instance')}"
                    f" / ({_rate('vllm:lmkv_hit_tokens_total', 'instance')}"
                    f" + {_rate('vllm:lmkv_miss_tokens_total', 'instance')})",
                    "{{instance}}",
                ),
            ),
            unit="percentunit",
        ),
        _counter(
            "Tokens that peers brought",
            "By peer, mapped or pulled. Beyond 32 peers the others are one, `other`.",
            "vllm:lmkv_peer_hit_tokens_total",
            "peer",
            "cause",
        ),
        _counter(
            "Tokens computed that a peer had",
            "By the peer that had announced the first of them, and why it did not come.",
            "vllm:lmkv_peer_miss_tokens_total",
            "peer",
            "cause",
        ),
        _counter(
            "Alarms",
            "What must not happen and did: the log says each once. Zero on a good day.",
            "vllm:lmkv_alarms_total",
            "kind",
        ),
    ),
)

PULLS = Row(
    "Pulls",
    (
        Panel(
            "Duration of a pull",
            "From the mover's first READ to its last; several chunks are one pull.",
            (_quantile(0.5, "vllm:lmkv_pull_seconds"), _quantile(0.99, "vllm:lmkv_pull_seconds")),
            unit="s",
        ),
        Panel(
            "Rate of a pull",
            "Bytes of a pull over its duration. A slow peer is asked twice a minute and no more.",
            (
                _quantile(0.5, "vllm:lmkv_pull_bytes_per_second"),
                _quantile(0.05, "vllm:lmkv_pull_bytes_per_second"),
            ),
            unit="Bps",
        ),
        _counter(
            "Bytes pulled, by peer",
            "What came over the network.",
            "vllm:lmkv_peer_pull_bytes_total",
            "peer",
            unit="Bps",
        ),
        _over(
            "Rate by peer",
            "Bytes of each peer's pulls over the seconds that they took.",
            ("vllm:lmkv_peer_pull_bytes_total", "vllm:lmkv_peer_pull_seconds_total"),
            "peer",
        ),
        _counter(
            "Chunks pulled, by result",
            "gone: overwritten meanwhile, harmless. digest: its bytes were wrong, and not used.",
            "vllm:lmkv_pulled_chunks_total",
            "result",
        ),
        Panel(
            "Pulls under way, peers avoided",
            "Pulls that have not ended, limbo included; peers that failed and are not asked for a"
            " while.",
            (
                _largest("vllm:lmkv_open_pulls", "open {{instance}}"),
                _largest("vllm:lmkv_avoided_peers", "avoided {{instance}}"),
            ),
        ),
        _gauge(
            "Prompt tokens computed a second",
            "As measured while prompts are computed: a pull that would take longer is not made.",
            "vllm:lmkv_prefill_tokens_per_second",
        ),
    ),
)

POOL = Row(
    "Pool",
    (
        Panel(
            "Pool by state",
            "Granules of the pool, sixteen a slot.",
            (Query(f"sum by (state) (vllm:lmkv_pool_granules{{{OF}}})", "{{state}}"),),
            stacked=True,
        ),
        Panel(
            "Age at retirement",
            "How old slots were as they were retired for room: about so many seconds of its"
            " traffic the pool holds.",
            tuple(_quantile(share, "vllm:lmkv_retired_age_seconds") for share in (0.1, 0.5, 0.9)),
            unit="s",
        ),
        Panel(
            "Limbo",
            "Share of the pool that waits for READs which timed out and may still land.",
            (
                Query(
                    f'sum by (instance) (vllm:lmkv_pool_granules{{{OF}, state="limbo"}})'
                    f" / sum by (instance) (vllm:lmkv_pool_granules{{{OF}}})",
                    "{{instance}}",
                ),
            ),
            unit="percentunit",
        ),
        Panel(
            "Announced and retracted",
            "Chunks that others can find since, and find no more.",
            (
                Query(_rate("vllm:lmkv_announced_keys_total", "instance"), "new {{instance}}"),
                Query(_rate("vllm:lmkv_retracted_keys_total", "instance"), "gone {{instance}}"),
            ),
            unit="cps",
        ),
        _counter(
            "Bytes copied",
            "gather: vLLM's blocks to the pool; load: a pool, own or mapped, to vLLM's blocks.",
            "vllm:lmkv_copied_bytes_total",
            "kind",
            unit="Bps",
        ),
        _over(
            "Speed of copies",
            "Bytes over the seconds that the copies took.",
            ("vllm:lmkv_copied_bytes_total", "vllm:lmkv_copy_seconds_total"),
            "kind",
        ),
        _counter(
            "Copies that failed",
            "A chunk that was not stored, or a load that ended early: its rest is computed.",
            "vllm:lmkv_failed_copies_total",
            "kind",
        ),
    ),
)

JOBS = Row(
    "Pins and jobs",
    (
        _gauge("Pins", "Held for operators, and for requests with pin_ttl_s.", "vllm:lmkv_pins"),
        Panel(
            "Pinned",
            "Share of the pool that pins hold; beyond pin_share they are refused.",
            (
                Query(
                    f"sum by (instance) (vllm:lmkv_pinned_granules{{{OF}}})"
                    f" / sum by (instance) (vllm:lmkv_pool_granules{{{OF}}})",
                    "{{instance}}",
                ),
            ),
            unit="percentunit",
        ),
        Panel(
            "Jobs by state",
            "Those that run here or wait for their turn.",
            (Query(f"sum by (state) (vllm:lmkv_jobs{{{OF}}})", "{{state}}"),),
            stacked=True,
        ),
        _counter(
            "Jobs that ended",
            "By how; `lmkv jobs list` has the reasons.",
            "vllm:lmkv_jobs_ended_total",
            "state",
        ),
    ),
)

CONTROLLERS = Row(
    "Controllers, as the instance sees them",
    (
        Panel(
            "Controllers by state",
            "Without one that is ready, or warming, nothing of peers is found.",
            (Query(f"sum by (state) (vllm:lmkv_controllers{{{OF}}})", "{{state}}"),),
            stacked=True,
        ),
        Panel(
            "Heartbeat to answer",
            "The round trip by which the nearest controller is chosen.",
            (
                _quantile(0.5, "vllm:lmkv_heartbeat_seconds"),
                _quantile(0.99, "vllm:lmkv_heartbeat_seconds"),
            ),
            unit="s",
        ),
        _gauge(
            "Outbox",
            "Messages that wait for the slowest controller; at 256 they are dropped, and a full"
            " sync follows.",
            "vllm:lmkv_outbox_messages",
        ),
        _counter(
            "Outboxes dropped",
            "The link, or the controller, takes less than this instance has to say.",
            "vllm:lmkv_outbox_overflows_total",
            "instance",
        ),
        _counter(
            "Full syncs, by reason",
            "new: after a registration; gap: a message was lost; drift: sums differed.",
            "vllm:lmkv_syncs_total",
            "reason",
        ),
        _gauge("Syncs under way", "Full syncs that are being sent.", "vllm:lmkv_open_syncs"),
        Panel(
            "Names",
            "The name by which each instance stands in the labels of others.",
            (Query(f"vllm:lmkv_instance_info{{{OF}}}", "{{instance}} is {{peer}}"),),
            kind="stat",
            names=True,
            width=24,
        ),
    ),
)

INSTANCE = Dashboard(
    "lmkv-instance",
    "lmkv / instance",
    "What one vLLM server hits, misses, pulls and holds, and how its controllers look to it.",
    (HITS, PULLS, POOL, JOBS, CONTROLLERS),
    (Choice("instance", "vllm:lmkv_hit_tokens_total", "instance"),),
)
