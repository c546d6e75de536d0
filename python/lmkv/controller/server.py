"""The controller's two ROUTER sockets around a `Registry`.

serve(stop): the loop empties the query socket, then takes one message of the state socket, so that
no flood of announcements delays a lookup; with nothing to do it waits in poll. What is no message
of ours is counted and answered by name. Sends never wait: a connection that does not read loses
messages, and its stream's own checks find that.
"""

from __future__ import annotations

import socket as sockets
import traceback
from collections.abc import Callable
from contextlib import suppress
from math import ceil

import zmq

from lmkv.controller import views
from lmkv.controller.access import Access, reachable
from lmkv.controller.commands import Commands
from lmkv.controller.jobs import JobDesk
from lmkv.controller.registry import Out, Registry, unsupported
from lmkv.controller.texts import Texts
from lmkv.core import wire
from lmkv.core.clock import Clock, monotonic
from lmkv.core.config import ControllerConfig
from lmkv.core.connections import BOUND
from lmkv.core.doorman import Doorman
from lmkv.core.keyfiles import as_server
from lmkv.core.messages import (
    Announce,
    Heartbeat,
    Locate,
    Message,
    Refused,
    Retract,
    SyncEnd,
    SyncSlice,
    Unsupported,
)

IO_THREADS = 4  # what a connection costs grows with their number in a thread
TICKS = 4  # per heartbeat
BACKLOG = 1024  # connections that wait to be accepted: all instances may come back at once
LOCATES = 256  # in a row, before a state message has its turn
NOBLOCK, MORE, READABLE = int(zmq.NOBLOCK), int(zmq.SNDMORE), int(zmq.POLLIN)  # enums are slow
STREAM = {Announce, Retract, SyncSlice, SyncEnd, Heartbeat}  # nearly everything that comes
SWEPT = 1 << 14  # entries at a time, while there is nothing else to do
LACKING = 1  # milliseconds between two looks whether the directory has memory for more


class CannotListen(Exception):
    """The sockets cannot be had; the text is one sentence for the operator."""


