"""Settings: inline over environment over file over default, one set of names.

`load(kind, inline, environ, file)` is pure. `inline` is vLLM's `kv_connector_extra_config` or the
CLI's options, `environ` has a setting `name` as `LMKV_NAME`, `file` is what the YAML file holds.
`read(kind, inline, environ)` finds the file first: `config` inline, else `LMKV_CONFIG_FILE`.
Whatever cannot be accepted is a `ConfigError` whose sentence names the setting, the value, where it
came from and what is allowed. `config.origins[name]` says where each value came from.

A field's `Meta.description` is the text of what is allowed. Durations are seconds.
"""

from __future__ import annotations

import difflib
import os
import re
import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from lmkv.core import config_conflicts

# Variables with our prefix that are no settings.
OTHER_VARIABLES = frozenset(
    {"LMKV_CACERT", "LMKV_CONFIG_FILE", "LMKV_CONTROLLER", "LMKV_ISA", "LMKV_TOKEN"}
)
LEAST_FRAME_BYTES = 1 << 17
LEAST_DATA_PORTS = 64  # ports of a dead mover stay in TIME_WAIT for a minute

NAMES = "dns+"  # before an address: all records of its name are controllers
_addresses = f"1 to 16 addresses tcp://HOST:PORT or {NAMES}tcp://NAME:PORT"
_seconds = "seconds above 0, at most 3600"
Duration = Annotated[float, Meta(gt=0, le=3600, description=_seconds)]
Count = Annotated[int, Meta(ge=1, le=1_000_000, description="a whole number from 1 to 1000000")]
Share = Annotated[float, Meta(gt=0, le=0.5, description="a share above 0, at most 0.5")]
Port = Annotated[int, Meta(ge=0, le=65535, description="a port, 0 to 65535")]
_word = "1 to 200 letters, digits, '.', '_' or '-'"
Word = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,200}$", description=_word)]
OptionalWord = Annotated[
    str, Meta(pattern=r"^[A-Za-z0-9._-]{0,200}$", description=f"empty, or {_word}")
]
_plain = r"\A[^\x00-\x1f\x7f\ud800-\udfff]*\Z"
Text = Annotated[
    str,
    Meta(
        pattern=_plain,
        max_length=4096,
        description="a text of at most 4096 characters, none of them for control",
    ),
]
PathText = Annotated[
    str,
    Meta(
        pattern=_plain, max_length=4096, description="empty, or a path of at most 4096 characters"
    ),
]


class ConfigError(ValueError):
    """A setting that cannot be accepted; the text is one sentence for the operator."""


class Config(msgspec.Struct, kw_only=True, frozen=True):
    """What both kinds have. `origins`: `inline_name`, the variable or file's name, `default`."""

    origins: dict[str, str] = {}
    cluster: Word = "default"
    keys: PathText = ""  # folder of keys; "": connections are not authenticated
    insecure: Annotated[bool, Meta(description="true or false")] = False
    log: Annotated[Literal["text", "json"], Meta(description="text or json")] = "text"


