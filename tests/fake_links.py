"""An agent without sockets: links that keep what is sent, and answers that a test queues.

`World` is one agent whose controller, workers and movers are the test. Chunks have 4 tokens in two
blocks; prompts are 0, 1, 2 ... unless a test says otherwise. `windows` has a cache group each, of 0
tokens for attention to all; group number `state` has states.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, TypeVar

from lmkv import _native
from lmkv.agent.agent import Agent
from lmkv.agent.engine import Engine, Rank
from lmkv.agent.options import Options
from lmkv.agent.refusals import Refuse, ignore
from lmkv.agent.tracing import OFF
from lmkv.agent.transfers import Geometry
from lmkv.core import config, wire
from lmkv.core.clock import ManualClock
from lmkv.core.messages import (
    AnyMessage,
    HostIdentity,
    LimboEnded,
    Locate,
    Located,
    Message,
    Peer,
    PeerInfo,
    PeerRef,
    Pull,
    Pulled,
    RankInfo,
    Run,
    Stored,
    Welcome,
    WorkerState,
)

M = TypeVar("M", bound=Message)
CHUNK, BLOCK, SLOTS = 4, 2, 16
CONTROLLER, QUERY = "tcp://127.0.0.1:7550", "tcp://127.0.0.1:7551"
HERE, THERE = HostIdentity("here", 1, 2), HostIdentity("there", 3, 4)
SPECS = ["full attention"]
PEER_EPOCH = 0x0000_0009_0000_0007


class FakeLink:
    """What was sent is in `sent`, as the receiver would decode it."""

    socket = None

    def __init__(self, address: str) -> None:
        self.address = address
        self.sent: list[tuple[AnyMessage, list[bytes]]] = []
        self.queue: deque[list[bytes]] = deque()
        self.up = True  # False: nothing can be sent
        self.closed = False
        self.refuse: Refuse = ignore

    def send(self, message: Message, *arrays: bytes) -> bool:
        return self.send_frames(wire.encode(message, *arrays))

    def send_frames(self, frames: list[bytes]) -> bool:
        assert not self.closed, f"sent to {self.address} after its end"
        if self.up:
            self.sent.append(wire.decode(frames))
        return self.up

    def say(self, message: Message, *arrays: bytes) -> None:
        """The other side's message."""
        self.say_raw(*wire.encode(message, *arrays))

    def say_raw(self, *frames: bytes) -> None:
        self.queue.append(list(frames))

    def receive(self, limit: int = 256) -> Iterator[tuple[AnyMessage, list[bytes]]]:
        while self.queue:
            frames = self.queue.popleft()
            try:
                yield wire.decode(frames)
            except wire.WireError as error:  # as a Link does
                self.refuse("message", f"from {self.address}: {error}")

    def close(self) -> None:
        self.closed = True

    def of(self, kind: type[M]) -> list[tuple[M, list[bytes]]]:
        return [(m, frames) for m, frames in self.sent if isinstance(m, kind)]

    def last(self, kind: type[M]) -> tuple[M, list[bytes]]:
        return self.of(kind)[-1]