class Server:
    """Binds both sockets. Raises CannotListen, ConfigError for keys or an address that are not
    allowed. `say` hears of clients that are not let in."""

    def __init__(
        self,
        config: ControllerConfig,
        clock: Clock = monotonic,
        say: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        self._config = config
        self._clock = clock
        self._say = say
        self.failures = 0  # of answers, by mistakes of ours; the first is told
        self.access = Access(config)
        host = self.access.state_host()
        self._context = zmq.Context(io_threads=IO_THREADS)
        self._doorman: Doorman | None = None
        try:
            if self.access.pair is not None:
                self._doorman = Doorman(self._context, self.access.name_of, say)
            self._state, port = self._listen(host, config.port, "port")
            wanted = config.query_port or (port + 1 if config.port else 0)
            self._query, query_port = self._listen(host, wanted, "query_port")
        except BaseException:
            self.close()
            raise
        self.port, self.query_port = port, query_port
        self.state_address = f"tcp://{host}:{port}"
        self.query_address = f"tcp://{host}:{query_port}"
        self.own_address = f"tcp://{reachable(host)}:{port}"
        self.registry = Registry(config, clock, query_port)
        if not config.controller_id:
            self.registry.name = f"{sockets.gethostname()}-{port}"
        self.commands = Commands(self.registry)
        self._texts = Texts(self.registry, self.commands)
        self._jobs = JobDesk(self.registry, self.commands, self._texts)
        self._next_tick = 0.0
        self._sender = ""  # of the state message that is being heard, where there are keys

    def _listen(self, host: str, port: int, setting: str) -> tuple[zmq.Socket[bytes], int]:
        socket = self._context.socket(zmq.ROUTER)
        options = {
            zmq.LINGER: 0,
            # Who was silent connects again under its old routing id, perhaps before the end of its
            # old connection was noticed here; without this it would be ignored for ever.
            zmq.ROUTER_HANDOVER: 1,
            **BOUND,
            zmq.BACKLOG: BACKLOG,
            zmq.SNDHWM: self._config.queue_messages,
            zmq.RCVHWM: self._config.queue_messages,
            zmq.MAXMSGSIZE: self._config.max_frame_bytes,
            zmq.IPV6: int(":" in host),
        }
        for option, value in options.items():
            socket.setsockopt(option, value)
        as_server(socket, self.access.pair)
        try:
            socket.bind(f"tcp://{host}:{port or '*'}")
        except zmq.ZMQError as error:
            raise CannotListen(
                f"{setting} = {port}: cannot listen at {host}:{port}: {error.strerror}"
            ) from None
        endpoint = socket.getsockopt(zmq.LAST_ENDPOINT)
        assert isinstance(endpoint, bytes)
        return socket, int(endpoint.rstrip(b"\0").rpartition(b":")[2])

    # ------------------------------------------------------------ loop

    def serve(self, stop: Callable[[], bool], tick: Callable[[], None] = lambda: None) -> None:
        """Until `stop()`, which is asked at least every quarter of a second; `tick()` is called
        about as often, and at least once a second."""
        poller = zmq.Poller()
        poller.register(self._query, zmq.POLLIN)
        poller.register(self._state, zmq.POLLIN)
        directory = self.registry.placement.directory
        while not stop():
            self._answer_queries()
            lacking = directory.lacking  # a locate does not wait for memory, a state message does
            heard = lacking or self._hear_one()
            self._time(heard, tick)
            if lacking:
                self._query.poll(LACKING)
            elif not heard:
                idle = directory.sweep(SWEPT)
                poller.poll(ceil(self._wait() * 1000) if idle else 0)

    def close(self) -> None:
        if self._doorman is not None:
            self._doorman.close()
        self._context.destroy(linger=0)

    def _wait(self) -> float:
        wait = min(0.25, max(0.0, self._next_tick - self._clock()))
        if self.registry.placement.pending:
            wait = min(wait, self._config.touched_interval)
        return wait

    def _time(self, busy: bool, tick: Callable[[], None]) -> None:
        self._send(self.registry.touched())
        now = self._clock()
        beat = self._config.heartbeat
        # Ageing comes after hearing what has arrived; under load it waits, though not for ever.
        if now >= self._next_tick and (not busy or now >= self._next_tick + beat / 2):
            self._next_tick = now + min(1.0, beat / TICKS)
            self._send(self.registry.tick() + self.commands.tick())
            tick()
        for connection, events in self.registry.history.due():
            reply(self._state, connection, events)

    def _answer_queries(self) -> None:
        for _ in range(LOCATES):
            if not int(self._query.getsockopt(zmq.EVENTS)) & READABLE:
                return  # asked before every state message: an exception costs more than the rest
            frames = receive(self._query)
            if frames is None:
                return
            self._guard(self._query, frames, self._query_answer)

    def _hear_one(self) -> bool:
        if self._doorman is None:
            frames = receive(self._state)
        else:
            frames, self._sender = receive_from(self._state)
        if frames is None:
            return False
        self._guard(self._state, frames, self._state_answer)
        return True

    def _query_answer(self, frames: list[bytes]) -> None:
        message, arrays = wire.decode(frames[1:])
        if isinstance(message, Locate):
            answer, found = self.registry.locate(message, arrays)
            reply(self._query, frames[0], answer, *found)
        else:
            reply(self._query, frames[0], unsupported(message))

    def _state_answer(self, frames: list[bytes]) -> None:
        message, arrays = wire.decode(frames[1:])
        if type(message) in STREAM:
            self._send(self.registry.hear(frames[0], message, arrays))
            return
        out = None if arrays else self._texts.hear(frames[0], message)
        if out is None:
            out = self._jobs.hear(frames[0], message, arrays, self._sender)
        if out is None:
            out = views.ask(self.registry, frames[0], message, arrays)
        if out is None:
            out = self.commands.hear(frames[0], message, arrays)
        if out is None:
            out = self.registry.hear(frames[0], message, arrays)
        self._send(out)

    def _guard(
        self,
        socket: zmq.Socket[bytes],
        frames: list[bytes],
        answer: Callable[[list[bytes]], None],
    ) -> None:
        """Whatever arrives, the controller goes on."""
        try:
            answer(frames)
        except ValueError as error:  # WireError, and what the native part refuses
            self.registry.bad_messages += 1
            request = asked(frames)
            name = error.name if isinstance(error, wire.WireError) else ""
            said: Message = Refused("field", str(error), request=request)
            if name and "is not known" in str(error):
                said = Unsupported(name, request)
            reply(socket, frames[0], said)
        except Exception as error:  # a mistake of ours: it costs an answer, not the cluster
            text = f"{type(error).__name__} while answering: {error}"
            if not self.failures:
                self._say("".join(traceback.format_exception(error)))
            self.failures += 1
            reply(socket, frames[0], Refused("failed", text, request=asked(frames)))

    def _send(self, out: list[Out]) -> None:
        for connection, message, arrays in out:
            reply(self._state, connection, message, *arrays)


def receive(socket: zmq.Socket[bytes]) -> list[bytes] | None:
    """Routing id and frames, None when nothing is there."""
    try:
        return socket.recv_multipart(zmq.NOBLOCK)
    except zmq.Again:
        return None


def receive_from(socket: zmq.Socket[bytes]) -> tuple[list[bytes] | None, str]:
    """The same, and the name of the client whose keys it came with."""
    try:
        first = socket.recv(zmq.NOBLOCK, copy=False)
    except zmq.Again:
        return None, ""
    return [first.bytes, *socket.recv_multipart(zmq.NOBLOCK)], str(first.get("User-Id"))


def reply(socket: zmq.Socket[bytes], connection: bytes, message: Message, *arrays: bytes) -> None:
    with suppress(zmq.ZMQError):  # it is gone
        *parts, last = [connection, *wire.encode(message, *arrays)]
        for part in parts:
            socket.send(part, NOBLOCK | MORE)
        socket.send(last, NOBLOCK)


def asked(frames: list[bytes]) -> int:
    """The request number of a message that could be read, else 0."""
    try:
        return getattr(wire.decode(frames[1:])[0], "request", 0)
    except wire.WireError:
        return 0
