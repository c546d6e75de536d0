"""Clients to the controller: what people, routers and the web process ask."""

from __future__ import annotations

from typing import Union

import msgspec

from lmkv.core.messages.base import U32, U64, Message, Seconds


class Status(Message, tag="status"):
    """The cluster in one answer."""

    request: U64 = 0
    brief: bool = False  # without the list of instances,
    top: U32 = 0  # but for so many of those that are not dead, the ones with the most keys


class InstanceState(msgspec.Struct, omit_defaults=True):
    """`state`: `live`, `suspect`, `dead`, `syncing`, `incompatible`."""

    instance: str
    epoch: U64
    state: str
    model: str = ""
    serving_url: str = ""
    ranks: U32 = 0
    keys: U64 = 0
    heartbeat_age: Seconds = 0.0
    pullable: bool = False
    version: str = ""
    differs: str = ""  # the field in which it differs from the first instance of its model
    data_version: U64 = 0
    hit_tokens: dict[str, U64] = {}
    miss_tokens: dict[str, U64] = {}
    pool_granules: dict[str, U64] = {}
    differs_from: str = ""  # that first instance
    dp_rank: int = 0
    running: U32 = 0  # requests, by its last heartbeat
    waiting: U32 = 0
    load: float = 0.0  # by which holders are weighed; 1 is sixteen requests
    retired_age: Seconds = 0.0  # median of slots retired for room, from above; 0: none was
    bytes_in: U64 = 0  # that came to it from others in the last 5 minutes
    bytes_out: U64 = 0  # that others took of it


class StatusInfo(Message, tag="status_info"):
    """Tokens are counted since the controller began; `lag` is the age of the oldest heartbeat
    among the instances that are not dead: what the controller knows is at most that old."""

    request: U64
    cluster: str
    controller: str
    epoch: U64
    state: str
    version: str
    uptime: Seconds
    keys: U64
    directory_bytes: U64
    locates: U64
    locate_keys: U64
    drifts: U64
    resyncs: U64
    instances: list[InstanceState] = []
    max_frame_bytes: U64 = 0  # the connection of whoever sends a larger frame is dropped
    states: dict[str, U32] = {}  # instances by state
    located_keys: U64 = 0  # of `locate_keys`, those that somebody had
    syncs: U32 = 0  # full syncs that run or wait
    bad_messages: U64 = 0
    lag: Seconds = 0.0
    hit_tokens: dict[str, U64] = {}
    miss_tokens: dict[str, U64] = {}
    pool_granules: dict[str, U64] = {}  # of the instances that are not dead
    heartbeats: U64 = 0
    announced_keys: U64 = 0
    retracted_keys: U64 = 0
    syncs_waiting: U32 = 0  # of `syncs`
    protocol_min: U32 = 0  # versions that it speaks; 0: a release that does not say
    protocol_max: U32 = 0
    retired_ages: list[U64] = []  # slots retired for room, by `core/metrics.py`'s AGES
    retired_seconds: float = 0.0  # the sum of these ages
    peer_bytes: U64 = 0  # that came from one instance to another
    versions: dict[str, U32] = {}  # instances that are not dead, by their release
    jobs: dict[str, U32] = {}  # that are remembered, by state
    jobs_ended: dict[str, U64] = {}  # since the controller began, by state
    job_bytes: dict[str, U64] = {}  # that they moved or freed since then, by operation
    pins: U32 = 0


class Lookup(Message, tag="lookup"):
    """Holders per chunk. Frames: keys; or no frame, and tokens, text or chat messages (keys are
    made by the controller with the namespace and group spec of `like`, or of the only class of
    instances there is, of `model` where that is given). Text, messages and the name of a LoRA are
    put to an instance."""

    request: U64 = 0
    tokens: list[U32] = []
    text: str = ""
    messages: list[dict[str, str]] = []
    salt: str = ""
    lora: str = ""
    like: str = ""  # an instance whose namespace counts
    model: str = ""


class LookupInfo(Message, tag="lookup_info"):
    """`holders[i]` lists the instances that have chunk i, `matched` counts whole-prefix tokens."""

    request: U64
    chunk_tokens: U32
    keys: list[str]  # hex
    holders: list[list[str]]
    matched: dict[str, U32]
    incompatible: dict[str, str] = {}  # other instances of the model, and the field that differs
    tokens: U32 = 0  # of the prompt; 0: keys were given


class Route(Message, tag="route"):
    """Which instances have the longest prefix of these tokens, text or chat messages? For routers;
    nothing is handed out.

    `model` may be left out where all instances serve the same one.
    """

    request: U64 = 0
    tokens: list[U32] = []
    model: str = ""
    salt: str = ""
    limit: U32 = 16
    text: str = ""
    messages: list[dict[str, str]] = []
    lora: str = ""


