"""What each setting does, in a line: for `lmkv config init` and docs/settings.md. What is allowed
and the defaults stand with the fields of config.py."""

from __future__ import annotations

_BOTH = {
    "cluster": "its name; who belongs to another one is refused",
    "keys": "folder of keys (lmkv keys init); without one connections are not encrypted",
    "insecure": "listen beyond loopback without keys or tokens all the same",
    "log": "how lines of the log are written",
}

INSTANCE = {
    **_BOTH,
    "controllers": "addresses of the controllers' state sockets; all are fed alike",
    "instance_id": "its name; empty: host name and 8 digits of the engine's id",
    "serving_url": "where clients reach this server; shown, and given to routers, never guessed",
    "run_dir": "folder of sockets, shared by all instances of a host that are to map each other's "
    "pools; empty: $XDG_RUNTIME_DIR/lmkv, else lmkv-UID in the temporary folder",
    "weights_version": "label of the weights, for those without a fingerprint or changed later on",
    "on_reset": "vLLM reset its caches (sleep, new weights): share with nobody until there is a "
    "weights_version (isolate), or only empty the pool (keep)",
    "pool_gib": "host memory of each rank's pool; auto: a quarter of what is free, divided by them",
    "pool_device": "where the pool is; cuda+host: what was used last is in the GPU's memory too",
    "gpu_pool_gib": "GPU memory of the pool, of each rank; wanted where pool_device has cuda",
    "chunk_tokens": "tokens in a chunk; auto: 256, or the next multiple of vLLM's block sizes",
    "min_tokens": "shorter hits are not loaded",
    "limbo_share": "share of the pool that timed-out READs may hold before the mover is replaced",
    "limbo_seconds": "how long they may hold it",
    "retired_share": "share of the pool that is retired ahead of need",
    "audit_every": "one store in so many is gathered twice and compared",
    "transfer": "how peers' chunks come: auto maps pools of this host and pulls from others",
    "pull": "auto: only what a pull brings sooner than computing would, by measured rates",
    "gpu_path": "how slots cross the link to a GPU; auto: as is measured to be faster",
    "gpu_multiprocessors": "how many of a GPU's multiprocessors copies take at most",
    "gpu_staging_mib": "GPU memory of staged copies, for stores and again for loads",
    "gpu_pulls": "pulls from and into GPU memory by NIXL; auto: where a probe finds them fast",
    "data_interface": "interface of pulls; whoever reaches it must be trusted (docs/security.md)",
    "control_interface": "interface of control sockets where ranks are on several hosts; empty: "
    "unix sockets",
    "data_ports": "ports of pulls",
    "nixl_tls": "transport of UCX for pulls",
    "job_bytes_per_second": "what jobs of operators may move, all together",
    "pin_share": "share of the pool that pins may take",
    "locate_deadline": "how long a request waits for a controller",
    "pull_deadline_min": "how long it waits for a pull, at least: four times the estimate",
    "pull_deadline_max": "and at most",
    "connect_deadline": "how long for a peer's details",
    "load_deadline": "how long for its chunks to be copied into vLLM's blocks",
    "copy_deadline": "how long a step waits for a store of its blocks that has not begun",
}

CONTROLLER = {
    **_BOTH,
    "controller_id": "its name; empty: host name and port",
    "host": "address of the state and query sockets",
    "port": "state socket: the port that instances and commands are told",
    "query_port": "query socket, for lookups of instances; 0: the one after port",
    "web": "a process for REST, metrics and the dashboard beside it",
    "http_host": "address of HTTP",
    "http_port": "port of HTTP; 0: the one after the query port",
    "http_cert": "certificate, PEM: with http_key HTTP is HTTPS",
    "http_key": "its key, PEM",
    "http_rate": "requests a second that one client may make",
    "tokens": "file of tokens (lmkv keys token); empty: the one among the keys, if there is one",
    "require_salt": "refuse lookups of prompts without a cache_salt",
    "compat": "lmcache: serve its controller's paths too",
    "heartbeat": "how often instances say that they live",
    "suspect_after_beats": "missed ones after which an instance is not handed out",
    "dead_after_beats": "and after which what it held is forgotten",
    "warming_least": "how long it waits for instances after its start",
    "warming_most": "and for the syncs of those that came, at most",
    "touched_interval": "how often holders are told what was handed out",
    "syncs_at_once": "full syncs that run at the same time; others wait",
    "sync_timeout": "how long one may be silent",
    "max_instances": "further ones are refused",
    "peers": "other controllers, beside those that instances name",
    "max_frame_bytes": "the longest frame that is taken",
    "queue_messages": "messages of a connection that wait, each way",
}
