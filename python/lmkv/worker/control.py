"""The worker's socket to its agent: Attach -> WorkerState, and what changes or ends after it.

A ROUTER (`rank_sockets.py`), one thread. The agent that attached last is told; until one has, and
while it cannot be reached, messages wait, and of the state only the present one is ever sent. What
goes out as a connection breaks may be lost, so a store's report is repeated until it is answered.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable

import zmq

from lmkv.core import wire
from lmkv.core.clock import Clock, monotonic
from lmkv.core.messages import (
    Alarm,
    Attach,
    Check,
    Forget,
    Message,
    Replace,
    StoredOk,
    WorkerState,
)
from lmkv.core.rank_sockets import Place, RankSocket
from lmkv.core.waker import Waker
from lmkv.worker.copies import Once

TICK_MS, RETRY_MS = 1000, 100
OPTIONS: dict[int, int] = {
    zmq.LINGER: 0,
    zmq.SNDHWM: 0,  # a report that is dropped is a slot lost
    zmq.ROUTER_MANDATORY: 1,  # say so when the agent is not there
    zmq.ROUTER_HANDOVER: 1,  # an agent's new connection is the agent
}
REPEAT_S = 1.0  # a report that is not answered


class Control:
    """Binds at once. The callbacks are called from the control thread."""

    def __init__(
        self,
        path: str,
        state: Callable[[], WorkerState],
        attach: Callable[[Attach], None],
        forget: Callable[[str, int], None],
        replace: Callable[[int], None],
        check: Callable[[Check, list[bytes]], None],
        clock: Clock = monotonic,
        where: Place | None = None,
    ) -> None:
        self._path = path
        self._state = state
        self._attach = attach
        self._forget = forget
        self._replace = replace
        self._check = check
        self._clock = clock
        self._out: queue.SimpleQueue[tuple[int, list[bytes]]] = queue.SimpleQueue()
        self._unsent: tuple[int, list[bytes]] | None = None  # taken from `_out`, not gone out
        # Reports by job, with the time when each was last sent, the earliest first.
        self._unheard: dict[int, tuple[list[bytes], float]] = {}
        self._agent: bytes | None = None
        self._told = (-1, -1)  # epoch, data version
        self._stopping = False
        self._once = Once()
        self.refused = 0  # messages that were none of ours
        # vLLM's own context has no doorman, and needs none.
        self._own_context = None if where is None else zmq.Context()
        context = self._own_context or zmq.Context.instance()
        self._bound = RankSocket(context, path, where, OPTIONS)
        self._socket, self.address = self._bound.socket, self._bound.address
        self._waker = Waker()
        self._thread = threading.Thread(target=self._run, name="lmkv-control", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def send(self, message: Message, *arrays: bytes) -> None:
        """Once."""
        self._out.put((0, wire.encode(message, *arrays)))
        self.wake()

    def report(self, job: int, message: Message, *arrays: bytes) -> None:
        """Until the agent has answered for this job, which is not 0."""
        self._out.put((job, wire.encode(message, *arrays)))
        self.wake()

    def wake(self) -> None:
        """There is something to send, or the state has changed."""
        self._waker.wake()

    def stop(self, deadline: float) -> bool:
        self._stopping = True
        self.wake()
        if self._thread.ident is None:
            self._close()
        else:
            self._thread.join(deadline)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        return not self._thread.is_alive()

    # ------------------------------------------------------------ the control thread

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._waker.fd, zmq.POLLIN)
        sent = True
        while not self._stopping:
            poller.poll(TICK_MS if sent else RETRY_MS)
            self._waker.clear()
            sent = self._turn()
        self._close()

    def _close(self) -> None:
        self._bound.close()
        if self._own_context is not None:
            self._own_context.destroy(linger=0)

    def _turn(self) -> bool:
        try:
            self._receive()
            return self._send_all()
        except Exception as error:  # nothing that an agent says may end this thread
            self._once.exception("the worker's control socket", error)
            return False

    def _receive(self) -> None:
        while True:
            try:
                sender, *frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                message, arrays = wire.decode(frames)
            except wire.WireError as error:
                self._refuse(str(error))
                continue
            if isinstance(message, Attach):
                self._agent, self._told = sender, (-1, -1)
                self._attach(message)
            elif isinstance(message, StoredOk):
                self._unheard.pop(message.job, None)
            elif isinstance(message, Forget):
                self._forget(message.instance, message.epoch)
            elif isinstance(message, Replace):
                self._replace(message.mover_generation)
            elif isinstance(message, Check):
                self._ask_check(message, arrays)
            else:
                self._refuse(f"message {type(message).__name__} is not served here")

    def _ask_check(self, check: Check, arrays: list[bytes]) -> None:
        try:
            self._check(check, arrays)
        except wire.WireError as error:
            self._refuse(f"check: {error}")

    def _refuse(self, sentence: str) -> None:
        """The agent counts it, and says it once."""
        self.refused += 1
        if self._agent is not None:
            rank = self._state().rank
            alarm = Alarm(rank, "message", f"{self._path}: {sentence}")
            self._out.put((0, wire.encode(alarm)))

    def _send_all(self) -> bool:
        """False: the agent cannot be reached now."""
        if self._agent is None:
            return True
        state = self._state()
        if (state.epoch, state.data_version) != self._told:
            if not self._send(wire.encode(state)):
                return False
            self._told = state.epoch, state.data_version
        while self._unsent is not None or not self._out.empty():
            if self._unsent is None:
                self._unsent = self._out.get()
            if not self._report(*self._unsent):
                return False
            self._unsent = None
        for job, (frames, sent) in list(self._unheard.items()):
            if self._clock() - sent < REPEAT_S:
                break
            if not self._report(job, frames):
                return False
        return True

    def _report(self, job: int, frames: list[bytes]) -> bool:
        if not self._send(frames):
            return False
        if job:
            self._unheard.pop(job, None)
            self._unheard[job] = frames, self._clock()
        return True

    def _send(self, frames: list[bytes]) -> bool:
        assert self._agent is not None
        try:
            self._socket.send_multipart([self._agent, *frames], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                return False
            raise
        return True
