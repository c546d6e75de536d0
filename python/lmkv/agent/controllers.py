"""The sockets to the controllers, for the background thread: one state link each, its stream, and
what it commands.

open() -> turn() ... -> leave(). A controller that welcomes this instance gets two more links, query
and state, which are made here, ahead of need, and belong to the scheduler thread once it has taken
them (`take_links`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import zmq

from lmkv.agent.commands import Commands
from lmkv.agent.links import Link
from lmkv.agent.resolve import Addresses
from lmkv.agent.streams import QUIET, Streams
from lmkv.core.config import split_address
from lmkv.core.messages import Command, Leave, Left, Welcome

log = logging.getLogger("lmkv.agent")

LEAVE_DEADLINE = 0.5

Pair = tuple[Link, Link]  # query, state


class Controllers:
    def __init__(
        self,
        addresses: Addresses,
        streams: Streams,
        commands: Commands,
        connect: Callable[[str], Link],
        clock: Callable[[], float],
    ) -> None:
        self._addresses = addresses
        self._streams = streams
        self._commands = commands
        self._connect = connect
        self._clock = clock
        self._links: dict[str, Link] = {}
        self._connected: dict[str, float] = {}  # when its link was made
        self._welcomes: dict[str, Welcome] = {}  # that links were made for
        self._lock = threading.Lock()
        self._offers: dict[str, Pair | None] = {}  # not taken yet

    def open(self) -> None:
        self._follow()

    def poll(self, poller: zmq.Poller) -> None:
        """What a turn waits for: messages, and room for an outbox that is not empty."""
        for address, link in self._links.items():
            full = zmq.POLLOUT if self._streams[address].outbox else 0
            poller.register(link.socket, zmq.POLLIN | full)

    def turn(self) -> None:
        self._streams.woke()
        for address, link in self._links.items():
            for message, frames in link.receive():
                self._streams[address].hear(message, frames)
                if isinstance(message, Command):
                    self._commands.take(address, message, frames)
        self._follow()
        self._streams.turn()
        for address, link in self._links.items():
            self._streams[address].flush(link.send_frames)
            self._commands.answer(address, link.send_frames)
            self._welcomed(address)
        for bad, sentence in self._streams.news():
            log.log(logging.WARNING if bad else logging.INFO, "lmkv: %s", sentence)

    def _follow(self) -> None:
        """A link to each controller that there is now."""
        addresses = self._addresses.turn()
        for address in [a for a in self._links if a not in addresses]:
            self._links.pop(address).close()
            self._commands.forget(address)
            if self._welcomes.pop(address, None):
                self._offer(address, None)
        if addresses != self._streams.addresses:
            self._streams.follow(addresses)
        for address in addresses:
            if address not in self._links or self._is_deaf(address):
                self._link(address)

    def _is_deaf(self, address: str) -> bool:
        """Nothing has come for long: the other side may know this link as a dead one."""
        now = self._clock()
        quiet = now - self._streams[address].said_at > QUIET
        return quiet and now - self._connected[address] > QUIET

    def _link(self, address: str) -> None:
        if address in self._links:
            self._links[address].close()
        self._links[address] = self._connect(address)
        self._connected[address] = self._clock()

    def _welcomed(self, address: str) -> None:
        """Links for questions, anew with each welcome: the old ones may be deaf too."""
        welcome = self._streams[address].welcome
        if welcome is None or welcome is self._welcomes.get(address):
            return
        self._welcomes[address] = welcome
        query = query_address(address, welcome)
        self._offer(address, (self._connect(query), self._connect(address)))

    def _offer(self, address: str, pair: Pair | None) -> None:
        with self._lock:
            old, self._offers[address] = self._offers.get(address), pair
        for link in old or ():  # nobody wanted them
            link.close()

    def take_links(self) -> dict[str, Pair | None]:
        """What is new for the scheduler thread, by controller; None: it is none any more."""
        if not self._offers:
            return {}
        with self._lock:
            taken, self._offers = self._offers, {}
        return taken

    def leave(self, epoch: int) -> None:
        """Tell those that listen, and wait a little for their answers, so that it is sent."""
        told = {
            a: self._links[a] for a in self._streams.order() if self._links[a].send(Leave(epoch))
        }
        end = time.monotonic() + LEAVE_DEADLINE
        while told and (left := end - time.monotonic()) > 0:
            poller = zmq.Poller()
            for link in told.values():
                poller.register(link.socket, zmq.POLLIN)
            poller.poll(int(1000 * left) + 1)
            for address, link in list(told.items()):
                if any(isinstance(message, Left) for message, _ in link.receive()):
                    del told[address]
        for link in self._links.values():
            link.close()


def query_address(address: str, welcome: Welcome) -> str:
    return f"tcp://{split_address(address)[0]}:{welcome.query_port}"