class InstanceConfig(Config, kw_only=True, frozen=True):
    """Settings of an instance: agent, workers, movers."""

    controllers: Annotated[
        list[str],
        Meta(min_length=1, max_length=16, description=_addresses),
    ] = msgspec.field(default_factory=lambda: ["tcp://127.0.0.1:7550"])
    instance_id: OptionalWord = ""  # "": host name, 8 hex of the engine id, -dpN
    serving_url: Annotated[
        str, Meta(pattern=r"^(https?://\S+)?$", description="empty, or http://... or https://...")
    ] = ""
    run_dir: PathText = ""
    weights_version: Text = ""
    on_reset: Annotated[Literal["isolate", "keep"], Meta(description="isolate or keep")] = "isolate"

    pool_gib: Annotated[
        Annotated[float, Meta(gt=0, le=65536)] | None,
        Meta(description="auto, or GiB above 0, at most 65536"),
    ] = None
    pool_device: Annotated[
        Literal["host", "cuda", "cuda+host"], Meta(description="host, cuda or cuda+host")
    ] = "host"  # cuda+host: a pool of the host, with what was used last in the GPU's memory too
    gpu_pool_gib: Annotated[
        Annotated[float, Meta(gt=0, le=65536)] | None,
        Meta(description="none, or GiB above 0, at most 65536"),
    ] = None  # of each rank's GPU, where pool_device says so
    chunk_tokens: Annotated[
        Annotated[int, Meta(ge=1, le=65536)] | None,
        Meta(description="auto, or a whole number from 1 to 65536"),
    ] = None
    min_tokens: Annotated[
        int, Meta(ge=0, le=10_000_000, description="a whole number from 0 to 10000000")
    ] = 256
    limbo_share: Share = 1 / 16  # of the pool; beyond it the mover is replaced
    limbo_seconds: Duration = 60.0
    retired_share: Share = 0.03
    audit_every: Annotated[
        int, Meta(ge=0, le=1_000_000_000, description="0 (never), or one store in this many")
    ] = 1000

    transfer: Annotated[
        Literal["auto", "mapped", "nixl"], Meta(description="auto, mapped or nixl")
    ] = "auto"
    pull: Annotated[
        Literal["auto", "always", "never"], Meta(description="auto, always or never")
    ] = "auto"
    gpu_path: Annotated[
        Literal["auto", "direct", "staged"], Meta(description="auto, direct or staged")
    ] = "auto"
    gpu_multiprocessors: Annotated[
        int, Meta(ge=1, le=1024, description="a whole number from 1 to 1024")
    ] = 8  # that copies take from the engine at most
    gpu_staging_mib: Annotated[
        int, Meta(ge=1, le=65536, description="MiB, a whole number from 1 to 65536")
    ] = 64  # of the GPU's memory, for stores and again for loads; two slots at least
    gpu_pulls: Annotated[
        Literal["auto", "always", "never"], Meta(description="auto, always or never")
    ] = "auto"  # of pools in a GPU's memory, by NIXL; auto: where a probe finds them fast enough
    data_interface: Annotated[
        str, Meta(pattern=r"^[A-Za-z0-9_.,:@-]{1,256}$", description="a network interface's name")
    ] = "lo"
    control_interface: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z0-9_.:@\[\]-]{0,256}$",
            description="empty, a network interface's name, or an address",
        ),
    ] = ""  # of control sockets, for ranks on several hosts; "": unix sockets in run_dir
    data_ports: Annotated[
        str,
        Meta(
            pattern=r"^[0-9]{1,5}-[0-9]{1,5}$",
            description=f"FIRST-LAST, at least {LEAST_DATA_PORTS} ports from 1024 to 65535",
        ),
    ] = "49152-65535"
    nixl_tls: Annotated[
        Literal["", "tcp", "cma"], Meta(description="empty (UCX chooses), tcp or cma")
    ] = ""

    job_bytes_per_second: Annotated[
        float, Meta(ge=0, le=1e12, description="0 (any), or bytes per second up to 1e12")
    ] = float(1 << 30)  # of all jobs together: copies, moves, compression
    pin_share: Annotated[float, Meta(ge=0, le=1, description="a share from 0 to 1")] = (
        0.5  # of the pool, that pins may take
    )

    locate_deadline: Duration = 0.020
    pull_deadline_min: Duration = 0.25
    pull_deadline_max: Duration = 5.0
    connect_deadline: Duration = 1.0
    load_deadline: Duration = 10.0
    copy_deadline: Duration = 10.0

    def data_port_range(self) -> tuple[int, int]:
        first, last = self.data_ports.split("-")
        return int(first), int(last)


