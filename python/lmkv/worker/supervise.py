"""Keep one mover running: spawn -> config, segments, attach -> `on_state` -> (it dies) -> again.

`Supervisor` runs one thread, which lives as long as the worker: PR_SET_PDEATHSIG counts the thread
that spawned, not the process. A mover that ends is restarted at once, then after 0.1 s doubling to
10 s, always under a new NIXL agent name and control socket; vLLM never waits for it.
"""

from __future__ import annotations

import contextlib
import os
import queue
import secrets
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lmkv import _native
from lmkv.core import ucx, wire
from lmkv.core.backoff import Backoff
from lmkv.core.descriptors import readable
from lmkv.core.messages import (
    Attach,
    GpuSegment,
    Message,
    MoverConfig,
    MoverState,
    Replace,
    Segments,
    Stop,
)
from lmkv.core.rank_sockets import Place
from lmkv.core.waker import Waker
from lmkv.worker.affinity import unpin
from lmkv.worker.visible import one_gpu

# Peers that die one after another may each take a mover along, and others want to be served.
HEALTHY = 1.0  # seconds of a life after which the next mover is started at once
MAX_PATH = 100  # bytes of a unix socket's path, with room to spare
MAX_MESSAGE = 1 << 20
FDS_A_MESSAGE = 64
READY_DEADLINE = 30.0  # seconds from spawn to its first MoverState
STOP_DEADLINE = 3.0
TICK_MS = 1000  # how late a death is seen that does not close the socket


@dataclass(frozen=True)
class MoverSettings:
    """`data_ports` is first-last, at least 64: a port just left cannot be bound for a minute."""

    run_dir: str
    layouts: tuple[str, ...] = ()  # of this rank, by cache group
    data_interface: str = "lo"
    data_ports: str = "20000-29999"
    nixl_tls: str = ""  # UCX_TLS; "": what UCX prefers
    uids: tuple[int, ...] = ()  # other users that may map the pool
    limbo_seconds: float = 60.0
    limbo_share: float = 1 / 16
    control: Place | None = None  # of the mover's control socket; None: in run_dir
    gpu: int | None = None  # that the mover sees, by its number here; None: whichever there are
    gpu_pulls: str = "auto"  # as the setting


def environment(settings: MoverSettings, base: Mapping[str, str]) -> dict[str, str]:
    """The mover's."""
    tls = settings.nixl_tls
    if settings.gpu is None:
        return ucx.environment(settings.data_interface, settings.data_ports, tls, base)
    made = ucx.environment(settings.data_interface, settings.data_ports, ucx.with_gpu(tls), base)
    return made | ucx.WITH_GPU | one_gpu(settings.gpu, base)


def remove_stale_sockets(run_dir: str) -> None:
    """Unlink worker, mover and share sockets that nobody listens on any more."""
    for path in Path(run_dir).iterdir():
        if path.suffix not in (".worker", ".mover", ".share") or not path.is_socket():
            continue
        kind = socket.SOCK_SEQPACKET if path.suffix == ".share" else socket.SOCK_STREAM
        with socket.socket(socket.AF_UNIX, kind) as probe:
            probe.setblocking(False)
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)
            except OSError:  # busy, or not ours: leave it
                pass


