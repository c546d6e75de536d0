"""Every message of lmkv, in one place.

A message is a tagged struct, MessagePack in a frame of its own; `core/wire.py` puts it there and
takes it out. Bulk arrays travel behind it as raw frames of equal counts, at most
`MAX_KEYS` items: keys (16 bytes each), places (8 bytes, `csrc/slots/place.h`), counters (u32,
little-endian). A docstring names the frames behind a message; without such a line there are none.

Rules for change: the tag is the message's name; new fields only with defaults; unknown fields are
ignored; a message that is declared and not served is answered `Unsupported` by name. Durations are
seconds unless the field's name says otherwise; times of day never travel.

Sections: controller <-> instance, clients -> controller, operations, agent <-> worker,
agent <-> mover, worker <-> mover, share socket.
"""

from __future__ import annotations

from typing import Annotated, Union

import msgspec
from msgspec import Meta

PROTOCOL_MIN = 1
PROTOCOL_MAX = 1
MAX_KEYS = 4096

U8 = Annotated[int, Meta(ge=0, le=0xFF)]
U32 = Annotated[int, Meta(ge=0, le=0xFFFFFFFF)]
# MessagePack's integers reach 2^64 - 1; msgspec's own bounds stop at 2^63, so the type is open
# upwards and the decoder's range is the limit.
U64 = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(ge=0, le=1e9)]  # never infinite: it may be a deadline
Name = Annotated[str, Meta(min_length=1, max_length=256)]


class Message(msgspec.Struct, omit_defaults=True, tag_field="type", tag=str.lower):
    """Base of all messages: the tag is the class name in lower case unless given."""


# ---------------------------------------------------------------- controller <-> instance


class HostIdentity(msgspec.Struct, frozen=True, omit_defaults=True):
    """Boot id, and device and inode of `run_dir`: equal where a share socket can be reached."""

    boot_id: str
    device: U64
    inode: U64


class RankInfo(msgspec.Struct, omit_defaults=True):
    """What a peer needs to read one rank's pool."""

    rank: U32
    host: HostIdentity
    pool_address: U64 = 0
    granule_bytes: U64 = 0
    granules: U32 = 0  # of the whole pool, usable or not
    segment_granules: U32 = 0  # per segment but the last; a slot never crosses segments
    usable_segments: U32 = 0  # segments 0 .. n-1 may be read
    share_socket: str = ""  # path; "" while the rank has no mover
    nixl_metadata: bytes = b""  # b"" while the rank is not pullable by NIXL
    stream_address: str = ""
    rdma: bool = False
    stage: U32 = 0  # of the pipeline: ranks of one stage have the same layers
    heads: list[tuple[U32, U32]] = []  # by cache group: first KV head of the model, how many


class Register(Message, tag="register"):
    """Instance -> controller, on the state socket, first message of a connection.

    `epoch` is the random 64-bit id of this life of the instance. `stream_seq` numbers the stream
    (`Announce`, `Retract`, `Heartbeat`, `SyncSlice`, `SyncEnd`) from 1 on after `Welcome`.
    """

    protocol_min: int
    protocol_max: int
    cluster: Name
    instance: Name
    epoch: U64
    namespace: str
    layouts: list[str]  # one text per rank; which heads it has does not divide instances
    chunk_tokens: Annotated[int, Meta(ge=1)]
    ranks: list[RankInfo]
    data_version: U64 = 0
    model: str = ""
    serving_url: str = ""
    dp_rank: int = 0
    group_specs: list[str] = []
    pins: list[Pin] = []
    jobs: list[str] = []
    version: str = ""  # of the lmkv package


class Welcome(Message, tag="welcome"):
    protocol: int
    controller: Name
    epoch: U64  # the controller's; another one means: register again and send all
    query_port: Annotated[int, Meta(ge=1, le=65535)]
    state: str = "ready"  # or "warming"
    heartbeat: Seconds = 1.0
    suspect_after: Seconds = 3.0
    dead_after: Seconds = 5.0
    touched_interval: Seconds = 0.1
    max_keys: int = MAX_KEYS
    sync: bool = True  # the controller wants a full sync now; False: when it sends `Resync`