class World:
    def __init__(
        self, ranks: int = 1, controller: bool = True, movers: bool = True, **settings: Any
    ) -> None:
        slots, windows = settings.pop("slots", SLOTS), settings.pop("windows", (0,))
        state = settings.pop("state", -1)
        self.clock = ManualClock()
        self.links: list[FakeLink] = []
        self.ranks = ranks
        self.specs = SPECS + [f"group {g}" for g in range(1, len(windows))]
        heads = settings.pop("heads", None)  # of each rank, first and number
        segments, tier = settings.pop("segment_slots", [0] * ranks), settings.pop("tier", 0)
        own = [
            RankInfo(
                r,
                HERE,
                segment_granules=16 * segments[r],
                tier=tier,
                heads=[heads[r]] if heads else [],
            )
            for r in range(ranks)
        ]
        engine = Engine(
            "us",
            lambda word: f"namespace {word}",
            self.specs,
            [
                Geometry(CHUNK, BLOCK, 1024, window, group == state)
                for group, window in enumerate(windows)
            ],
            slots,
            slots,
            [
                Rank(
                    info,
                    f"ipc://worker{i}",
                    [f"group={g}" for g in range(len(windows))],
                    [90 + i + 10 * g for g in range(len(windows))],
                )
                for i, info in enumerate(own)
            ],
        )
        describe = settings.pop("describe", None)
        tracer = settings.pop("tracer", lambda clock: OFF)(self.clock)
        inline = {"min_tokens": 1, **settings}
        self.agent = Agent(
            config.load(config.InstanceConfig, inline),
            engine,
            self.clock,
            self._connect,
            describe=describe,
            tracer=tracer,
        )
        self.agent.background.open()
        self.turn()
        for r in range(ranks):
            self.worker_state(r, f"ipc://mover{r}" if movers else "")
        if controller:
            self.welcome()
        self.turn()

    def _connect(self, address: str) -> Any:
        self.links.append(FakeLink(address))
        return self.links[-1]

    def at(self, address: str, which: int = 0) -> FakeLink:
        return [link for link in self.links if link.address == address and not link.closed][which]

    def turn(self) -> None:
        self.agent.background.turn()

    def worker_state(self, rank: int, mover: str, generation: int = 1) -> None:
        info = self.agent.infos[rank]
        state = WorkerState(rank, self.agent.epoch, 0, info, mover, generation, local_segments=1)
        self.at(f"ipc://worker{rank}").say(state)

    # ------------------------------------------------------------ requests

    @staticmethod
    def prompt(chunks: int, more: int = 1) -> list[int]:
        return list(range(chunks * CHUNK + more))

    def begin(self, name: str, tokens: list[int], **options: Any) -> None:
        headers = options.pop("headers", None)
        self.agent.begin(name, tokens, b"", {}, Options(**options), trace_headers=headers)

    def match(self, name: str, tokens: list[int], computed: int = 0) -> int | None:
        return self.agent.match(name, computed, len(tokens))

    def keys(self, first: int, last: int, tokens: list[int] | None = None, group: int = 0) -> bytes:
        chain = _native.KeyHasher(self.agent.namespace, self.specs, CHUNK).chain()
        chain.extend(tokens or list(range(last * CHUNK)))
        return chain.keys(group, first, last)

    def hold(self, first: int, last: int, group: int = 0) -> None:
        """The own pool has these chunks of the common prompt."""
        room = self.agent.table.reserve(self.keys(first, last, group=group), self.clock())
        assert room is not None
        assert self.agent.table.admit(*room) == last - first

    def granules(self, state: str) -> int:
        """Slots in that state."""
        return self.agent.table.granules()[state] // 16

    # ------------------------------------------------------------ controller

    def welcome(self, address: str = CONTROLLER, state: str = "ready") -> None:
        """Its query socket is the next port."""
        port = int(address.rpartition(":")[2])
        self.at(address).say(Welcome(1, "controller", 77, port + 1, state))

    def located(
        self,
        n: int,
        peer: str = "peer",
        epoch: int = PEER_EPOCH,
        version: int = 0,
        others: dict[str, tuple[int, int]] | None = None,
        at: str = QUERY,
    ) -> None:
        """The last locate's first `n` keys: slots 0 .. n-1 of `peer`, counters 100, 101 ...
        `others` hold [first, last) of them too, at the same places."""
        query = self.at(at)
        asked, _ = query.last(Locate)
        refs, runs = ([PeerRef(peer, epoch, version)], [Run(0, n, 0, 0)]) if n else ([], [])
        alternates = []
        for i, (other, (first, last)) in enumerate((others or {}).items()):
            refs.append(PeerRef(other, PEER_EPOCH, 0))
            alternates.append(Run(first, last - first, 1 + i, first))
        query.say(Located(asked.request, 77, n, runs, alternates, refs), places(n), counters(n))

    def peer_info(
        self,
        peer: str = "peer",
        mapped: bool = False,
        epoch: int = PEER_EPOCH,
        version: int = 0,
        heads: list[tuple[int, int]] | None = None,
        tier: int = 0,
    ) -> None:
        """This peer's details, for which the agent has asked; it has ranks with these heads."""
        link = self.at(CONTROLLER, 1)
        asked = [m for m, _ in link.of(Peer) if m.instance == peer][-1]
        ranks = [
            RankInfo(
                r,
                HERE if mapped else THERE,
                share_socket=f"/{peer}{r}" if mapped else "",
                nixl_metadata=b"metadata",
                tier=tier,
                heads=[heads[r]] if heads else [],
            )
            for r in range(len(heads) if heads else self.ranks)
        ]
        link.say(PeerInfo(asked.request, peer, epoch, version, ranks))

    # ------------------------------------------------------------ movers and workers

    def pull(self, rank: int = 0) -> tuple[Pull, list[bytes]]:
        """The last Pull that this rank's mover was sent."""
        return self.at(f"ipc://mover{rank}").last(Pull)

    def pulled(self, results: list[int], rank: int = 0, **more: Any) -> None:
        job = self.pull(rank)[0].job
        self.at(f"ipc://mover{rank}").say(Pulled(rank, job, **more), bytes(results))

    def limbo_ended(self, rank: int = 0) -> None:
        job = self.pull(rank)[0].job
        self.at(f"ipc://mover{rank}").say(LimboEnded(rank, job))

    def stored(self, job: int, rank: int = 0, good: bool = True) -> None:
        self.at(f"ipc://worker{rank}").say(Stored(rank, job), b"", b"", bytes([good]))
        self.turn()

    def at_rest(self) -> bool:
        return not any(self.agent.pending.values())


def places(n: int) -> bytes:
    """Slots 0 .. n-1 of a peer's pool."""
    return b"".join((16 * i).to_bytes(4, "little") + b"\x10\0\0\0" for i in range(n))


def counters(n: int) -> bytes:
    return b"".join((100 + i).to_bytes(4, "little") for i in range(n))
