"""The share socket: a unix SOCK_SEQPACKET socket in run_dir, mode 0600.

One request, one answer, then it is closed.
"""

from __future__ import annotations

from typing import Union

from lmkv.core.messages.base import U32, U64, Message, Name


class Share(Message, tag="share"):
    """A peer on this host wants to map the pool."""

    instance: Name  # the holder it means
    epoch: U64
    rank: U32
    first: U32 = 0  # segments from here on


class Shared(Message, tag="shared"):
    """With one read-only descriptor per segment by SCM_RIGHTS (at most 64, `first` on); or, of a
    pool in a GPU's memory, with the handle of its one segment."""

    epoch: U64
    rank: U32
    data_version: U64
    segment_bytes: list[U64] = []
    first: U32 = 0
    error: str = ""
    handle: bytes = b""  # CUDA IPC's
    probe: bytes = b""  # what lies behind the last slot there: whoever maps it must find it


ShareMessage = Union[Share, Shared]
