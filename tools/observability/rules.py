"""When somebody should look. By controllers' figures where there are any: they are fresh."""

from __future__ import annotations

from .model import Rule

PEERS = 'cause=~"hit_mapped|hit_peer"'
BY = "job, instance"

RULES = (
    Rule(
        "LmkvNoController",
        "absent(lmkv_ready)",
        "2m",
        "critical",
        "No lmkv controller is scraped",
        "Either none runs, or Prometheus does not reach any web process (port 7552). Instances"
        " serve on with what is in their own pools. Look at `systemctl status lmkv-controller`, and"
        " at the targets of Prometheus.",
        "failures.md",
    ),
    Rule(
        "LmkvControllerDown",
        "max_over_time(lmkv_ready[1h]) unless lmkv_ready",
        "2m",
        "warning",
        "The controller {{ $labels.instance }} was there within the hour and is gone",
        "Its web process answers 503 while the controller does not, and nothing when both are gone."
        " Instances ask the others; if there are none, see LmkvNoController.",
        "failures.md",
    ),
    Rule(
        "LmkvNoControllerReady",
        "max(lmkv_ready) == 0",
        "2m",
        "critical",
        "All lmkv controllers are warming for two minutes",
        "Warming ends after ten seconds at the latest unless `warming_most` says otherwise. A"
        " controller that starts again and again is always warming: look at its log and at"
        " lmkv_uptime_seconds.",
        "failures.md",
    ),
    Rule(
        "LmkvNoPeerHits",
        f"sum by ({BY}) (increase(lmkv_hit_tokens_total{{{PEERS}}}[15m])) == 0"
        f" and on ({BY}) sum by ({BY}) (increase(lmkv_located_keys_total[15m])) > 0",
        "5m",
        "warning",
        "Peers hold what is asked, and no token came from any in 15 minutes",
        "Look at the panel of tokens computed by cause: mover_down (NIXL is missing or its port is"
        " closed), incompatible (see `lmkv status`), recompute_cheaper (slow links, min_tokens, or"
        " pull: never), pull_timeout and peer_dead (the network between instances).",
        "read-path.md",
    ),
    Rule(
        "LmkvDigestMismatch",
        f'sum by ({BY}) (increase(vllm:lmkv_pulled_chunks_total{{result="digest"}}[15m])) > 0'
        f' or sum by ({BY}) (increase(vllm:lmkv_miss_tokens_total{{cause="digest"}}[15m])) > 0',
        "0m",
        "warning",
        "{{ $labels.instance }} was given bytes that do not have their digest",
        "They were refused, and the tokens computed. Find the peer by"
        " vllm:lmkv_peer_miss_tokens_total of cause digest; memory that fails, or a transport that"
        " does, is behind it. Take that instance out of service first.",
        "slots.md",
    ),
    Rule(
        "LmkvAlarms",
        f"sum by ({BY}, kind) (increase(vllm:lmkv_alarms_total[15m])) > 0",
        "0m",
        "warning",
        "{{ $labels.instance }} has an alarm: {{ $labels.kind }}",
        "Its log has the sentence (`lmkv: {{ $labels.kind }}: ...`), each once. audit: a store that"
        " differs when it is gathered twice, so turn off sharing there and report it; message, peer"
        " and pull: a process of another release, or one that lies.",
        "failures.md",
    ),
    Rule(
        "LmkvLimbo",
        'max by (peer) (lmkv_instance_pool_granules{state="limbo"})'
        " / sum by (peer) (max by (peer, state) (lmkv_instance_pool_granules)) > 0.05",
        "2m",
        "warning",
        "{{ $labels.peer }}: more than 5 % of its pool waits for READs that timed out",
        "The mover replaces itself past limbo_share or limbo_seconds, which ends them. If this"
        " stays or comes again, the network to some peer loses READs: see who, in the panel of"
        " tokens computed that a peer had (pull_timeout).",
        "failures.md",
    ),
    Rule(
        "LmkvDrift",
        "increase(lmkv_drifts_total[15m]) > 0",
        "0m",
        "warning",
        "What an instance holds was not what the controller {{ $labels.instance }} knew",
        "A full sync has mended it. It must not happen: `lmkv status` and the events of the"
        " controller (`/v1/events`) name the instance; please report it with both logs.",
        "wire.md",
    ),
    Rule(
        "LmkvInstancesSilent",
        'max by (state) (max_over_time(lmkv_instances{state=~"suspect|dead"}[5m])) > 0',
        "5m",
        "warning",
        "Instances are {{ $labels.state }}",
        "`lmkv status` names them. Dead ones are listed for ten minutes after they were heard last;"
        " one that is suspect now and then has a busy host or a lossy link. An instance that was"
        " stopped in order leaves, and is not dead.",
        "failures.md",
    ),
    Rule(
        "LmkvInstancesIncompatible",
        'max(lmkv_instances{state="incompatible"}) > 0',
        "10m",
        "warning",
        "Instances of one model do not share with each other",
        "`lmkv status` names the field that differs: another dtype, block size, chunk size, weights"
        " or release. Start them alike, or give them a cluster of their own.",
        "keys.md",
    ),
    Rule(
        "LmkvJobsFailed",
        'max(increase(lmkv_jobs_ended_total{state="failed"}[15m])) > 0',
        "0m",
        "warning",
        "Jobs of operators failed",
        "`lmkv jobs list --state failed` has each with its reason. What failed has given back its"
        " pins and slots; `lmkv jobs retry` begins it anew.",
        "operate.md",
    ),
    Rule(
        "LmkvSyncBacklog",
        "lmkv_syncs_waiting > 0",
        "10m",
        "warning",
        "Full syncs wait at the controller {{ $labels.instance }}",
        "Instances that wait are not handed out. Look for one that syncs again and again"
        " (vllm:lmkv_syncs_total by reason), then raise `syncs_at_once`.",
        "wire.md",
    ),
    Rule(
        "LmkvOutboxOverflows",
        f"sum by ({BY}) (increase(vllm:lmkv_outbox_overflows_total[15m])) > 0",
        "0m",
        "warning",
        "{{ $labels.instance }} has more to say than a controller takes",
        "Its outbox was dropped, and a full sync follows. The controller's process is busy (panel"
        " CPU), the link is slow, or the pool churns (LmkvPoolChurn).",
        "write-path.md",
    ),
    Rule(
        "LmkvPoolChurn",
        "rate(lmkv_retracted_keys_total[15m]) * 600 > lmkv_directory_keys"
        " and lmkv_directory_keys > 1000",
        "15m",
        "warning",
        "Chunks live less than ten minutes in the pools",
        "What is asked again later than that is computed again. Give the pools more memory"
        " (`pool_gib`), or send requests with the same beginning to fewer instances.",
        "write-path.md",
    ),
    Rule(
        "LmkvBadMessages",
        "increase(lmkv_bad_messages_total[15m]) > 0",
        "0m",
        "warning",
        "Something talks to the controller {{ $labels.instance }} that is not lmkv of this release",
        "An instance of a release that does not fit, or a scanner. `lmkv status` shows the versions"
        " of those that are registered.",
        "wire.md",
    ),
)