class Refused(Message, tag="refused"):
    """The answer to a message that cannot be served; `code` is stable, `message` is for people.

    Codes: `cluster`, `protocol`, `instance_alive`, `field`, `not_registered`, `too_large`,
    `unknown_instance`, `unknown_model`, `warming`.
    """

    code: str
    message: str
    field: str = ""
    request: U64 = 0


class Unsupported(Message, tag="unsupported"):
    """A message that this release declares and does not serve, or does not know."""

    name: str
    request: U64 = 0


class Ranks(Message, tag="ranks"):
    """The instance's ranks have changed (mover restarted, segments became usable)."""

    epoch: U64
    data_version: U64
    ranks: list[RankInfo]


class Announce(Message, tag="announce"):
    """Slots became readable. Frames: keys, places, counters."""

    epoch: U64
    seq: U64


class Retract(Message, tag="retract"):
    """Slots are no longer readable. Frames: keys, places, counters."""

    epoch: U64
    seq: U64


class Heartbeat(Message, tag="heartbeat"):
    """Each second. Count and sums are over all readable slots, as of this `seq`."""

    epoch: U64
    seq: U64
    count: U64
    sum_first: U64
    sum_second: U64
    hit_tokens: dict[str, U64] = {}  # by cause, since the last heartbeat
    miss_tokens: dict[str, U64] = {}
    running: U32 = 0  # requests
    waiting: U32 = 0
    pool_granules: dict[str, U64] = {}  # by state
    hot: list[tuple[bytes, U64]] = []  # every 10 s: the hottest prefixes, key and hits
    data_version: U64 = 0  # a greater one than the controller has: its `Ranks` was lost


class HeartbeatOk(Message, tag="heartbeat_ok"):
    """`epoch` is the controller's; `seq` is the last of the instance's stream that was applied."""

    epoch: U64
    seq: U64
    state: str = "ready"


class Resync(Message, tag="resync"):
    """Controller -> instance: begin a full sync (gap, unknown epoch, drift, or asked for).

    `sync` names it; slices and the end carry the same number. `reason`: `gap`, `epoch`, `drift`,
    `asked`, `new`.
    """

    sync: U64
    reason: str = "new"


class SyncSlice(Message, tag="sync_slice"):
    """Granules [first, last) hold exactly the slots in the frames. Frames: keys, places, counters.

    A slice may be empty. Ordinary announcements interleave; the stream's order decides.
    """

    epoch: U64
    seq: U64
    sync: U64
    first: U32
    last: U32


class SyncEnd(Message, tag="sync_end"):
    """Whatever was not stated since the sync began is gone."""

    epoch: U64
    seq: U64
    sync: U64


class Leave(Message, tag="leave"):
    epoch: U64


class Left(Message, tag="left"):
    epoch: U64


class Touched(Message, tag="touched"):
    """Controller -> holder: slots handed out lately. Frames: keys, places, counters, others u32."""

    epoch: U64


class Probe(Message, tag="probe"):
    """Controller -> instance, on the connection it has: are you alive under this epoch?"""

    epoch: U64


class ProbeOk(Message, tag="probe_ok"):
    epoch: U64


class Locate(Message, tag="locate"):
    """Who holds the longest prefix of these keys? On the query socket. Frames: keys.

    Holders on the asker's host, as it registered, are preferred.
    `avoid` names peers not to be handed out (they failed lately). `sparse`: not a prefix, but
    every key that somebody holds.
    """

    request: U64
    cluster: Name
    instance: Name
    epoch: U64
    avoid: list[str] = []
    sparse: bool = False


class PeerRef(msgspec.Struct, omit_defaults=True):
    """A holder named in an answer; its details are fetched by `Peer` when `data_version` is new."""

    instance: str
    epoch: U64
    data_version: U64
    same_host: bool = False
    pullable: bool = True


class Run(msgspec.Struct, omit_defaults=True, array_like=True):
    """Keys [first, first + n) are at `peers[peer]`; its places start at `offset` in the frames."""

    first: U32
    n: U32
    peer: U32
    offset: U32


