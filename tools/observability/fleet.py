"""The fleet, from its controllers' metrics: always fresh, also while no instance has a request.

Each of several controllers counts what all instances tell, so figures are the largest of theirs.
"""

from __future__ import annotations

from .model import Dashboard, Panel, Query, Row


def _rate(metric: str, by: str) -> str:
    """A second, of a counter that each controller has for all; `by` its labels."""
    return f"max by ({by}) (rate({metric}[$__rate_interval]))"


def _each(title: str, description: str, expr: str, unit: str = "short") -> Panel:
    """A line for each controller."""
    return Panel(title, description, (Query(expr, "{{instance}}"),), unit=unit)


NOT_LIVE = 'state=~"suspect|dead|incompatible"'
PEERS = 'cause=~"hit_mapped|hit_peer"'
TOKENS = (
    "(sum(max by (cause) (rate(lmkv_hit_tokens_total[$__rate_interval])))"
    " + sum(max by (cause) (rate(lmkv_miss_tokens_total[$__rate_interval]))))"
)
POOLS = "sum(max by (state) (lmkv_pool_granules))"
POOL_OF = "sum by (peer) (max by (peer, state) (lmkv_instance_pool_granules))"

HEALTH = Row(
    "Is it well",
    (
        Panel(
            "Controllers ready",
            "Controllers that answer and know who holds what. Below one nothing is shared.",
            (Query("sum(lmkv_ready)", "ready"),),
            kind="stat",
            width=4,
            bad_below=1,
        ),
        Panel(
            "Instances live",
            "Instances that are registered, synced and heard each second.",
            (Query('max(lmkv_instances{state="live"})', "live"),),
            kind="stat",
            width=4,
        ),
        Panel(
            "Instances not live",
            "Suspect, dead or incompatible instances. Dead ones are listed for ten minutes.",
            (
                Query(
                    'sum(max by (state) (lmkv_instances{state=~"suspect|dead|incompatible"}))',
                    "not live",
                ),
            ),
            kind="stat",
            width=4,
            amber=1,
        ),
        Panel(
            "Prompt tokens from peers",
            "Share of all prompt tokens that another instance had computed.",
            (Query(f"sum({_rate(f'lmkv_hit_tokens_total{{{PEERS}}}', 'cause')}) / {TOKENS}"),),
            unit="percentunit",
            kind="stat",
            width=4,
        ),
        Panel(
            "Digest mismatches, 1 h",
            "Prompt tokens computed since what was loaded did not have the bytes that its digest"
            " says. Nothing wrong was used; zero on a good day.",
            (Query('max(increase(lmkv_miss_tokens_total{cause="digest"}[1h]))', "tokens"),),
            kind="stat",
            width=4,
            red=1,
        ),
        Panel(
            "Limbo",
            "Share of all pools that waits for READs which timed out and may still land.",
            (Query(f'max(lmkv_pool_granules{{state="limbo"}}) / {POOLS}', "limbo"),),
            unit="percentunit",
            kind="stat",
            width=4,
            amber=0.01,
            red=0.05,
        ),
    ),
)

HITS = Row(
    "Hits",
    (
        Panel(
            "Prompt tokens not computed, by source",
            "hit_vllm: vLLM's own prefix cache; hit_pool: the instance's pool; hit_mapped: a peer's"
            " pool on the same host; hit_peer: pulled.",
            (Query(_rate("lmkv_hit_tokens_total", "cause"), "{{cause}}"),),
            unit="cps",
            stacked=True,
        ),
        Panel(
            "Prompt tokens computed, by cause",
            "cold: nobody has them. Every other cause is a hit that did not come about;"
            " docs/read-path.md says where each is decided.",
            (Query(_rate("lmkv_miss_tokens_total", "cause"), "{{cause}}"),),
            unit="cps",
            stacked=True,
        ),
        _each(
            "Chunks found of those asked for",
            "Share of the keys in locates that some peer holds: what sharing could bring.",
            "rate(lmkv_located_keys_total[$__rate_interval])"
            " / rate(lmkv_locate_keys_total[$__rate_interval])",
            "percentunit",
        ),
    ),
)

