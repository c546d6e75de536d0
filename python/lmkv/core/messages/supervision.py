"""Worker and mover: a SOCK_SEQPACKET pair, made before the mover is spawned.

The worker sends `MoverConfig` first, then `Segments` or one `GpuSegment`, `Attach` and `Stop`; the
mover sends `MoverState`. The worker's end ends both.
"""

from __future__ import annotations

from typing import Union

from lmkv.core.messages.base import U8, U32, U64, Message, Name, Seconds


class MoverConfig(Message, tag="mover_config"):
    """What a mover is told once. The pool is mapped at its own address, always."""

    rank: U32
    agent: Name  # of NIXL; never used twice
    control_socket: str  # path of the ROUTER to bind, unless there is a host
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
    control_host: str = ""  # address at which the ROUTER binds by TCP, and its keys
    data_public: bytes = b""
    data_secret: bytes = b""
    tier: U8 = 0  # of the pool: 0 host; 1 the memory of the one GPU that the mover sees
    gpu_pulls: str = "auto"  # the setting


class Segments(Message, tag="segments"):
    """Worker -> mover: segments `first` on are usable; a writable descriptor each (SCM_RIGHTS)."""

    first: U32
    count: U32


class GpuSegment(Message, tag="gpu_segment"):
    """Worker -> mover: the pool, in a GPU's memory. Peers on this host are told the handle, and map
    it themselves. With a descriptor (SCM_RIGHTS) of a file that is the kernels' image."""

    handle: bytes  # CUDA IPC's
    size: U64  # bytes
    probe: bytes = b""  # what lies behind the pool's last slot
    bus_id: str = ""  # the GPU's


class Stop(Message, tag="stop"):
    """Worker -> mover: end."""


class Ping(Message, tag="ping"):
    request: U64 = 0


class Pong(Message, tag="pong"):
    request: U64 = 0


SupervisionMessage = Union[MoverConfig, Segments, GpuSegment, Stop, Ping, Pong]
