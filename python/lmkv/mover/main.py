"""The mover's process: `python -m lmkv.mover.main FD`, FD being its end of the worker's socketpair.

MoverConfig -> the pool's address -> share and control sockets -> NIXL -> segments -> MoverState.
Then one thread serves agent, worker and peers, and the engine's own threads pull. Without NIXL it
goes on, not pullable, and says why. Of a pool in a GPU's memory it tells peers on this host the
handle at once, by which their engines read, and opens it for NIXL meanwhile (gpu.py). What it
cannot go on without ends it with one sentence; the worker lives, and starts another.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import sys
import threading
import time

import zmq

from lmkv import __version__, _native
from lmkv.core import messages, wire, zstd
from lmkv.core.geometry import DEVICE, HOST
from lmkv.core.keyfiles import Pair
from lmkv.core.messages import Attach, GpuSegment, Message, MoverConfig, MoverState, Segments
from lmkv.core.rank_sockets import Place, RankSocket
from lmkv.mover import transport
from lmkv.mover.codec import Codec
from lmkv.mover.gpu import Opening
from lmkv.mover.peers import Peers
from lmkv.mover.pulls import Answer, Pulls
from lmkv.mover.share import ShareServer

MAX_MESSAGE = 1 << 16
AGENTS = 8  # told of changes; an agent that has gone costs nothing
LINGER_MS = 200  # that the last answers get
DRAIN = 1.0  # seconds that READs under way get when the worker ends


class Fatal(Exception):
    """The mover ends; the text is its last sentence."""


class Mover:
    def __init__(self, worker: socket.socket) -> None:
        self._worker = worker
        self._config = self._first_message()
        config = self._config
        self._segments = 0  # that are shared
        self._pool = self._map(config) if config.tier == HOST else None
        try:
            self._share = ShareServer(config.share_socket, config.rank, config.uids, time.monotonic)
            self._context = zmq.Context()
            # After a pause of ours the agent comes back before its old connection is noticed to be
            # gone; the new one is the agent.
            options: dict[int, int] = {zmq.ROUTER_HANDOVER: 1}
            where = _place(config)
            self._bound = RankSocket(self._context, config.control_socket, where, options)
            self._control = self._bound.socket
        except (OSError, zmq.ZMQError) as error:
            raise Fatal(
                f"sockets {config.share_socket} and "
                f"{config.control_host or config.control_socket}: {error}"
            ) from None
        self._epoch = 0
        self._agents: transport.Agents | None = None
        self._engine: _native.PullEngine | None = None
        self._error = ""
        self._versions = {"lmkv": __version__}
        with contextlib.suppress(zstd.ZstdError):  # compressed slots are incompatible then
            self._versions["zstd"] = zstd.load()
        self._known: list[bytes] = []  # routing ids of agents, the latest last
        self._peers = Peers(config.rank, config.layouts, config.granule_bytes)
        self._poller = zmq.Poller()
        self._opening: Opening | None = None  # of a pool in a GPU's memory
        self._pool_address = 0  # there, once it is opened
        # Segments to be faulted in.
        self._added: queue.SimpleQueue[tuple[_native.PoolMap, int]] = queue.SimpleQueue()
        threading.Thread(target=self._fault_in, name="lmkv-faults", daemon=True).start()
        self._running = True
        self._over_limbo = False
        if self._pool is not None:
            self._start_nixl(self._pool)
        self._pulls = Pulls(config.rank, self._engine, self._peers)
        self._codec = Codec(config.rank, self._pool, config.layouts, config.granule_bytes)

    @staticmethod
    def _map(config: MoverConfig) -> _native.PoolMap:
        try:
            return _native.PoolMap(
                config.granule_bytes,
                config.slots,
                config.segment_slots,
                config.pool_address,
                writable=True,
            )
        except RuntimeError as error:
            raise Fatal(
                f"the pool's address {config.pool_address:#x} is not free: {error}"
            ) from None

    def _first_message(self) -> MoverConfig:
        message, _ = self._receive()
        if not isinstance(message, MoverConfig):
            raise Fatal(f"the worker's first message is {type(message).__name__}, not MoverConfig")
        return message

    def _start_nixl(self, pool: _native.PoolMap) -> None:
        try:
            self._agents = self._open_agents()
        except transport.NixlError as error:
            self._error = str(error)
        else:
            self._engine = _native.PullEngine(self._agents.pull, pool)

    def _open_agents(self) -> transport.Agents:
        """NixlError: there are none. Fatal: there are, and nobody may reach them."""
        try:
            library = transport.find_library()
            self._versions[library.package] = library.version
            if ports := os.environ.get("UCX_TCP_PORT_RANGE"):
                transport.check_ports(self._config.data_interface, ports)
            agents = transport.open_agents(library, self._config.agent)
            transport.self_test(agents)
            transport.check_listeners(self._config.data_interface, self._bound.listens_at)
        except transport.NixlError as error:
            if set(transport.listeners()) - {self._bound.listens_at}:  # only the end closes them
                raise Fatal(str(error)) from None
            raise
        return agents

    # ------------------------------------------------------------ worker

    def _receive(self) -> tuple[Message, list[int]]:
        data, fds, _, _ = socket.recv_fds(self._worker, MAX_MESSAGE, 64, socket.MSG_CMSG_CLOEXEC)
        if not data:
            raise EOFError
        try:
            return wire.decode([data])[0], list(fds)
        except wire.WireError as error:
            raise Fatal(f"from the worker: {error}") from None

    def _from_worker(self) -> None:
        message, fds = self._receive()
        if isinstance(message, Segments):
            self._add_segments(message, fds)
        elif isinstance(message, GpuSegment):
            self._share_gpu(message, fds)
        elif isinstance(message, Attach):
            self._attach(message)
            self._tell([])  # from now on it answers peers for this life
        elif isinstance(message, messages.Stop):
            self._running = False
        else:
            raise Fatal(f"from the worker: {type(message).__name__} is not served here")

    def _add_segments(self, message: Segments, fds: list[int]) -> None:
        pool = self._pool
        if pool is None or message.first != self._segments or message.count != len(fds):
            raise Fatal(
                f"segments {message.first} .. {message.first + message.count - 1} with {len(fds)} "
                f"descriptors, segment {self._segments} was expected"
            )
        for fd in fds:
            try:
                number = pool.add_segment(fd)
            except (RuntimeError, ValueError) as error:
                raise Fatal(f"segment {self._segments}: {error}") from None
            self._segments += 1
            self._share.add_segment(fd)
            self._register(number, pool.slot_bytes, os.fstat(fd).st_size)
            os.close(fd)
            self._added.put((pool, number))
        self._tell(self._known)

    def _share_gpu(self, message: GpuSegment, fds: list[int]) -> None:
        if self._config.tier != DEVICE or len(fds) != 1:
            raise Fatal(f"a GPU's memory with {len(fds)} descriptors, tier {self._config.tier}")
        self._share.share_gpu(message)
        self._segments = 1
        self._tell(self._known)
        with open(fds[0], "rb") as image:
            self._opening = Opening(self._config, message, image.read(), self._open_agents)
        self._poller.register(self._opening.fileno(), zmq.POLLIN)

    def _opened(self, opening: Opening) -> None:
        self._poller.unregister(opening.fileno())
        self._opening = None
        found = opening.result()
        if isinstance(found, str):
            self._error = found
        else:
            self._pool_address, self._agents, self._engine = found.pool.address, *found[1:]
            self._pulls = Pulls(self._config.rank, self._engine, self._peers)
            self._poller.register(self._engine.fd, zmq.POLLIN)
        self._tell(self._known)

    def _fault_in(self) -> None:
        """A thread of the least priority: pulls work without it, the first ones slower."""
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        while True:
            pool, number = self._added.get()
            pool.fault_in(number)

    def _register(self, segment: int, slot_bytes: int, length: int) -> None:
        if self._agents is None:
            return
        config = self._config
        address = config.pool_address + segment * config.segment_slots * slot_bytes
        try:
            self._agents.serve.register(address, length)
            self._agents.pull.register(address, length)
        except RuntimeError as error:
            raise Fatal(f"segment {segment} of the pool: {error}") from None

    def _attach(self, message: Attach) -> None:
        self._epoch = self._share.epoch = message.epoch
        self._share.instance = message.instance
        self._share.data_version = max(message.data_version, 0)

    # ------------------------------------------------------------ agent

    def _from_agent(self) -> None:
        while True:
            try:
                identity, *frames = self._control.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                message, arrays = wire.decode(frames)
                answers = self._serve(identity, message, arrays)
            except wire.WireError as error:
                refused: Message = messages.Refused("field", str(error))
                if error.name and "is not known" in str(error):
                    refused = messages.Unsupported(error.name)
                answers = [(identity, wire.encode(refused))]
            self._send(answers)

    def _serve(self, identity: bytes, message: Message, arrays: list[bytes]) -> list[Answer]:
        if isinstance(message, messages.Pull):
            return self._pulls.handle(identity, message, arrays, self._epoch)
        if isinstance(message, Attach):
            self._attach(message)
            if identity not in self._known:
                self._known = [*self._known[1 - AGENTS :], identity]
            return [(identity, wire.encode(self._state()))]
        if isinstance(message, messages.Connect):
            if self._engine is not None and message.peer.info.nixl_metadata:
                self._engine.connect(self._peers.native(message.peer))
        elif isinstance(message, messages.Forget):
            for peer in self._peers.forget(message.instance, message.epoch):
                if self._engine is not None:
                    self._engine.forget(peer)
        elif isinstance(message, messages.Limbo):
            return self._pulls.limbo(identity, message.job)
        elif isinstance(message, (messages.Compress, messages.Rewrite)):
            self._codec.ask(identity, message, arrays, self._epoch)
        elif isinstance(message, messages.Ping):
            return [(identity, wire.encode(messages.Pong(message.request)))]
        else:
            name = str(type(message).__struct_config__.tag)
            return [(identity, wire.encode(messages.Unsupported(name)))]
        return []

    def _send(self, answers: list[Answer]) -> None:
        for identity, frames in answers:
            self._control.send_multipart([identity, *frames])  # an agent that has gone: dropped

    def _state(self) -> MoverState:
        metadata = b"" if self._agents is None else self._agents.serve.metadata()
        return MoverState(
            rank=self._config.rank,
            epoch=self._epoch,
            nixl_metadata=metadata,
            share_socket=self._config.share_socket,
            segments=self._segments,
            error=self._error,
            versions=self._versions,
            control=self._bound.address,
            pool_address=self._pool_address,
        )

    def _tell(self, agents: list[bytes]) -> None:
        """The worker and these, after every change, and when the first segments are there."""
        if self._segments < self._config.usable_segments:
            return
        state = wire.encode(self._state())
        self._worker.send(state[0])
        self._send([(identity, state) for identity in agents])

    # ------------------------------------------------------------ loop

    def run(self) -> None:
        poller = self._poller
        sources = [self._control, self._worker.fileno(), self._share.fileno(), self._codec.fd]
        if self._engine is not None:
            sources.append(self._engine.fd)
        for source in sources:
            poller.register(source, zmq.POLLIN)
        self._tell(self._known)
        while self._running:
            ready = dict(poller.poll(self._patience()))
            if self._engine is not None and self._engine.fd in ready:
                self._send(list(self._pulls.events()))
                if lost := self._engine.lost:
                    raise Fatal(f"the pool in the GPU's memory cannot be reached: {lost}")
            if self._codec.fd in ready:
                self._send(list(self._codec.answers()))
            if self._control in ready:
                self._from_agent()
            if self._worker.fileno() in ready:
                self._from_worker()
            if self._opening is not None and self._opening.fileno() in ready:
                self._opened(self._opening)
            if self._share.fileno() in ready and (client := self._share.accept()) is not None:
                poller.register(client, zmq.POLLIN)
            for fd in self._share.clients() & ready.keys():
                poller.unregister(fd)
                self._share.serve(fd)
            for fd in self._share.expired():
                poller.unregister(fd)
            self._check_limbo()

    def _patience(self) -> int | None:
        """Milliseconds until something must be looked at; None: nothing is pending."""
        limbo = self._engine is not None and self._engine.limbo_slots
        return 100 if limbo or self._share.waiting else None

    def _check_limbo(self) -> None:
        """Only the end of this process ends a READ for certain (DESIGN.md 8)."""
        engine, config = self._engine, self._config
        slots = 0 if engine is None else engine.limbo_slots
        seconds = 0.0 if engine is None else engine.limbo_seconds
        over = slots > config.limbo_share * config.slots or seconds > config.limbo_seconds
        if over and self._over_limbo:
            raise Fatal(
                f"{slots} of {config.slots} slots wait for READs that timed out, the oldest "
                f"{seconds:.1f} s ago: this mover makes room for another"
            )
        self._over_limbo = over  # for one more turn: the agent hears of the timeouts first

    def drain(self) -> None:
        """A reader that dies in the middle of a READ can take the holder's mover with it."""
        end = time.monotonic() + DRAIN
        while self._agents is not None and self._agents.pull.pending and time.monotonic() < end:
            time.sleep(0.005)

    def close(self) -> None:
        self._control.setsockopt(zmq.LINGER, LINGER_MS)
        self._bound.close()
        self._context.destroy(linger=LINGER_MS)
        self._share.close()
        if os.path.exists(self._config.control_socket):
            os.unlink(self._config.control_socket)


def _place(config: MoverConfig) -> Place | None:
    pair = Pair(config.data_public, config.data_secret) if config.data_secret else None
    return Place(config.control_host, pair) if config.control_host else None


def main() -> None:
    _native.die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the worker decides when it ends
    mover = None
    status = 0
    try:
        mover = Mover(socket.socket(fileno=int(sys.argv[1])))
        mover.run()
    except (EOFError, ConnectionError):
        pass  # the worker has ended
    except Fatal as error:
        print(f"lmkv mover: {error}", file=sys.stderr)
        status = 1
    if mover is not None:
        if status == 0:
            mover.drain()
        mover.close()
    sys.stderr.flush()
    os._exit(status)  # UCX is not asked to tidy up: its peers notice either way


if __name__ == "__main__":
    main()