POOL = Row(
    "Pools",
    (
        Panel(
            "Pools by state",
            "Share of all pools' granules. Full of readable ones is healthy: what is used least"
            " makes room.",
            (Query(f"max by (state) (lmkv_pool_granules) / scalar({POOLS})", "{{state}}"),),
            unit="percentunit",
            stacked=True,
        ),
        Panel(
            "Occupancy by instance",
            "Share of each pool that is not free, of the 64 instances with the most chunks.",
            (
                Query(
                    f'1 - max by (peer) (lmkv_instance_pool_granules{{state="free"}}) / {POOL_OF}',
                    "{{peer}}",
                ),
            ),
            unit="percentunit",
        ),
        Panel(
            "Age at retirement",
            "How old slots were as they were retired for room, in all pools: what a pool holds is"
            " about so many seconds of its traffic. Short ages and misses call for larger pools.",
            tuple(
                Query(
                    f"histogram_quantile({share},"
                    " max by (le) (rate(lmkv_retired_age_seconds_bucket[$__rate_interval])))",
                    f"p{share * 100:g}",
                )
                for share in (0.1, 0.5, 0.9)
            ),
            unit="s",
        ),
        Panel(
            "Limbo by instance",
            "Share of each pool that waits for READs which timed out. A mover replaces itself when"
            " it keeps more than limbo_share (6.25 %).",
            (
                Query(
                    f'max by (peer) (lmkv_instance_pool_granules{{state="limbo"}}) / {POOL_OF}',
                    "{{peer}}",
                ),
            ),
            unit="percentunit",
        ),
        Panel(
            "Chunks by instance",
            "Chunks that each instance has announced, of the 64 with the most.",
            (Query("max by (peer) (lmkv_instance_keys)", "{{peer}}"),),
        ),
        Panel(
            "Announced and retracted",
            "Chunks that came and went. Both being high means that pools are too small for what is"
            " asked again.",
            (
                Query("max(rate(lmkv_announced_keys_total[$__rate_interval]))", "announced"),
                Query("max(rate(lmkv_retracted_keys_total[$__rate_interval]))", "retracted"),
            ),
            unit="cps",
        ),
        _each(
            "How long a chunk lives",
            "The directory's chunks over the rate at which they go: below ten minutes pools churn.",
            "lmkv_directory_keys / rate(lmkv_retracted_keys_total[$__rate_interval])",
            "s",
        ),
    ),
)

JOBS = Row(
    "Jobs",
    (
        Panel(
            "Jobs that run and wait",
            "Copies, moves, pins and the like that operators asked for and that have not ended.",
            (Query('max by (state) (lmkv_jobs{state=~"queued|running"})', "{{state}}"),),
            stacked=True,
        ),
        Panel(
            "Jobs that ended",
            "By how they ended. `lmkv jobs list --state failed` has the reasons.",
            (
                Query(
                    "max by (state) (increase(lmkv_jobs_ended_total[$__rate_interval]))",
                    "{{state}}",
                ),
            ),
            stacked=True,
        ),
        Panel(
            "Bytes of jobs",
            "What jobs pull, write and free, in all ranks; copies and moves keep to"
            " job_bytes_per_second of each instance.",
            (Query(_rate("lmkv_job_bytes_total", "operation"), "{{operation}}"),),
            unit="Bps",
            stacked=True,
        ),
        Panel(
            "Pins",
            "Pins that instances hold. What is pinned is not retired for room: see the pools' state"
            " pinned.",
            (Query("max(lmkv_pins)", "pins"),),
        ),
    ),
)

CONTROLLERS = Row(
    "Controllers",
    (
        Panel(
            "Instances by state",
            "As each controller sees them.",
            (Query("max by (state) (lmkv_instances)", "{{state}}"),),
            stacked=True,
        ),
        _each(
            "Heartbeats",
            "One a second from each instance.",
            "rate(lmkv_heartbeats_total[$__rate_interval])",
            "cps",
        ),
        Panel(
            "Age of the last heartbeat, by instance",
            "Suspect after 3 s, dead after 5 s, unless the controller's settings say otherwise.",
            (Query("min by (peer) (lmkv_instance_heartbeat_age_seconds)", "{{peer}}"),),
            unit="s",
        ),
        Panel(
            "Drifts and full syncs",
            "Drifts: heartbeats whose sums were not the directory's. Each is mended by a full sync;"
            " gaps in the stream are, too.",
            (
                Query("increase(lmkv_drifts_total[$__rate_interval])", "drifts {{instance}}"),
                Query("increase(lmkv_resyncs_total[$__rate_interval])", "syncs {{instance}}"),
            ),
        ),
        Panel(
            "Syncs that run and wait",
            "A few run at once; a queue that stays means instances that are not handed out.",
            (
                Query("lmkv_syncs - lmkv_syncs_waiting", "running {{instance}}"),
                Query("lmkv_syncs_waiting", "waiting {{instance}}"),
            ),
        ),
        _each(
            "Locates",
            "Questions who holds a prompt's chunks, answered by each controller.",
            "rate(lmkv_locates_total[$__rate_interval])",
            "cps",
        ),
        _each("Directory", "Chunks that each controller knows a holder of.", "lmkv_directory_keys"),
        Panel(
            "Memory",
            "The directory, and the whole controller process.",
            (
                Query("lmkv_directory_bytes", "directory {{instance}}"),
                Query("lmkv_controller_process_resident_memory_bytes", "process {{instance}}"),
            ),
            unit="bytes",
        ),
        _each(
            "CPU",
            "Cores that each controller process keeps busy.",
            "rate(lmkv_controller_process_cpu_seconds_total[$__rate_interval])",
        ),
        _each(
            "Bad messages",
            "What came to a controller and was none of lmkv's, or contradicted itself.",
            "increase(lmkv_bad_messages_total[$__rate_interval])",
        ),
    ),
)

FLEET = Dashboard(
    "lmkv-fleet",
    "lmkv / fleet",
    "Who shares what, and whether the controllers and all instances are well.",
    (HEALTH, HITS, POOL, JOBS, CONTROLLERS),
)
