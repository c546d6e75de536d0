"""Agent and worker. The worker binds a ROUTER (ipc in run_dir, or TCP), the agent a DEALER."""

from __future__ import annotations

from typing import Union

from lmkv.core.messages.base import U32, U64, Message, Name, RankInfo, Seconds


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
    mover_socket: str = ""  # address of the mover's control socket, "" while there is none
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


class Check(Message, tag="check"):
    """Agent -> worker: digest these readable slots again, when there is nothing better to do.
    Frames: keys, places, counters."""

    job: U64
    epoch: U64


class Checked(Message, tag="checked"):
    """Worker -> agent. Frames: results (u8 each, `PullResult`'s first four)."""

    rank: U32
    job: U64


WorkerMessage = Union[Attach, WorkerState, Stored, StoredOk, Replace, Alarm, Check, Checked]