class Supervisor:
    """`tag` is 8 hex digits of the instance. `on_state` gets each MoverState, and None when a mover
    has died; it is called from the supervisor's thread and must not block."""

    def __init__(
        self,
        pool: _native.Pool | _native.GpuPool,
        rank: int,
        tag: str,
        settings: MoverSettings,
        on_state: Callable[[MoverState | None], None],
        clock: Callable[[], float] = time.monotonic,
        gpu: GpuSegment | None = None,
        image: bytes = b"",
    ) -> None:
        """`gpu`: what is told of a pool in a GPU's memory; `image`: its kernels."""
        self._gpu = gpu
        self._image = image
        self._pool = pool
        self._rank = rank
        self._tag = tag
        self._settings = settings
        self._on_state = on_state
        self._backoff = Backoff(clock, HEALTHY)
        self._commands: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._waker = Waker()
        self._thread = threading.Thread(target=self._run, name="lmkv-supervisor", daemon=True)
        self._stopping = False
        self._attached: Attach | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._sent = 0  # segments told to this mover
        self.generation = 0  # counts the movers
        for path in (self.share_socket, self._path("99999.mover")):
            if len(os.fsencode(path)) > MAX_PATH:
                raise ValueError(
                    f"run_dir {settings.run_dir!r}: the socket {path!r} has "
                    f"{len(os.fsencode(path))} bytes, at most {MAX_PATH} are allowed"
                )

    def _path(self, end: str) -> str:
        joint = "." if end == "share" else "-"
        return os.path.join(self._settings.run_dir, f"{self._tag}-{self._rank}{joint}{end}")

    @property
    def share_socket(self) -> str:
        return self._path("share")

    @property
    def control_socket(self) -> str:
        """Path of the present mover's control socket."""
        return self._path(f"{self.generation}.mover")

    @property
    def pid(self) -> int | None:
        """Of the present mover."""
        process = self._process
        return None if process is None else process.pid

    # ------------------------------------------------------------ any thread

    def start(self) -> None:
        remove_stale_sockets(self._settings.run_dir)
        self._thread.start()

    def attach(self, instance: str, epoch: int, data_version: int = 0) -> None:
        """What the share socket answers for; told to every later mover too."""
        self._commands.put(Attach(instance, epoch, data_version))
        self._waker.wake()

    def segment_added(self) -> None:
        """The pool has grown."""
        self._waker.wake()

    def replace(self, generation: int) -> None:
        """End this mover, whatever it does; a later one lives on."""
        self._commands.put(Replace(generation))
        self._waker.wake()

    def stop(self) -> None:
        """End the mover, and wait for its end; harmless when repeated."""
        if self._stopping:
            return
        self._stopping = True
        self._waker.wake()
        if self._thread.is_alive():
            self._thread.join(STOP_DEADLINE + 2)

    # ------------------------------------------------------------ the supervisor's thread

    def _run(self) -> None:
        unpin()
        while not self._stopping:
            self._spawn()
            self._watch()
            if self._stopping:
                break
            self._bury()
            self._on_state(None)
            self._pause(self._backoff.died())
        self._end()

    def _spawn(self) -> None:
        self.generation += 1
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket = ours
        self._sent = 0
        self._backoff.born()
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "lmkv.mover.main", str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    env=environment(self._settings, os.environ),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                )
            except OSError as error:  # no process to be had: try again later
                print(f"lmkv: the mover does not start: {error}", file=sys.stderr)
        self._send(self._config())
        if self._attached is not None:
            self._send(self._attached)
        self._send_segments()

    def _config(self) -> MoverConfig:
        settings = self._settings
        pair = settings.control.pair if settings.control else None
        return MoverConfig(
            rank=self._rank,
            agent=f"lmkv-{self._tag}-{self._rank}-{self.generation}-{secrets.token_hex(4)}",
            control_socket=self.control_socket,
            share_socket=self.share_socket,
            pool_address=self._pool.address,
            slots=self._pool.slots,
            segment_slots=self._pool.segment_slots,
            granule_bytes=self._pool.granule_bytes,
            layouts=list(settings.layouts),
            usable_segments=self._pool.segments,
            data_interface=settings.data_interface,
            uids=list(settings.uids),
            limbo_seconds=settings.limbo_seconds,
            limbo_share=settings.limbo_share,
            control_host=settings.control.host if settings.control else "",
            data_public=pair.public if pair else b"",
            data_secret=pair.secret if pair else b"",
            tier=self._pool.tier,
            gpu_pulls=settings.gpu_pulls,
        )

    def _send(self, message: Message, fds: list[int] | None = None) -> bool:
        """False: it has ended, which `_watch` will see too."""
        assert self._socket is not None
        try:
            self._socket.settimeout(STOP_DEADLINE)
            socket.send_fds(self._socket, wire.encode(message), fds or [])
        except OSError:
            return False
        return True

    def _send_segments(self) -> None:
        if not isinstance(self._pool, _native.Pool):
            if self._gpu is not None and self._sent == 0:
                self._sent = int(self._send_gpu(self._gpu))
            return
        while self._sent < self._pool.segments:
            count = min(self._pool.segments - self._sent, FDS_A_MESSAGE)
            fds = [self._pool.segment_fd(self._sent + i) for i in range(count)]
            try:
                if not self._send(Segments(self._sent, count), fds):
                    return
            finally:
                for fd in fds:
                    os.close(fd)
            self._sent += count

    def _send_gpu(self, segment: GpuSegment) -> bool:
        file = os.memfd_create("lmkv-kernels", os.MFD_CLOEXEC)
        with open(file, "wb") as image:
            image.write(self._image)
            image.flush()
            os.lseek(file, 0, os.SEEK_SET)
            return self._send(segment, [file])

    def _watch(self) -> None:
        """Until the mover ends, or we shall."""
        assert self._socket is not None
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._waker.fd, select.POLLIN)
        ready_by: float | None = time.monotonic() + READY_DEADLINE
        while not self._stopping:
            ready = {fd for fd, _ in poll.poll(TICK_MS)}
            if self._waker.fd in ready:
                self._obey()
            if self._socket.fileno() in ready:
                state = self._received()
                if state is None:
                    return
                ready_by = None
                self._on_state(state)
            if self._process is None or self._process.poll() is not None:
                return
            if ready_by is not None and time.monotonic() > ready_by:
                print(f"lmkv: the mover is not ready after {READY_DEADLINE} s", file=sys.stderr)
                return

    def _obey(self) -> None:
        self._waker.clear()
        while not self._commands.empty():
            message = self._commands.get()
            if isinstance(message, Replace):
                self._kill(message.mover_generation)
                continue
            if isinstance(message, Attach):
                self._attached = message
            self._send(message)
        self._send_segments()

    def _kill(self, generation: int) -> None:
        if generation == self.generation and self._process is not None:
            print("lmkv: the mover hangs in READs that timed out: it is replaced", file=sys.stderr)
            self._process.kill()

    def _received(self) -> MoverState | None:
        """None: the mover has ended, or speaks nonsense and shall."""
        assert self._socket is not None
        try:
            data = self._socket.recv(MAX_MESSAGE)
            message = wire.decode([data])[0] if data else None
        except (OSError, wire.WireError):
            return None
        return message if isinstance(message, MoverState) else None

    def _bury(self) -> None:
        """Whatever is left of it; its control socket's path is not used again."""
        process, self._process = self._process, None
        if process is not None:
            if process.poll() is None:
                process.kill()
            process.wait()
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.control_socket)

    def _pause(self, seconds: float) -> None:
        """Back-off, cut short by stop(); other commands are kept for the next mover."""
        end = time.monotonic() + seconds
        while not self._stopping and (left := end - time.monotonic()) > 0:
            if readable(self._waker.fd, left):
                self._waker.clear()
        while not self._commands.empty():
            message = self._commands.get()
            if isinstance(message, Attach):
                self._attached = message

    def _end(self) -> None:
        if self._socket is not None and self._send(Stop()) and self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_DEADLINE)
        self._bury()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.share_socket)