class Located(Message, tag="located"):
    """Frames: places, counters; runs and alternates point into them.

    `runs` cover keys 0 .. found-1 in order (sparse: `found` keys, in order, with gaps);
    `alternates` cover some of them again by another holder. `missing` is the cause of the first
    key not covered: `cold`, `incompatible`, `retired`. `incompatible` names the differing field
    when that is the cause.
    """

    request: U64
    epoch: U64  # the controller's
    found: U32 = 0
    runs: list[Run] = []
    alternates: list[Run] = []
    peers: list[PeerRef] = []
    missing: str = "cold"
    incompatible: str = ""


class Peer(Message, tag="peer"):
    """Fetch a peer's details; answered by `PeerInfo` or `Refused(unknown_instance)`."""

    request: U64
    instance: Name


class PeerInfo(Message, tag="peer_info"):
    request: U64
    instance: str
    epoch: U64
    data_version: U64
    ranks: list[RankInfo]
    serving_url: str = ""


# ---------------------------------------------------------------- clients -> controller


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


class Lookup(Message, tag="lookup"):
    """Holders per chunk. Frames: keys; or no frame, and tokens (keys are made by the controller
    with the namespace and group spec of `like`, or of the only class of instances there is)."""

    request: U64 = 0
    tokens: list[U32] = []
    text: str = ""
    messages: list[dict[str, str]] = []
    salt: str = ""
    lora: str = ""
    like: str = ""  # an instance whose namespace counts


class LookupInfo(Message, tag="lookup_info"):
    """`holders[i]` lists the instances that have chunk i, `matched` counts whole-prefix tokens."""

    request: U64
    chunk_tokens: U32
    keys: list[str]  # hex
    holders: list[list[str]]
    matched: dict[str, U32]
    incompatible: dict[str, str] = {}  # other instances of the model, and the field that differs


class Route(Message, tag="route"):
    """Which instances have the longest prefix of these tokens? For routers; nothing is handed out.

    `model` may be left out where all instances serve the same one.
    """

    request: U64 = 0
    tokens: list[U32] = []
    model: str = ""
    salt: str = ""
    limit: U32 = 16


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


class Instances(Message, tag="instances"):
    """A page of instances by name, from the one after `after` on; or `instance` alone."""

    request: U64 = 0
    after: str = ""
    limit: U32 = 100
    instance: str = ""


class InstancesInfo(Message, tag="instances_info"):
    request: U64
    instances: list[InstanceState] = []
    next: str = ""  # ask again with `after` of this; "": there are no more


class Controllers(Message, tag="controllers"):
    request: U64 = 0


class ControllerState(msgspec.Struct, omit_defaults=True):
    """`lag`, `syncs`: as in `StatusInfo`; `instances` counts those that are not dead."""

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


class ControllersInfo(Message, tag="controllers_info"):
    """The controllers that this one knows: itself."""

    request: U64
    controllers: list[ControllerState] = []


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


class Subscribe(Message, tag="subscribe"):
    """Events after `after`: answered by `Events` as soon as there are any, and after `wait` at the
    latest. Who wants more asks again. A connection has one such question at a time."""

    request: U64 = 0
    after: U64 = 0
    wait: Seconds = 0.0


class Event(msgspec.Struct, omit_defaults=True):
    """`kind` is `registered`, `suspect`, `dead`, `back`, `left`, `drift`, `resync` or
    `incompatible`."""

    id: U64
    kind: str
    instance: str = ""
    text: str = ""
    age: Seconds = 0.0  # when it was sent


class Events(Message, tag="events"):
    """Ids count from 1 on in each life (`epoch`) of a controller, which keeps the last few
    thousand, from `first` to `last`."""

    request: U64
    epoch: U64
    first: U64 = 1
    last: U64 = 0
    events: list[Event] = []


# ---------------------------------------------------------------- operations (served later)


class Pin(msgspec.Struct, omit_defaults=True):
    id: str
    keys: bytes  # 16 bytes each
    ttl: Seconds
    owner: str = ""


