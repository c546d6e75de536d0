"""Questions of the scheduler thread to a controller: locate, and peers' details.

`ask()` and `fetch()` send and return at once; `drain()` takes the answers that have come. Peers
that failed are avoided for a growing interval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from lmkv.agent.links import Link
from lmkv.agent.request import Source
from lmkv.core import wire
from lmkv.core.messages import (
    MAX_KEYS,
    Locate,
    Located,
    Peer,
    PeerInfo,
    PeerRef,
    PullPeer,
    Refused,
    Run,
)

FIRST_AVOIDED, LAST_AVOIDED = 1.0, 60.0  # seconds


@dataclass
class Answer:
    """Sources by position in the question's keys, and the cause of the first one missing."""

    sources: dict[int, Source]
    alternates: dict[int, Source]
    peers: dict[str, PeerRef]
    missing: str
    differs: str = ""


class Locator:
    def __init__(self, cluster: str, instance: str, clock: Callable[[], float]) -> None:
        self._cluster = cluster
        self._instance = instance
        self._clock = clock
        self._query: Link | None = None
        self._state: Link | None = None
        self._request = 0
        self._answers: dict[int, Answer] = {}
        self._asked: dict[int, int] = {}  # request -> keys asked
        self._infos: dict[str, PeerInfo] = {}
        self._fetching: dict[str, float] = {}  # instance -> when asked
        self._avoid: dict[str, tuple[float, float]] = {}  # instance -> until, interval
        self.sent = 0  # locates, for tests and metrics

    def use(self, query: Link, state: Link) -> None:
        """Links to the controller's sockets; they are this thread's from now on."""
        self.close()
        self._query, self._state = query, state

    # ------------------------------------------------------------ locate

    def ask(self, keys: bytes, epoch: int) -> int:
        """Send a locate for at most MAX_KEYS keys; its number, 0 when it cannot be sent."""
        if self._query is None:
            return 0
        self._request += 1
        keys = keys[: MAX_KEYS * wire.KEY_BYTES]
        message = Locate(self._request, self._cluster, self._instance, epoch, self.avoided())
        if not self._query.send(message, keys):
            return 0
        self.sent += 1
        self._asked[self._request] = len(keys) // wire.KEY_BYTES
        return self._request

    def answer(self, request: int) -> Answer | None:
        return self._answers.pop(request, None)

    def drop(self, request: int) -> None:
        """Nobody waits for it any more."""
        self._asked.pop(request, None)
        self._answers.pop(request, None)

    def drain(self) -> None:
        for link in (self._query, self._state):
            for message, frames in link.receive() if link else ():
                if isinstance(message, Located) and message.request in self._asked:
                    keys = self._asked.pop(message.request)
                    self._answers[message.request] = _answer(message, frames, keys)
                elif isinstance(message, PeerInfo):
                    self._fetching.pop(message.instance, None)
                    self._infos[message.instance] = message
                elif isinstance(message, Refused) and message.request in self._asked:
                    self._asked.pop(message.request)
                    self._answers[message.request] = Answer({}, {}, {}, "no_controller")

    # ------------------------------------------------------------ peers

    def fetch(self, ref: PeerRef) -> bool:
        """True when the peer's details are at hand and no older than `ref`; else they are asked
        for, once a second at most."""
        info = self._infos.get(ref.instance)
        if info and info.epoch == ref.epoch and info.data_version >= ref.data_version:
            return True
        now = self._clock()
        if self._state and now - self._fetching.get(ref.instance, -1e9) > 1.0:
            self._request += 1
            if self._state.send(Peer(self._request, ref.instance)):
                self._fetching[ref.instance] = now
        return False

    def ranks(self, instance: str) -> list[PullPeer]:
        """The peer, rank by rank, as last fetched; [] when unknown."""
        info = self._infos.get(instance)
        if info is None:
            return []
        return [
            PullPeer(info.instance, info.epoch, info.data_version, rank)
            for rank in sorted(info.ranks, key=lambda rank: rank.rank)
        ]

    def outdated(self, instance: str) -> None:
        """What is known of the peer did not work: fetch it again before it is used."""
        self._infos.pop(instance, None)

    def failed(self, instance: str) -> None:
        now = self._clock()
        until, interval = self._avoid.get(instance, (0.0, 0.0))
        if now < until:
            return
        recent = now - until < interval
        interval = min(LAST_AVOIDED, interval * 2) if recent else FIRST_AVOIDED
        self._avoid[instance] = (now + interval, interval)
        self.outdated(instance)

    def worked(self, instance: str) -> None:
        self._avoid.pop(instance, None)

    def avoided(self) -> list[str]:
        now = self._clock()
        return [name for name, (until, _) in list(self._avoid.items()) if now < until]

    def close(self) -> None:
        for link in (self._query, self._state):
            if link is not None:
                link.close()


def _answer(message: Located, frames: list[bytes], keys: int) -> Answer:
    """The runs as sources by key. A run that points outside its arrays is passed over."""
    places, counters = [*frames, b"", b""][:2]
    total = min(len(places) // wire.PLACE_BYTES, len(counters) // wire.COUNTER_BYTES)

    def read(runs: Iterable[Run]) -> dict[int, Source]:
        found = {}
        for run in runs:
            if run.peer >= len(message.peers) or run.offset + run.n > total:
                continue
            for i in range(min(run.n, keys - run.first)):
                at = run.offset + i
                found[run.first + i] = Source(
                    message.peers[run.peer].instance,
                    places[at * 8 : at * 8 + 8],
                    int.from_bytes(counters[at * 4 : at * 4 + 4], "little"),
                )
        return found

    return Answer(
        read(message.runs),
        read(message.alternates),
        {peer.instance: peer for peer in message.peers},
        message.missing,
        message.incompatible,
    )
