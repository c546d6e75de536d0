"""Controller and instance: registering, the stream of slots, locates."""

from __future__ import annotations

from typing import Annotated, Union

import msgspec
from msgspec import Meta

from lmkv.core.messages.base import (
    MAX_KEYS,
    U32,
    U64,
    Addresses,
    Message,
    Name,
    RankInfo,
    Seconds,
)


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
    chunk_tokens: Annotated[int, Meta(ge=1, le=1 << 20)]
    ranks: list[RankInfo]
    data_version: U64 = 0
    model: str = ""
    serving_url: str = ""
    dp_rank: int = 0
    group_specs: list[str] = []
    version: str = ""  # of the lmkv package
    controllers: Addresses = []  # that it uses, the first 16


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
    `unknown_instance`, `unknown_model`, `warming`; of commands also `unavailable`, `busy`,
    `timeout`, `unasked`, `failed`, `unknown_request`; of jobs also `unknown_prefix`,
    `unknown_job`, `conflict`, `ended`.
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
    """The instance's ranks have changed (mover restarted, segments became usable), or its
    controllers."""

    epoch: U64
    data_version: U64
    ranks: list[RankInfo]
    controllers: Addresses = []


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
    retired_ages: list[U64] = []  # slots retired for room since, by `core/metrics.py`'s AGES
    retired_seconds: Seconds = 0.0  # the sum of these ages
    peer_bytes: dict[str, U64] = {}  # that came from peers since the last heartbeat; of few names


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


StateMessage = Union[
    Register,
    Welcome,
    Refused,
    Unsupported,
    Ranks,
    Announce,
    Retract,
    Heartbeat,
    HeartbeatOk,
    Resync,
    SyncSlice,
    SyncEnd,
    Leave,
    Left,
    Touched,
    Probe,
    ProbeOk,
    Locate,
    Located,
    Peer,
    PeerInfo,
]