class ControllerConfig(Config, kw_only=True, frozen=True):
    """Settings of a controller."""

    controller_id: OptionalWord = ""  # "": host name and the port
    host: Text = "127.0.0.1"
    port: Port = 7550  # state; 0: any free one
    query_port: Port = 0  # 0: the next one
    web: Annotated[bool, Meta(description="true or false")] = True
    http_host: Text = "127.0.0.1"
    http_port: Port = 0  # 0: the one after the query port
    http_cert: PathText = ""  # PEM; with http_key HTTP is HTTPS
    http_key: PathText = ""
    http_rate: Count = 1000  # requests a second of one client
    tokens: PathText = ""  # file; "": the one among `keys`, where there is one
    require_salt: Annotated[bool, Meta(description="true or false")] = False
    compat: Annotated[Literal["", "lmcache"], Meta(description="empty, or lmcache")] = ""
    heartbeat: Duration = 1.0
    suspect_after_beats: Count = 3
    dead_after_beats: Count = 5
    warming_least: Duration = 3.0
    warming_most: Duration = 10.0
    touched_interval: Duration = 0.1
    syncs_at_once: Count = 8
    sync_timeout: Duration = 30.0
    max_instances: Count = 10_000
    peers: Annotated[
        list[str], Meta(max_length=16, description="up to 16 addresses tcp://HOST:PORT")
    ] = msgspec.field(default_factory=list)  # other controllers, beside those that instances name
    max_frame_bytes: Annotated[
        int,
        Meta(ge=LEAST_FRAME_BYTES, le=1 << 30, description="bytes from 131072 to 1073741824"),
    ] = 4 << 20
    queue_messages: Count = 128  # per connection and direction


C = TypeVar("C", bound=Config)
KINDS: tuple[type[Config], ...] = (InstanceConfig, ControllerConfig)


def names(kind: type[Config]) -> list[str]:
    return [name for name in kind.__struct_fields__ if name != "origins"]


def load(
    kind: type[C],
    inline: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    file: Mapping[str, Any] | None = None,
    file_name: str = "the file",
    inline_name: str = "inline",
) -> C:
    """The settings of `kind`. Raises ConfigError. `config` inline is skipped: `read` follows it."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = dict.fromkeys(names(kind), "default")
    inline = {k: v for k, v in (inline or {}).items() if k != "config"}
    for source, origin in ((file or {}, file_name), (inline, inline_name)):
        for name in source:
            _known(kind, name, origin)
    variables = dict(_variables(kind, environ or {}))
    for source, origin in ((file or {}, file_name), (variables, ""), (inline, inline_name)):
        for name, value in source.items():
            where = origin or "LMKV_" + name.upper()
            values[name] = _convert(kind, name, value, where)
            origins[name] = where
    config = kind(**values, origins=origins)
    for conflict in _conflicts(config):
        raise ConfigError(conflict)
    return config


def _conflicts(config: Config) -> Iterable[str]:
    if isinstance(config, InstanceConfig):
        return config_conflicts.of_instance(config)
    assert isinstance(config, ControllerConfig)
    return config_conflicts.of_controller(config)


def problems(kind: type[C], file: Mapping[str, Any], file_name: str) -> list[str]:
    """Every reason for which `load` would not take this file, one sentence each."""
    found = []
    for name, value in file.items():
        try:
            _known(kind, name, file_name)
            _convert(kind, name, value, file_name)
        except ConfigError as error:  # noqa: PERF203
            found.append(str(error))
    if not found:
        try:
            load(kind, file=file, file_name=file_name)
        except ConfigError as error:
            found.append(str(error))
    return found


def allowed(kind: type[Config], name: str) -> str:
    """What a setting may be, in words."""
    return _description(typing.get_type_hints(kind, include_extras=True)[name])


def as_text(name: str, value: Any) -> str:
    """A setting's value as YAML on one line."""
    import yaml

    value = _absent(name) if value is None else value
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000)
    return str(text).removesuffix("...\n").strip()


def _absent(name: str) -> str:
    """The word for no value: what lmkv decides itself, but for what is never guessed."""
    return "none" if name == "gpu_pool_gib" else "auto"


def read(
    kind: type[C],
    inline: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    inline_name: str = "inline",
) -> C:
    """`load` with this environment and the file that `config` or LMKV_CONFIG_FILE names."""
    environ = os.environ if environ is None else environ
    path = (inline or {}).get("config") or environ.get("LMKV_CONFIG_FILE") or ""
    if not isinstance(path, str):
        raise ConfigError(f"config = {path!r} ({inline_name}): allowed is the path of a YAML file")
    if not path:
        return load(kind, inline, environ, inline_name=inline_name)
    return load(kind, inline, environ, read_file(path), path, inline_name)


