"""The agent's second thread: the streams to the controllers, and what workers report.

Its sockets are its own. It wakes for a message, for a change of the slot table that it made
itself, for `wake()`, and when the stream is due; it drains pulls only while the scheduler thread
does not.

start() -> wake() ... -> stop() runs it in a thread. Whoever drives many agents in one thread calls
open() -> turn() whenever a link has something or `due()` seconds have passed -> leave() instead.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import zmq

from lmkv.agent.controllers import LEAVE_DEADLINE, Controllers
from lmkv.agent.links import Link
from lmkv.core import wire
from lmkv.core.geometry import GRANULES_A_SLOT
from lmkv.core.messages import Alarm, AnyMessage, Checked, Replace, Stored, StoredOk, WorkerState
from lmkv.core.waker import Waker

if TYPE_CHECKING:
    from lmkv.agent.agent import Agent

log = logging.getLogger("lmkv.agent")

LONGEST, BUSY = 1.0, 0.02  # seconds between turns at rest, and while pulls are open
ATTACH_EVERY = 1.0  # until a worker has answered
REPLACE_EVERY = 1.0  # until a mover has gone


class Background:
    def __init__(
        self,
        agent: Agent,
        controllers: Controllers,
        workers: list[str],
        connect: Callable[[str], Link],
        clock: Callable[[], float],
    ) -> None:
        self._agent = agent
        self._controllers = controllers
        self._worker_addresses = workers
        self._connect = connect
        self._clock = clock
        self._workers: list[Link] = []
        self._states: dict[int, WorkerState] = {}
        self._next_attach = 0.0
        self._next_replace = 0.0
        self._restart = False
        self._in_turn = False
        self._said: set[str] = set()
        self._stopping = threading.Event()
        self._waker: Waker | None = None  # the thread's
        self._thread = threading.Thread(target=self._run, name="lmkv-agent", daemon=True)

    @property
    def ready(self) -> bool:
        """Whether a controller may be asked."""
        return bool(self._agent.streams.order())

    @property
    def turning(self) -> bool:
        """Whether what was reported, or reset, is about to be told."""
        return self._restart or self._in_turn

    def start(self) -> None:
        self._waker = Waker()
        self._thread.start()

    def wake(self) -> None:
        """Without a thread it is left to whoever calls `turn`."""
        if self._waker is not None:
            self._waker.wake()

    def restart(self) -> None:
        """A new epoch: attach and register again."""
        self._restart = True
        self.wake()

    def stop(self) -> None:
        self._stopping.set()
        self.wake()
        if self._thread.is_alive():
            self._thread.join(2 * LEAVE_DEADLINE)

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        try:
            self.open()
            assert self._waker is not None
            while not self._stopping.is_set():
                self._wait(self._waker)
                self.turn()
            self.leave()
        except Exception:
            log.exception("lmkv: the agent's background thread has ended; nothing new is shared")

    def open(self) -> None:
        self._controllers.open()
        self._workers = [self._connect(address) for address in self._worker_addresses]

    def due(self) -> float:
        """Seconds until a turn has something to do of itself."""
        longest = BUSY if self._agent.pulls.open else LONGEST
        agent = self._agent
        return min(longest, agent.streams.due(), agent.jobs.due(), agent.pins.due())

    def _wait(self, waker: Waker) -> None:
        poller = zmq.Poller()
        poller.register(waker.fd, zmq.POLLIN)
        for link in self._workers:
            poller.register(link.socket, zmq.POLLIN)
        self._controllers.poll(poller)
        for link in self._agent.fetches.sockets():
            poller.register(link.socket, zmq.POLLIN)
        poller.poll(int(1000 * self.due()) + 1)
        waker.clear()

    def turn(self) -> None:
        """One round: hear all, then say what is due."""
        self._in_turn = True
        try:
            self._turn()
        finally:
            self._in_turn = False

    def _turn(self) -> None:
        if self._restart:
            self._restart, self._states, self._next_attach = False, {}, 0.0
            self._agent.streams.restart()
            self._agent.pins.reset()
        for link in self._workers:
            for message, frames in link.receive():
                self._worker_says(link, message, frames)
        if len(self._states) < len(self._workers) and self._clock() >= self._next_attach:
            self._next_attach = self._clock() + ATTACH_EVERY
            for link in self._workers:
                link.send(self._agent.attach())
        if self._agent.pulls.open and self._agent.reader.lock.acquire(blocking=False):
            try:
                self._agent.pulls.drain()
                stuck = self._agent.pulls.stuck()
            finally:
                self._agent.reader.lock.release()
            self._replace(stuck)
        self._agent.checks.send(self._workers)
        self._agent.pins.turn()
        self._agent.rewrites.turn()
        self._agent.jobs.turn()
        self._controllers.turn()

    def _replace(self, ranks: list[int]) -> None:
        if not ranks or self._clock() < self._next_replace:
            return
        self._next_replace = self._clock() + REPLACE_EVERY
        for rank in self._states.keys() & set(ranks):
            self._workers[rank].send(Replace(self._states[rank].mover_generation))

    def _worker_says(self, link: Link, message: AnyMessage, frames: list[bytes]) -> None:
        if isinstance(message, Stored):
            self._agent.stores.stored(message, frames)
            link.send(StoredOk(message.job))  # also when it was heard before
        elif isinstance(message, WorkerState):
            self._worker_state(message)
        elif isinstance(message, Checked):
            self._checked(message, frames)
        elif isinstance(message, Alarm):
            self._agent.refuse(message.kind, f"rank {message.rank}: {message.text}")

    def _checked(self, message: Checked, frames: list[bytes]) -> None:
        try:
            self._agent.checks.heard(message, frames)
        except wire.WireError as error:
            self._agent.refuse("message", f"rank {message.rank}: {error}")

    def _worker_state(self, state: WorkerState) -> None:
        if state.rank >= len(self._workers):
            what = f"worker_state: rank {state.rank} of {len(self._workers)}"
            self._agent.refuse("message", what)
            return
        if state.epoch != self._agent.epoch:
            return
        self._states[state.rank] = state
        if state.error:
            self._say(f"lmkv: rank {state.rank}: {state.error}")
        with self._agent.reader.lock:
            self._agent.pulls.mover(state.rank, state.mover_socket)
        self._agent.rank_changed(state.rank, state.info)
        if len(self._states) == len(self._workers):
            slots = min(self._agent.table.capacity, *map(self._usable, self._states.values()))
            if slots > self._agent.table.usable:
                self._agent.table.grow(slots)

    def _usable(self, state: WorkerState) -> int:
        """Slots of a rank; another stage of a pipeline may have larger ones, fewer to a segment."""
        segment = state.info.segment_granules // GRANULES_A_SLOT or self._agent.segment_slots
        return state.local_segments * segment

    def _say(self, sentence: str) -> None:
        """Once per sentence."""
        if sentence not in self._said:
            self._said.add(sentence)
            log.warning(sentence)

    def leave(self) -> None:
        """Tell the controllers; waits at most half a second."""
        self._agent.jobs.close()
        self._agent.rewrites.close()
        self._controllers.leave(self._agent.epoch)
        for link in self._workers:
            link.close()
