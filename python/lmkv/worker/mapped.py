"""Same-host peers' pools, mapped read-only: map() -> scatter from it -> release; forget() unmaps.

A peer's mover hands out read-only descriptors on its share socket; the socket must belong to an
allowed user and answer with the epoch and rank that we mean, and seals and sizes are checked before
a byte is mapped. A pool in a GPU's memory is opened by its CUDA IPC handle, by the engine's own
driver, and read only when what lies behind its last slot is what the peer's worker has written
there: this is the path's probe, each time that a pool is opened. A map is kept per (instance,
epoch, rank) and grown when the peer has more segments; a map keeps a dead holder's memory alive, so
it goes when the peer's life is over, which forget() is told or drop_dead() finds out.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from lmkv import _native
from lmkv.core import wire
from lmkv.core.geometry import DEVICE, GRANULES_A_SLOT
from lmkv.core.messages import PullPeer, Share, Shared

FDS_AN_ANSWER = 64
MAX_ANSWER = 1 << 20
MappedPool: TypeAlias = "_native.PoolMap | _native.GpuPool"


class MapError(RuntimeError):
    """The peer cannot be mapped; `cause` is one of core/causes.py, the text is for people."""

    def __init__(self, cause: str, text: str) -> None:
        super().__init__(text)
        self.cause = cause


@dataclass
class _Mapping:
    lock: threading.Lock = field(default_factory=threading.Lock)  # held while it grows
    pool: MappedPool | None = None
    users: int = 0
    over: bool = False  # unmap when the last user has gone
    peer: PullPeer | None = None  # as last mapped
    missing: bool = False  # when it was last looked for


class MappedPeers:
    """Thread-safe. A peer whose layouts are not ours is incompatible before it comes here."""

    def __init__(
        self,
        granule_bytes: int,
        deadline: float = 1.0,
        uids: tuple[int, ...] = (),
        closing: Callable[[MappedPool], None] = lambda pool: None,
        open_gpu: Callable[[bytes, int], _native.GpuMemory] | None = None,
    ) -> None:
        """`open_gpu(handle, bytes)`: memory of a GPU. RuntimeError."""
        self._granule_bytes = granule_bytes
        self._deadline = deadline
        self._open_gpu = open_gpu
        self._closing = closing  # hears of a pool before it is unmapped
        self._uids = {os.getuid(), *uids}
        self._lock = threading.Lock()
        self._peers: dict[tuple[str, int, int], _Mapping] = {}

    @contextlib.contextmanager
    def map(self, peer: PullPeer, granule_bytes: int = 0) -> Iterator[MappedPool]:
        """The peer's pool, with all segments that `peer` names, for the length of the block; its
        granules have our size, or `granule_bytes` and more where its rank has other heads.

        MapError: `peer_dead` when nobody or another answers, `incompatible` for other sizes.
        """
        self._check_granules(peer, granule_bytes)
        key = peer.instance, peer.epoch, peer.info.rank
        with self._lock:
            mapping = self._peers.setdefault(key, _Mapping())
            mapping.users += 1
        try:
            with mapping.lock:
                if mapping.pool is None:
                    mapping.pool = self._new(peer)
                if isinstance(mapping.pool, _native.PoolMap):
                    self._grow(mapping.pool, peer)
                mapping.peer = peer
            yield mapping.pool
        finally:
            with self._lock:
                mapping.users -= 1
                self._unmap_unused(key, mapping)

    def forget(self, instance: str, epoch: int) -> None:
        """That life is over: its maps go now, or with their last user."""
        with self._lock:
            for key, mapping in list(self._peers.items()):
                if key[:2] == (instance, epoch):
                    mapping.over = True
                    self._unmap_unused(key, mapping)

    def drop_dead(self) -> int:
        """Forget the lives for which twice in a row nobody answers, or another life does; how many
        there were. One that is stopped or slow can still be read, and one whose mover restarts is
        there again soon."""
        with self._lock:
            known = [(key, m, m.peer) for key, m in self._peers.items() if m.peer is not None]
        dead = 0
        for key, mapping, peer in known:
            missing = self._missing(peer)
            with self._lock:
                dead += missing and mapping.missing and not mapping.over
                mapping.over |= missing and mapping.missing
                mapping.missing = missing
                self._unmap_unused(key, mapping)
        return dead

    def visit(self, do: Callable[[MappedPool], None]) -> None:
        """`do` for each pool, which stays mapped meanwhile."""
        with self._lock:
            pools = [(key, m) for key, m in self._peers.items() if m.pool is not None]
            for _, mapping in pools:
                mapping.users += 1
        try:
            for _, mapping in pools:
                if mapping.pool is not None:
                    do(mapping.pool)
        finally:
            with self._lock:
                for key, mapping in pools:
                    mapping.users -= 1
                    self._unmap_unused(key, mapping)

    def __len__(self) -> int:
        with self._lock:
            return len(self._peers)

    def close(self) -> None:
        with self._lock:
            for key, mapping in list(self._peers.items()):
                mapping.over = True
                self._unmap_unused(key, mapping)

    def _unmap_unused(self, key: tuple[str, int, int], mapping: _Mapping) -> None:
        empty = mapping.pool is None or mapping.pool.segments == 0  # nothing came of it
        if mapping.users or not (mapping.over or empty):
            return
        if mapping.pool is not None:
            self._closing(mapping.pool)
            mapping.pool.close()
            mapping.pool = None
        if self._peers.get(key) is mapping:
            del self._peers[key]

    def _check_granules(self, peer: PullPeer, least: int) -> None:
        """Else a slot's end might be read beyond the map."""
        found, ours = peer.info.granule_bytes, self._granule_bytes
        if found < least or (not least and found != ours):
            raise MapError(
                "incompatible",
                f"{peer.instance}: granules of {found} bytes, here {least or ours}",
            )

    def _new(self, peer: PullPeer) -> MappedPool:
        info = peer.info
        if info.tier == DEVICE:
            return self._open(peer)
        try:
            return _native.PoolMap(
                info.granule_bytes,
                info.granules // GRANULES_A_SLOT,
                info.segment_granules // GRANULES_A_SLOT,
            )
        except ValueError as error:
            raise MapError("incompatible", f"{peer.instance}: {error}") from None
        except RuntimeError as error:
            raise MapError("no_room", f"{peer.instance}: {error}") from None

    def _open(self, peer: PullPeer) -> _native.GpuPool:
        """A pool in a GPU's memory, whose right bytes are seen here."""
        if self._open_gpu is None:
            raise MapError("incompatible", f"{peer.instance}: its pool is in a GPU's memory")
        answer = self._answer(peer)
        slots, granule = peer.info.granules // GRANULES_A_SLOT, peer.info.granule_bytes
        size = answer.segment_bytes[0] if answer.segment_bytes else 0
        memory = None
        try:
            memory = self._open_gpu(answer.handle, size)
            pool = _native.GpuPool(memory, granule, slots)
            found = memory.read(peer.info.granules * granule, len(answer.probe))
            if not answer.probe or found != answer.probe:
                raise RuntimeError("other bytes than its pool's are seen here")
        except (RuntimeError, ValueError) as error:
            if memory is not None:
                memory.close()
            text = f"{peer.instance}: its GPU's memory is not shared with this engine: {error}"
            raise MapError("incompatible", text) from None
        return pool

    def _answer(self, peer: PullPeer) -> Shared:
        try:
            answer, fds = self._ask(peer, 0)
        except OSError as error:
            text = f"{peer.info.share_socket}: {error or 'no answer'}"
            raise MapError("peer_dead", text) from None
        for fd in fds:
            os.close(fd)
        if not answer.handle:
            raise MapError("peer_dead", f"{peer.info.share_socket} answered without a GPU's handle")
        return answer

    def _grow(self, pool: _native.PoolMap, peer: PullPeer) -> None:
        while pool.segments < peer.info.usable_segments:
            fds = self._descriptors(peer, pool.segments)
            try:
                for fd in fds:
                    pool.add_segment(fd)
            except (RuntimeError, ValueError) as error:
                raise MapError("incompatible", f"{peer.instance}: {error}") from None
            finally:
                for fd in fds:
                    os.close(fd)

    def _missing(self, peer: PullPeer) -> bool:
        try:
            for fd in self._ask(peer, 0)[1]:
                os.close(fd)
        except (ConnectionRefusedError, FileNotFoundError, MapError):
            return True
        except OSError:  # somebody is there, and slow
            return False
        return False

    def _descriptors(self, peer: PullPeer, first: int) -> list[int]:
        try:
            return self._ask(peer, first)[1]
        except OSError as error:
            text = f"{peer.info.share_socket}: {error or 'no answer'}"
            raise MapError("peer_dead", text) from None

    def _ask(self, peer: PullPeer, first: int) -> tuple[Shared, list[int]]:
        """OSError: nobody answers. MapError: not who we mean."""
        path = peer.info.share_socket
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.settimeout(self._deadline)
            fds: list[int] = []
            try:
                client.connect(path)
                self._check_user(client, path)
                ask = Share(peer.instance, peer.epoch, peer.info.rank, first)
                client.sendall(wire.encode(ask)[0])
                data, fds, _, _ = socket.recv_fds(
                    client, MAX_ANSWER, FDS_AN_ANSWER, socket.MSG_CMSG_CLOEXEC
                )
                return self._checked(peer, data, first, list(fds)), list(fds)
            except MapError:
                for fd in fds:
                    os.close(fd)
                raise

    def _check_user(self, client: socket.socket, path: str) -> None:
        raw = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        uid = struct.unpack("3i", raw)[1]
        if uid not in self._uids:
            raise MapError("peer_dead", f"{path} belongs to user {uid}, who is not allowed")

    def _checked(self, peer: PullPeer, data: bytes, first: int, fds: list[int]) -> Shared:
        path = peer.info.share_socket
        try:
            answer = wire.decode([data])[0]
        except wire.WireError as error:
            raise MapError("peer_dead", f"{path}: {error}") from None
        if not isinstance(answer, Shared):
            raise MapError("peer_dead", f"{path} answered {type(answer).__name__}")
        if answer.error:
            raise MapError("peer_dead", f"{path}: {answer.error}")
        if (answer.epoch, answer.rank, answer.first) != (peer.epoch, peer.info.rank, first):
            raise MapError(
                "peer_dead",
                f"{path}: epoch {answer.epoch:016x}, rank {answer.rank} answered for "
                f"{peer.epoch:016x}, {peer.info.rank}",
            )
        if not fds and not answer.handle:
            raise MapError(
                "peer_dead",
                f"{path} has {len(answer.segment_bytes)} segments, "
                f"{peer.info.usable_segments} were announced",
            )
        return answer
