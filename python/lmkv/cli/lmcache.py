"""LMCache's settings as lmkv's: `imported(body)` says of each key what becomes of it.

The keys are those of LMCache 0.5.6 (its `lmcache.v1.config`). A verdict is `kept` (as which
setting), `not needed` (lmkv does it anyway, or needs no such thing), `refused` (lmkv cannot do what
the key asks for) or `unknown`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from lmkv.core.config import InstanceConfig, problems

KEPT, NOT_NEEDED, REFUSED, UNKNOWN = "kept", "not needed", "refused", "unknown"
PORT = 7550  # of lmkv's controllers
ALIASES = {
    "controller_url": "controller_pull_url",
    "enable_xpyd": "enable_pd",
    "lmcache_worker_port": "lmcache_worker_ports",
}


class Verdict(NamedTuple):
    key: str
    verdict: str
    text: str
    setting: str = ""
    value: Any = None


class Wrong(ValueError):
    """A value that LMCache would not take either; the text is what is allowed."""


def imported(body: Mapping[str, Any]) -> list[Verdict]:
    return [_checked(_verdict(str(key), value)) for key, value in body.items()]


def settings(verdicts: list[Verdict]) -> dict[str, Any]:
    return {each.setting: each.value for each in verdicts if each.verdict == KEPT}


def _checked(found: Verdict) -> Verdict:
    """What lmkv's own check does not take is not kept."""
    if found.verdict != KEPT:
        return found
    wrong = problems(InstanceConfig, {found.setting: found.value}, found.key)
    return Verdict(found.key, REFUSED, wrong[0]) if wrong else found


def _verdict(key: str, value: Any) -> Verdict:
    name = ALIASES.get(key, key)
    try:
        if name in MAPPED:
            return MAPPED[name](key, value)
        if name in NEEDLESS:
            return Verdict(key, NOT_NEEDED, NEEDLESS[name])
        if name in SWITCHES:
            if value is None or (isinstance(value, (bool, str)) and not _switch(value)):
                return Verdict(key, NOT_NEEDED, "it is off")
            return Verdict(key, REFUSED, SWITCHES[name])
    except Wrong as error:
        return Verdict(key, REFUSED, f"{value!r}: allowed is {error}")
    for family, reason in FAMILIES.items():
        if name.startswith(family):
            off = value is None
            return Verdict(key, NOT_NEEDED if off else REFUSED, "it is off" if off else reason)
    near = difflib.get_close_matches(name, [*MAPPED, *NEEDLESS, *SWITCHES], n=1, cutoff=0.0)[0]
    return Verdict(key, UNKNOWN, f"not a setting of LMCache's that lmkv knows; near is {near}")


# ---------------------------------------------------------------- values


def _whole(value: Any, least: int = 0) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise Wrong(f"a whole number of at least {least}")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e9:
        raise Wrong("a number of at least 0")
    return float(value)


