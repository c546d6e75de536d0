"""Why tokens hit or missed (DESIGN.md section 8): the labels of every token counter."""

HIT_CAUSES = ("hit_vllm", "hit_pool", "hit_mapped", "hit_peer")
MISS_CAUSES = (
    "cold",  # no holder
    "too_short",  # the tail below a chunk
    "gone",  # overwritten since
    "retired",
    "incompatible",
    "no_controller",
    "mover_down",
    "locate_timeout",
    "pull_timeout",
    "peer_dead",
    "digest",
    "no_room",
    "recompute_cheaper",
    "opted_out",
)
CAUSES = HIT_CAUSES + MISS_CAUSES

# What must not happen and did, counted and logged apart from tokens.
ALARMS = (
    "events",  # a readable chunk that vLLM's KV events cannot name
    "audit",  # a store that differs when it is gathered twice
    "message",  # what came was no message, or its contents contradict themselves
    "peer",  # a peer's announcement is proved untrue
    "pull",  # our own mover refuses what our agent asks
)
