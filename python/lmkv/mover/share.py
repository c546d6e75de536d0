"""The share socket: a peer on this host gets read-only descriptors of the pool's segments.

A unix SOCK_SEQPACKET socket in `run_dir`, mode 0600. The peer's uid (SO_PEERCRED) must be the
mover's or an allowed one; it names instance, epoch and rank, and gets one `Shared` with at most 64
descriptors, from `first` on; of a pool in a GPU's memory, its CUDA IPC handle. A peer that says
nothing is dropped after a second, and never waited for.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
from collections.abc import Callable

from lmkv.core import wire
from lmkv.core.messages import GpuSegment, Share, Shared

FDS_AN_ANSWER = 64
CLIENTS = 64  # under way at once; more are refused
PATIENCE = 1.0  # seconds


def peer_uid(connection: socket.socket) -> int:
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", raw)[1])


class ShareServer:
    """`descriptors` are writable memfds, the caller's; peers get others, opened read-only."""

    def __init__(self, path: str, rank: int, uids: list[int], clock: Callable[[], float]) -> None:
        self.path = path
        self.rank = rank
        self.instance = ""
        self.epoch = 0
        self.data_version = 0
        self._uids = {os.getuid(), *uids}
        self._clock = clock
        self._readonly: list[int] = []
        self._bytes: list[int] = []
        self._gpu: GpuSegment | None = None
        self._clients: dict[int, tuple[socket.socket, float]] = {}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.path.exists(path) and stat.S_ISSOCK(os.stat(path).st_mode):
            os.unlink(path)  # of the mover before this one, which has ended
        self._listener.bind(path)
        os.chmod(path, 0o600)
        self._listener.listen(16)
        self._listener.setblocking(False)

    def add_segment(self, fd: int) -> None:
        self._readonly.append(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC))
        self._bytes.append(os.fstat(fd).st_size)

    def share_gpu(self, segment: GpuSegment) -> None:
        self._gpu = segment
        self._bytes = [segment.size]

    def fileno(self) -> int:
        return self._listener.fileno()

    def accept(self) -> int | None:
        """The new client's descriptor, to be watched; None: refused, or gone again."""
        try:
            client, _ = self._listener.accept()
        except OSError:
            return None
        if peer_uid(client) not in self._uids or len(self._clients) >= CLIENTS:
            client.close()
            return None
        client.setblocking(False)
        self._clients[client.fileno()] = client, self._clock() + PATIENCE
        return client.fileno()

    def clients(self) -> set[int]:
        """Descriptors of those that were accepted and have not been served."""
        return set(self._clients)

    def serve(self, fd: int) -> None:
        """Answer a client that has become readable, and close it."""
        client, _ = self._clients.pop(fd)
        with client:
            try:
                answer, fds = self.answer(client.recv(65536))
                socket.send_fds(client, [wire.encode(answer)[0]], fds)
            except OSError:
                pass  # it has gone, or reads nothing: its own deadline tells it

    def answer(self, request: bytes) -> tuple[Shared, list[int]]:
        refused = Shared(self.epoch, self.rank, self.data_version)
        try:
            message, _ = wire.decode([request])
        except wire.WireError as error:
            refused.error = str(error)
            return refused, []
        if not isinstance(message, Share):
            refused.error = f"{type(message).__name__} is not served here, only Share is"
        elif (message.instance, message.epoch, message.rank) != (
            self.instance,
            self.epoch,
            self.rank,
        ):
            refused.error = (
                f"this is instance {self.instance!r}, epoch {self.epoch:016x}, rank {self.rank}, "
                f"not {message.instance!r}, {message.epoch:016x}, {message.rank}"
            )
        else:
            last = message.first + FDS_AN_ANSWER
            answer = Shared(
                self.epoch, self.rank, self.data_version, list(self._bytes), message.first
            )
            if self._gpu is not None:
                answer.handle, answer.probe = self._gpu.handle, self._gpu.probe
            return answer, self._readonly[message.first : last]
        return refused, []

    def expired(self) -> list[int]:
        """Drops clients that have said nothing in time; their descriptors, no longer watched."""
        now = self._clock()
        late = [fd for fd, (_, end) in self._clients.items() if now >= end]
        for fd in late:
            self._clients.pop(fd)[0].close()
        return late

    @property
    def waiting(self) -> bool:
        return bool(self._clients)

    def close(self) -> None:
        self._listener.close()
        if os.path.exists(self.path):
            os.unlink(self.path)