class Command(Message, tag="command"):
    """One operation on one instance. Frames: keys (may be absent).

    `operation`: `pin`, `unpin`, `move`, `copy`, `clear`, `compress`, `decompress`, `drain`,
    `undrain`, `sync`, `verify`, `lookup_text`. `id` makes a repetition harmless.
    """

    id: Name
    operation: Name
    instance: str = ""
    target: str = ""
    ttl: Seconds = 0.0
    arguments: dict[str, str] = {}


class Job(Message, tag="job"):
    """Progress or result of a command, to all controllers."""

    id: Name
    state: str  # queued, running, done, failed, cancelled
    done: U64 = 0
    total: U64 = 0
    error: str = ""


class Jobs(Message, tag="jobs"):
    request: U64 = 0
    after: str = ""


# ---------------------------------------------------------------- agent <-> worker
# The worker binds a ROUTER (ipc) in run_dir, the agent connects a DEALER.


class Attach(Message, tag="attach"):
    """Agent -> worker and agent -> mover, again with each new epoch (`reset_cache`)."""

    instance: Name
    epoch: U64
    data_version: U64 = 0  # as the worker last told it; what the share socket answers


class WorkerState(Message, tag="worker_state"):
    """Worker -> agent, as answer to `Attach` and after every change."""

    rank: U32
    epoch: U64
    data_version: U64
    info: RankInfo
    mover_socket: str = ""  # ipc address of the mover's control socket, "" while there is none
    mover_generation: U32 = 0  # counts the movers of this worker
    local_segments: U32 = (
        0  # usable by this rank itself; `info.usable_segments` is what peers may read
    )
    error: str = ""  # why this rank does not share, for people


class Stored(Message, tag="stored"):
    """Worker -> agent, until it is answered `StoredOk`: gathers have ended.
    Frames: places, counters, results (u8: 1 good)."""

    rank: U32
    job: U64
    seconds: Seconds = 0.0


class StoredOk(Message, tag="stored_ok"):
    """Agent -> worker: this job's `Stored` has come."""

    job: U64


class Replace(Message, tag="replace"):
    """Agent -> worker: this mover does not end READs that are long past their deadlines, nor
    itself; only the end of its process ends them for certain."""

    mover_generation: U32  # as in `WorkerState`; another one lives on


class Alarm(Message, tag="alarm"):
    """Worker or mover -> agent: something that must not happen has happened."""

    rank: U32
    kind: str
    text: str


# ---------------------------------------------------------------- agent <-> mover
# The mover binds a ROUTER (ipc) in run_dir, the agent connects a DEALER.


class MoverState(Message, tag="mover_state"):
    """Mover -> agent and mover -> worker, as answer to `Attach` and after every change."""

    rank: U32
    epoch: U64
    nixl_metadata: bytes = b""
    share_socket: str = ""
    stream_address: str = ""
    rdma: bool = False
    segments: U32 = 0  # that metadata and share socket cover: what may be announced as usable
    error: str = ""  # why NIXL is missing, for people
    versions: dict[str, str] = {}


class PullPeer(msgspec.Struct, omit_defaults=True):
    """The rank to read from, as last told by the controller."""

    instance: str
    epoch: U64
    data_version: U64
    info: RankInfo


class Pull(Message, tag="pull"):
    """Read a peer's slots into reserved ones.

    Frames: keys, remote places, remote counters, own places, own counters. `deadline` is seconds
    from receipt. Answered by one `Pulled`, at the deadline at the latest. Where the peer's ranks
    have other heads, `peer` and `others` together have ours; a chunk is as good as the worst of
    what it is read from.
    """

    job: U64
    peer: PullPeer
    deadline: Seconds
    fingerprint: U64  # of our layout; each header must have it, or that of the peer's heads
    others: list[PullPeer] = []  # further ranks of the same instance


class PullResult:
    """Per chunk, a u8 in `Pulled`'s frame."""

    GOOD = 0
    GONE = 1  # another generation, or magic 0
    DIGEST = 2  # table, segment or header checksum wrong
    INCOMPATIBLE = 3  # another layout or version
    TIMEOUT = 4  # the READ may still land: the place is in limbo
    PEER_DEAD = 5  # the READ or the post failed
    MOVER_DOWN = 6
    CAUSES = (
        "hit_peer",
        "gone",
        "digest",
        "incompatible",
        "pull_timeout",
        "peer_dead",
        "mover_down",
    )


