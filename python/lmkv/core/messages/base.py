"""What every message is made of."""

from __future__ import annotations

from typing import Annotated

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
Addresses = Annotated[list[Annotated[str, Meta(max_length=256)]], Meta(max_length=16)]
Name = Annotated[str, Meta(min_length=1, max_length=256)]


class Message(msgspec.Struct, omit_defaults=True, tag_field="type", tag=str.lower):
    """Base of all messages: the tag is the class name in lower case unless given."""


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
    tier: U8 = 0  # of the pool and its places: 0 host, 1 a GPU's memory
    heads: list[tuple[U32, U32]] = []  # by cache group: first KV head of the model, how many