def _switch(value: Any) -> bool:
    """LMCache takes words for it in variables; a text that is none of them is on: an address."""
    if isinstance(value, str):
        return value.lower() not in ("", "false", "0", "no", "off", "none", "null")
    return bool(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise Wrong("true or false")
    return value


def _kept(key: str, setting: str, value: Any, more: str = "") -> Verdict:
    return Verdict(key, KEPT, f"as {setting}: {value}{more}", setting, value)


# ---------------------------------------------------------------- keys that mean something here


def _chunk_size(key: str, value: Any) -> Verdict:
    return _kept(key, "chunk_tokens", _whole(value, 1))


def _cpu_size(key: str, value: Any) -> Verdict:
    gib = _number(value)
    if not gib:
        return Verdict(key, REFUSED, "an instance without a pool shares nothing")
    return _kept(key, "pool_gib", gib, ", of each rank")


def _local_cpu(key: str, value: Any) -> Verdict:
    if _flag(value):
        return Verdict(key, NOT_NEEDED, "the pool is in host memory")
    return Verdict(key, REFUSED, "the pool is in host memory; without it nothing is shared")


def _disk(key: str, value: Any) -> Verdict:
    if value in (None, "", 0, 0.0):
        return Verdict(key, NOT_NEEDED, "it is off")
    return Verdict(key, REFUSED, "this release keeps nothing on disk")


def _instance_id(key: str, value: Any) -> Verdict:
    if value is None:
        return Verdict(key, NOT_NEEDED, "by default it is the host's name and the engine's id")
    return _kept(key, "instance_id", str(value))


def _controller(key: str, value: Any) -> Verdict:
    if value is None:
        return Verdict(key, NOT_NEEDED, "the default is a controller on this host")
    try:
        parts = urlsplit(value if "://" in str(value) else f"tcp://{value}")
        host = parts.hostname
    except (ValueError, TypeError):
        host = None
    if not host:
        raise Wrong("HOST:PORT")
    shown = f"[{host}]" if ":" in host else host
    more = f" ({value} is LMCache's own port)"
    return _kept(key, "controllers", [f"tcp://{shown}:{PORT}"], more)


def _policy(key: str, value: Any) -> Verdict:
    if str(value).upper() == "LRU":
        return Verdict(key, NOT_NEEDED, "what was used longest ago is retired first")
    return Verdict(key, REFUSED, f"{value}: what was used longest ago is retired first, always")


def _least_tokens(key: str, value: Any) -> Verdict:
    return _kept(key, "min_tokens", _whole(value))


def _lookup_timeout(key: str, value: Any) -> Verdict:
    seconds = _whole(value, 1) / 1000
    return _kept(key, "locate_deadline", seconds, " (lmkv's own default is 0.02)")


def _decoded(key: str, value: Any) -> Verdict:
    if _flag(value):
        return Verdict(key, NOT_NEEDED, "generated tokens are stored too")
    text = "generated tokens are stored, always; a request's skip_store keeps it out"
    return Verdict(key, REFUSED, text)


def _numa(key: str, value: Any) -> Verdict:
    if value in (None, "auto"):
        return Verdict(key, NOT_NEEDED, "a rank's pool is where its CPUs are")
    return Verdict(key, REFUSED, f"{value}: a rank's pool is where its CPUs are")


def _extra(key: str, value: Any) -> Verdict:
    if not value:
        return Verdict(key, NOT_NEEDED, "it is empty")
    if not isinstance(value, dict):
        raise Wrong("a mapping")
    return Verdict(key, REFUSED, f"{', '.join(map(str, value))}: of LMCache's back ends only")


MAPPED: dict[str, Callable[[str, Any], Verdict]] = {
    "chunk_size": _chunk_size,
    "max_local_cpu_size": _cpu_size,
    "local_cpu": _local_cpu,
    "local_disk": _disk,
    "max_local_disk_size": _disk,
    "lmcache_instance_id": _instance_id,
    "controller_pull_url": _controller,
    "cache_policy": _policy,
    "min_retrieve_tokens": _least_tokens,
    "lookup_timeout_ms": _lookup_timeout,
    "save_decode_cache": _decoded,
    "numa_mode": _numa,
    "extra_config": _extra,
}

_PORTS = "lmkv's instances listen at no port that one configures"
_HEARTBEATS = "the controller tells its instances how often"
_ANYWAY = "lmkv does so anyway"
NEEDLESS = {
    "enable_controller": "an instance tells its controllers when they are there",
    "controller_reply_url": "one address is told, the controller says the rest",
    "pin_timeout_sec": "each pin says its own time",
    "pin_check_interval_sec": "each pin says its own time",
    "lmcache_worker_ports": _PORTS,
    "lmcache_worker_ids": _PORTS,
    "lmcache_worker_heartbeat_delay_time": _HEARTBEATS,
    "lmcache_worker_heartbeat_time": _HEARTBEATS,
    "p2p_host": _PORTS,
    "p2p_init_ports": _PORTS,
    "p2p_lookup_ports": _PORTS,
    "enable_p2p": _ANYWAY,
    "transfer_channel": "mapped on one host, else NIXL (setting transfer)",
    "pre_caching_hash_algorithm": "keys depend on no process's hash",
    "enable_async_loading": _ANYWAY,
    "enable_kv_events": "vLLM's own --kv-events-config has them",
    "py_enable_gc": "vLLM decides",
    "blocking_timeout_secs": "every wait has its deadline",
    "save_unfull_chunk": "a tail below a chunk is computed",
    "local_cpu_use_hugepages": "the pool takes huge pages where the host gives them",
    "reserve_local_cpu_size": "the pool's size is what it takes",
    "remote_serde": "slots travel as they are",
}

SWITCHES = {
    "remote_url": "there is no remote store: instances read from one another",
    "enable_blending": "only whole prefixes are shared",
    "enable_pd": "vLLM's NixlConnector does it, beside lmkv in a MultiConnector",
    "use_layerwise": "a prompt is loaded whole",
    "external_lookup_client": "lookups are lmkv's own",
    "use_gds": "this release keeps nothing on disk",
    "remote_config_url": "settings are a file, variables and vLLM's own line",
    "run_script_api_enabled": "lmkv runs nobody's scripts",
    "enable_scheduler_bypass_lookup": "the scheduler's process has the slot table",
    "enable_lazy_memory_allocator": "the pool is made in the background",
    "enable_chunk_statistics": "metrics and `lmkv get prefixes` have them",
    "enable_hidden_state_cache": "only KV is shared",
    "internal_api_server_enabled": "the controller serves HTTP",
    "use_gpu_connector_v3": "how KV is copied is lmkv's own",
}

_BACK_END = "of a back end of LMCache's that lmkv does not have"
FAMILIES = {
    "blend_": SWITCHES["enable_blending"],
    "pd_": SWITCHES["enable_pd"],
    "nixl_": SWITCHES["enable_pd"],
    "gds_": _BACK_END,
    "maru_": _BACK_END,
    "mp_": "instances need no server beside them",
    "remote_": SWITCHES["remote_url"],
    "audit_": SWITCHES["remote_url"],
    "retrieve_locations": _BACK_END,
    "store_location": _BACK_END,
    "storage_plugins": _BACK_END,
    "external_backends": _BACK_END,
    "runtime_plugin": SWITCHES["run_script_api_enabled"],
    "plugin_locations": SWITCHES["run_script_api_enabled"],
    "script_": SWITCHES["run_script_api_enabled"],
    "lazy_memory_": SWITCHES["enable_lazy_memory_allocator"],
    "chunk_statistics_": SWITCHES["enable_chunk_statistics"],
    "internal_api_server_": SWITCHES["internal_api_server_enabled"],
    "hidden_state": SWITCHES["enable_hidden_state_cache"],
    "max_hidden_state_cpu_size": SWITCHES["enable_hidden_state_cache"],
    "local_disk_path_sharding": "this release keeps nothing on disk",
    "priority_limit": "all requests are shared alike",
    "hit_miss_ratio": "metrics have it",
    "lookup_server_worker_ids": "lookups are the scheduler's",
    "app_id": SWITCHES["remote_config_url"],
}


# ---------------------------------------------------------------- variables

PREFIX = "LMCACHE_"
OTHER_VARIABLES = ("LMCACHE_CONFIG_FILE", "LMCACHE_USE_EXPERIMENTAL", "LMCACHE_TRACK_USAGE")


def from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """LMCACHE_* as a file would have them; its log's settings are no settings."""
    import yaml

    found: dict[str, Any] = {}
    for variable in sorted(environ):
        name = variable.removeprefix(PREFIX)
        if name == variable or variable in OTHER_VARIABLES or name.startswith("LOG"):
            continue
        try:
            found[name.lower()] = yaml.safe_load(environ[variable])
        except yaml.YAMLError:
            found[name.lower()] = environ[variable]
    return found