class Pulled(Message, tag="pulled"):
    """Frames: results (u8 each, `PullResult`), in the order of `Pull`'s keys."""

    rank: U32
    job: U64
    seconds: Seconds = 0.0
    bytes: U64 = 0
    stale: bool = False  # the peer's data version or metadata is out of date: fetch `Peer` again


class Limbo(Message, tag="limbo"):
    """Agent -> mover: does this job still READ? An answer may have been lost with its connection.
    If it does not, `limbo_ended`, and a pull of that number that comes later is not begun."""

    job: U64


class LimboEnded(Message, tag="limbo_ended"):
    """The READs of a job that timed out have ended on this rank; its places may be used again."""

    rank: U32
    job: U64


class Connect(Message, tag="connect"):
    """Agent -> mover: connect ahead of need."""

    peer: PullPeer


class Forget(Message, tag="forget"):
    """Agent -> mover: this peer's life is over."""

    instance: str
    epoch: U64


# ---------------------------------------------------------------- worker <-> mover
# A SOCK_SEQPACKET pair, made before the mover is spawned. The worker sends `MoverConfig` first,
# then `Segments`, `Attach` and `Stop`; the mover sends `MoverState`. The worker's end ends both.


class MoverConfig(Message, tag="mover_config"):
    """What a mover is told once. The pool is mapped at its own address, always."""

    rank: U32
    agent: Name  # of NIXL; never used twice
    control_socket: str  # path of the ROUTER to bind
    share_socket: str
    pool_address: U64
    slots: U64
    segment_slots: U64
    granule_bytes: U64
    layouts: list[str]  # of this rank, by cache group
    usable_segments: U32 = 0  # they follow at once: no MoverState before they are there
    data_interface: str = "lo"
    uids: list[U32] = []  # that may map the pool, beside the mover's own
    limbo_seconds: Seconds = 60.0  # past either the mover ends, and with it the READs
    limbo_share: Seconds = 1 / 16  # of the pool's slots


class Segments(Message, tag="segments"):
    """Worker -> mover: segments `first` on are usable; a writable descriptor each (SCM_RIGHTS)."""

    first: U32
    count: U32


class Stop(Message, tag="stop"):
    """Worker -> mover: end."""


class Ping(Message, tag="ping"):
    request: U64 = 0


class Pong(Message, tag="pong"):
    request: U64 = 0


# ---------------------------------------------------------------- share socket
# A unix SOCK_SEQPACKET socket in run_dir, mode 0600: one request, one answer, then closed.


class Share(Message, tag="share"):
    """A peer on this host wants to map the pool."""

    instance: Name  # the holder it means
    epoch: U64
    rank: U32
    first: U32 = 0  # segments from here on


class Shared(Message, tag="shared"):
    """With one read-only descriptor per segment by SCM_RIGHTS (at most 64, `first` on)."""

    epoch: U64
    rank: U32
    data_version: U64
    segment_bytes: list[U64] = []
    first: U32 = 0
    error: str = ""


AnyMessage = Union[
    Register, Welcome, Refused, Unsupported, Ranks, Announce, Retract, Heartbeat, HeartbeatOk,
    Resync, SyncSlice, SyncEnd, Leave, Left, Touched, Probe, ProbeOk, Locate, Located, Peer,
    PeerInfo, Status, StatusInfo, Lookup, LookupInfo, Route, Routed, Instances, InstancesInfo,
    Controllers, ControllersInfo, Prefixes, PrefixesInfo, Subscribe, Events, Command, Job, Jobs,
    Attach, WorkerState, Stored, StoredOk, Replace, Alarm, MoverState, Pull, Pulled, Limbo,
    LimboEnded, Connect, Forget, MoverConfig, Segments, Stop, Ping, Pong, Share, Shared,
]  # fmt: skip