class Candidate(msgspec.Struct, omit_defaults=True):
    """An instance that could serve a prompt; it has the first `tokens` of it."""

    instance: str
    serving_url: str = ""
    dp_rank: int = 0
    tokens: U32 = 0
    load: float = 0.0
    heartbeat_age: Seconds = 0.0


class Routed(Message, tag="routed"):
    """Live instances of the model: most tokens first, then least load."""

    request: U64
    candidates: list[Candidate] = []


INSTANCE_SORTS = (
    "instance", "state", "model", "fill", "pinned", "limbo", "hit_tokens", "miss_tokens", "load",
    "heartbeat_age", "version", "retired_age", "bytes_in", "bytes_out",
)  # fmt: skip


class Instances(Message, tag="instances"):
    """A page of instances by name, from the one after `after` on; or `instance` alone.

    With `sort` (one of `INSTANCE_SORTS`) a page begins at `offset` instead, in that order. `filter`
    is a part of the name, the model or the version, or a state.
    """

    request: U64 = 0
    after: str = ""
    limit: U32 = 100
    instance: str = ""
    sort: str = ""
    descending: bool = False
    filter: str = ""
    offset: U32 = 0


class InstancesInfo(Message, tag="instances_info"):
    request: U64
    instances: list[InstanceState] = []
    next: str = ""  # ask again with `after` of this; "": there are no more
    total: U32 = 0  # that the filter lets through


class Controllers(Message, tag="controllers"):
    request: U64 = 0


class ControllerState(msgspec.Struct, omit_defaults=True):
    """`lag`, `syncs`: as in `StatusInfo`; `instances` counts those that are not dead. `state` is
    `ready` or `warming`; who asked all of them says `unreachable` of those that did not answer."""

    controller: str
    epoch: U64
    state: str
    version: str = ""
    uptime: Seconds = 0.0
    keys: U64 = 0
    directory_bytes: U64 = 0
    instances: U32 = 0
    syncs: U32 = 0
    drifts: U64 = 0
    resyncs: U64 = 0
    lag: Seconds = 0.0
    address: str = ""  # at which it was asked


class ControllersInfo(Message, tag="controllers_info"):
    """Of the controllers itself, and where the others are, as instances and its settings say; one
    of them may be itself. Who wants all of them asks each (core/cluster.py)."""

    request: U64
    controllers: list[ControllerState] = []
    others: list[str] = []


class Prefixes(Message, tag="prefixes"):
    """The `top` prefixes that were located most of late and that somebody holds."""

    request: U64 = 0
    top: U32 = 20


class Prefix(msgspec.Struct, omit_defaults=True):
    """`hits` are locates that ended at this key; one counts half ten minutes later. `holders` are
    the first few of `copies`."""

    key: str  # hex, of the last chunk
    model: str = ""
    tokens: U32 = 0
    hits: float = 0.0
    copies: U32 = 0
    holders: list[str] = []


class PrefixesInfo(Message, tag="prefixes_info"):
    request: U64
    prefixes: list[Prefix] = []


class Flow(Message, tag="flow"):
    """Bytes that came from instance to instance of late, the `limit` pairs with most of them."""

    request: U64 = 0
    seconds: Seconds = 300.0
    limit: U32 = 100


class Pair(msgspec.Struct, omit_defaults=True):
    source: str
    target: str
    bytes: U64


class FlowInfo(Message, tag="flow_info"):
    """In the last `seconds`, which may be fewer than were asked for; most bytes first."""

    request: U64
    seconds: Seconds = 0.0
    bytes: U64 = 0  # of all pairs
    pairs: U32 = 0
    flows: list[Pair] = []


class Subscribe(Message, tag="subscribe"):
    """Events after `after`: answered by `Events` as soon as there are any, and after `wait` at the
    latest. Who wants more asks again. A connection has one such question at a time."""

    request: U64 = 0
    after: U64 = 0
    wait: Seconds = 0.0


class Event(msgspec.Struct, omit_defaults=True):
    """`kind` is `registered`, `suspect`, `dead`, `back`, `left`, `drift`, `resync`,
    `incompatible`; or `job`: its state has changed."""

    id: U64
    kind: str
    instance: str = ""
    text: str = ""
    age: Seconds = 0.0  # when it was sent
    job: str = ""  # its id


class Events(Message, tag="events"):
    """Ids count from 1 on in each life (`epoch`) of a controller, which keeps the last few
    thousand, from `first` to `last`."""

    request: U64
    epoch: U64
    first: U64 = 1
    last: U64 = 0
    events: list[Event] = []


QueryMessage = Union[
    Status,
    StatusInfo,
    Lookup,
    LookupInfo,
    Route,
    Routed,
    Instances,
    InstancesInfo,
    Controllers,
    ControllersInfo,
    Prefixes,
    PrefixesInfo,
    Flow,
    FlowInfo,
    Subscribe,
    Events,
]