def read_file(path: str) -> dict[str, Any]:
    """A YAML file's settings; an empty file has none."""
    import yaml  # takes 20 ms

    try:
        with open(path, encoding="utf-8") as stream:
            body = yaml.safe_load(stream)
    except OSError as error:
        raise ConfigError(f"configuration file {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ConfigError(f"configuration file {path} is not YAML: {_line(error)}") from None
    if body is None:
        return {}
    if not isinstance(body, dict):
        raise ConfigError(f"configuration file {path} holds a {type(body).__name__}, not settings")
    return body


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _variables(kind: type[Config], environ: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    """The settings of `kind` in the environment. What belongs to the other kind is passed over,
    since one environment may serve both; what belongs to neither is refused."""
    everyone = {name for each in KINDS for name in names(each)}
    for variable in sorted(environ):
        if not variable.startswith("LMKV_") or variable in OTHER_VARIABLES:
            continue
        name = variable[len("LMKV_") :].lower()
        if variable != "LMKV_" + name.upper() or name not in everyone:
            _unknown(kind, name, f"environment variable {variable}", "environment", "LMKV_")
        if name in names(kind):
            yield name, environ[variable]


def _known(kind: type[Config], name: object, origin: str) -> None:
    if not isinstance(name, str) or name not in names(kind):
        _unknown(kind, str(name), f"setting {name!r}", origin)


def _unknown(kind: type[Config], name: str, what: str, origin: str, prefix: str = "") -> None:
    for other in KINDS:
        if name in names(other):
            whose = "controller" if other is ControllerConfig else "instance"
            raise ConfigError(f"{what} ({origin}) is a setting of the {whose}, not known here")
    near = difflib.get_close_matches(name, names(kind), n=1, cutoff=0.0)
    nearest = prefix + near[0].upper() if prefix and near else "".join(near)
    raise ConfigError(f"{what} ({origin}) is not known; the nearest is {nearest!r}")


def _convert(kind: type[Config], name: str, value: Any, origin: str) -> Any:
    field = typing.get_type_hints(kind, include_extras=True)[name]
    optional = type(None) in typing.get_args(typing.get_args(field)[0])
    if optional and (value is None or value == _absent(name)):
        return None
    raw = value
    if name in ("controllers", "peers") and isinstance(value, str):
        raw = [part.strip() for part in value.split(",") if part.strip()]
    try:
        converted = msgspec.convert(raw, field, strict=not isinstance(raw, str))
        check = _checks.get(name)
        if check:
            check(converted)
    except (ValueError, OverflowError, RecursionError) as error:  # msgspec's are ValueErrors
        allowed = _description(field)
        more = f" ({error})" if isinstance(error, _Detail) else ""
        raise ConfigError(f"{name} = {value!r} ({origin}): allowed is {allowed}{more}") from None
    return converted


class _Detail(ValueError):
    """Says more than the field's description."""


def _description(field: Any) -> str:
    for meta in typing.get_args(field)[1:]:
        if isinstance(meta, Meta) and meta.description:
            return meta.description
    raise AssertionError(f"{field} does not say what is allowed")


def _check_controllers(addresses: list[str]) -> None:
    for address in addresses:
        split_address(address.removeprefix(NAMES))


def _check_peers(addresses: list[str]) -> None:
    for address in addresses:
        split_address(address)


# What libzmq connects to; it refuses others when it is too late to say where they stand.
HOST = re.compile(r"[A-Za-z0-9\[:][A-Za-z0-9.:%\[\]_-]*")


def split_address(address: str) -> tuple[str, int]:
    """`tcp://HOST:PORT` to its parts. Raises ValueError with one sentence."""
    scheme, _, rest = address.partition("://")
    host, _, port = rest.rpartition(":")
    if scheme != "tcp" or not HOST.fullmatch(host):
        raise _Detail(f"{address!r} is not tcp://HOST:PORT")
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise _Detail(f"{address!r} has no port from 1 to 65535")
    return host, int(port)


def _check_ports(text: str) -> None:
    first, last = (int(part) for part in text.split("-"))
    if not (first >= 1024 and last <= 65535 and last - first + 1 >= LEAST_DATA_PORTS):
        raise ValueError(text)


_checks: dict[str, Any] = {
    "controllers": _check_controllers,
    "peers": _check_peers,
    "data_ports": _check_ports,
}
