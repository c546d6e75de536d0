"""Agent and mover. The mover binds a ROUTER (ipc in run_dir, or TCP), the agent a DEALER."""

from __future__ import annotations

from typing import Union

import msgspec

from lmkv.core.messages.base import U32, U64, Message, RankInfo, Seconds


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
    control: str = ""  # address of the control socket


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


class Compress(Message, tag="compress"):
    """Agent -> mover: compress these full slots, when there is nothing better to do, into memory of
    the mover's own, where they stay until their `Rewrite` or the next `Compress`. Frames: keys,
    places, counters. Answered by one `Compressed`."""

    job: U64


class Compressed(Message, tag="compressed"):
    """Frames: results (u8 each, `PullResult`), granules (u8 each, that a compressed slot takes; 0
    where that is not fewer than the full one does)."""

    rank: U32
    job: U64
    error: str = ""  # why nothing can be compressed here, for people


class Rewrite(Message, tag="rewrite"):
    """Agent -> mover: put chunks into reserved places in their other form. A place of 16 granules
    gets the full slot, any other what `Compress` has made. Frames: keys, places, counters, own
    places, own counters; the own ones are the reserved ones. Answered by one `Rewritten`."""

    job: U64


class Rewritten(Message, tag="rewritten"):
    """Frames: results (u8 each, `PullResult`)."""

    rank: U32
    job: U64


class Connect(Message, tag="connect"):
    """Agent -> mover: connect ahead of need."""

    peer: PullPeer


class Forget(Message, tag="forget"):
    """Agent -> mover: this peer's life is over."""

    instance: str
    epoch: U64


MoverMessage = Union[
    MoverState,
    Pull,
    Pulled,
    Limbo,
    LimboEnded,
    Compress,
    Compressed,
    Rewrite,
    Rewritten,
    Connect,
    Forget,
]
