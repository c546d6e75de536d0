"""Questions of the scheduler thread to the controllers: locate, and peers' details.

`ask()` and `fetch()` send and return at once; `drain()` takes the answers that have come. A locate
goes to the nearest controller, and on to the next one when that does not answer in its share of the
deadline, never to the same twice. A peer's details are asked of the controller that named it. Peers
that failed are avoided for a growing interval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from lmkv.agent.links import Link
from lmkv.agent.refusals import Refuse, ignore
from lmkv.agent.request import Source
from lmkv.core import wire
from lmkv.core.geometry import unfit_ranks
from lmkv.core.messages import (
    MAX_KEYS,
    AnyMessage,
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
PEERS = 4096  # that are remembered
FETCH_NEXT, FETCH_AGAIN = 0.01, 1.0  # seconds until the next controller is asked, and all anew
LATE = 1.0  # seconds for which a controller that let a deadline pass is asked after the others


@dataclass
class Answer:
    """Sources by position in the question's keys, and the cause of the first one missing."""

    sources: dict[int, Source]
    alternates: dict[int, Source]
    peers: dict[str, PeerRef]
    missing: str
    differs: str = ""


@dataclass
class _Controller:
    """Its links, this thread's own, and what is asked over them and not answered."""

    query: Link
    state: Link
    questions: set[int] = field(default_factory=set)
    fetches: dict[int, str] = field(default_factory=dict)  # request -> instance
    late_until: float = 0.0


@dataclass
class _Question:
    message: Locate
    keys: bytes
    left: list[str]  # controllers that can still be asked, in their order
    sent: float = 0.0  # when it was last sent


@dataclass
class _Fetch:
    """Of a peer's details."""

    begun: float
    left: list[str]  # controllers that can still be asked
    sent: float = 0.0


class Locator:
    """`order` has the controllers that may be asked, the nearest first."""

    def __init__(
        self, cluster: str, instance: str, clock: Callable[[], float], refuse: Refuse = ignore
    ) -> None:
        self._refuse = refuse
        self._cluster = cluster
        self._instance = instance
        self._clock = clock
        self.order: list[str] = []
        self._controllers: dict[str, _Controller] = {}
        self._request = 0
        self._questions: dict[int, _Question] = {}
        self._answers: dict[int, Answer] = {}
        self._named_by: dict[str, str] = {}  # instance -> controller
        # Details with their ranks, which are asked for by the chunk and made once.
        self._known: dict[str, tuple[PeerInfo, list[PullPeer]]] = {}
        self._fetching: dict[str, _Fetch] = {}  # by instance
        self._avoid: dict[str, tuple[float, float]] = {}  # instance -> until, interval
        self.sent = 0  # locates, for tests and metrics

    def use(self, address: str, links: tuple[Link, Link] | None) -> None:
        """A controller's query and state link; they are this thread's from now on. None: it is no
        controller any more."""
        old = self._controllers.pop(address, None)
        if links is not None:
            self._controllers[address] = _Controller(*links)
        if old is not None:
            old.query.close()
            old.state.close()
            for instance in old.fetches.values():
                self._fetching.pop(instance, None)
            for request in old.questions:
                self._refused(request)

    # ------------------------------------------------------------ locate

    def ask(self, keys: bytes, epoch: int, sparse: bool = False) -> int:
        """Send a locate for at most MAX_KEYS keys to the nearest controller; its number, 0 when it
        cannot be sent to any. `sparse`: not only for their longest prefix."""
        now = self._clock()
        near = [address for address in self.order if address in self._controllers]
        near.sort(key=lambda address: self._controllers[address].late_until > now)
        self._request += 1
        message = Locate(
            self._request, self._cluster, self._instance, epoch, self.avoided(), sparse
        )
        self._questions[self._request] = _Question(message, keys[: MAX_KEYS * wire.KEY_BYTES], near)
        if self._ask_next(self._request):
            return self._request
        del self._questions[self._request]
        return 0

    def _ask_next(self, request: int) -> bool:
        question = self._questions[request]
        while question.left:
            controller = self._controllers.get(question.left.pop(0))
            if controller is not None and controller.query.send(question.message, question.keys):
                controller.questions.add(request)
                question.sent = self._clock()
                self.sent += 1
                return True
        return False

    def answer(self, request: int, deadline: float) -> Answer | None:
        """The first answer of any controller, None while it is awaited. Each controller has half of
        the time that is left until `deadline`, the last one all of it."""
        question = self._questions.get(request)
        if question is not None:
            now = self._clock()
            until = (question.sent + deadline) / 2 if question.left else deadline
            if now >= until:
                for controller in self._controllers.values():
                    if request in controller.questions:
                        controller.late_until = now + LATE
                self._ask_next(request)
        return self._answers.pop(request, None)

    def over(self, request: int, deadline: float, least: float) -> bool:
        """Whether it need not be awaited any longer: after `deadline`, though not before the one
        asked last has had `least` seconds. An engine whose steps are long looks late, and only
        then finds that the first one let its time pass."""
        question = self._questions.get(request)
        sent = question.sent if question is not None else float("-inf")
        return self._clock() >= max(deadline, sent + least)

    def drop(self, request: int) -> None:
        """Nobody waits for it any more."""
        self._questions.pop(request, None)
        self._answers.pop(request, None)
        for controller in self._controllers.values():
            controller.questions.discard(request)

    def _refused(self, request: int) -> None:
        """One controller will not answer: the next one may."""
        if request not in self._questions or self._ask_next(request):
            return
        if not any(request in controller.questions for controller in self._controllers.values()):
            self.drop(request)
            self._answers[request] = Answer({}, {}, {}, "no_controller")

    def drain(self) -> None:
        """Take what has come where something is awaited."""
        for address, controller in self._controllers.items():
            if controller.questions:
                for message, frames in controller.query.receive():
                    self._located(address, controller, message, frames)
            if controller.fetches:
                for message, _ in controller.state.receive():
                    self._fetched(controller, message)

    def _located(
        self, address: str, controller: _Controller, message: AnyMessage, frames: list[bytes]
    ) -> None:
        if not isinstance(message, (Located, Refused)):
            return
        controller.late_until = 0.0
        controller.questions.discard(message.request)
        question = self._questions.get(message.request)
        if question is None:
            return  # another controller was faster, or it is too late
        if isinstance(message, Refused):
            self._refused(message.request)
            return
        try:
            answer = _answer(message, frames, len(question.keys) // wire.KEY_BYTES)
        except wire.WireError as error:
            self._refuse("message", f"located of {address}: {error}")
            self._refused(message.request)
            return
        self.drop(message.request)
        self._named_by.update((peer.instance, address) for peer in message.peers)
        _forget_first(self._named_by)
        self._answers[message.request] = answer

    # ------------------------------------------------------------ peers

    def fetch(self, ref: PeerRef) -> bool:
        """True when the peer's details are at hand and no older than `ref`; else they are asked
        for: of the controller that named it, soon of the others, and once a second at most."""
        if ref.instance in self._known:
            info, _ = self._known[ref.instance]
            if info.epoch == ref.epoch and info.data_version >= ref.data_version:
                return True
        now = self._clock()
        fetch = self._fetching.get(ref.instance)
        if fetch is None or now - fetch.begun > FETCH_AGAIN:
            near = dict.fromkeys([self._named_by.get(ref.instance, ""), *self.order])
            fetch = self._fetching[ref.instance] = _Fetch(now, list(near))
            if not self._fetch_next(ref.instance, fetch):
                del self._fetching[ref.instance]
        elif now - fetch.sent >= FETCH_NEXT:
            self._fetch_next(ref.instance, fetch)
        return False

    def _fetch_next(self, instance: str, fetch: _Fetch) -> bool:
        while fetch.left:
            controller = self._controllers.get(fetch.left.pop(0))
            self._request += 1
            if controller and controller.state.send(Peer(self._request, instance)):
                controller.fetches[self._request] = instance
                fetch.sent = self._clock()
                return True
        return False

    def _fetched(self, controller: _Controller, message: AnyMessage) -> None:
        if not isinstance(message, (PeerInfo, Refused)):
            return
        instance = controller.fetches.pop(message.request, None)
        if isinstance(message, Refused):  # it has left since it was named; or this one is new
            if instance is not None and instance in self._fetching:
                self._not_known(instance)
            return
        if instance != message.instance:
            return
        self._fetching.pop(instance, None)
        if (wrong := unfit_ranks(message.ranks)) is not None:
            self._refuse("peer", f"{instance}: {wrong}")
            self.failed(instance)
            return
        if instance in self._known:
            info, _ = self._known[instance]
            if info.epoch == message.epoch and info.data_version >= message.data_version:
                return
        self._known[instance] = message, _ranks(message)
        _forget_first(self._known)

    def _not_known(self, instance: str) -> None:
        """At one controller: the peer has failed when none is left that may know it."""
        asked = any(instance in each.fetches.values() for each in self._controllers.values())
        if not self._fetch_next(instance, self._fetching[instance]) and not asked:
            del self._fetching[instance]
            self.failed(instance)

    def ranks(self, instance: str) -> list[PullPeer]:
        """The peer, rank by rank, as last fetched; [] when unknown."""
        return self._known[instance][1] if instance in self._known else []

    def outdated(self, instance: str) -> None:
        """What is known of the peer did not work: fetch it again before it is used."""
        self._known.pop(instance, None)

    def failed(self, instance: str) -> None:
        now = self._clock()
        until, interval = self._avoid.get(instance, (0.0, 0.0))
        if now < until:
            return
        recent = now - until < interval
        interval = min(LAST_AVOIDED, interval * 2) if recent else FIRST_AVOIDED
        self._avoid[instance] = (now + interval, interval)
        _forget_first(self._avoid)
        self.outdated(instance)

    def worked(self, instance: str) -> None:
        self._avoid.pop(instance, None)

    def avoids(self, instance: str) -> bool:
        return self._clock() < self._avoid.get(instance, (0.0, 0.0))[0]

    def avoided(self) -> list[str]:
        now = self._clock()
        return [name for name, (until, _) in list(self._avoid.items()) if now < until]

    def close(self) -> None:
        for address in list(self._controllers):
            self.use(address, None)


def _ranks(info: PeerInfo) -> list[PullPeer]:
    return [
        PullPeer(info.instance, info.epoch, info.data_version, rank)
        for rank in sorted(info.ranks, key=lambda rank: rank.rank)
    ]


def _forget_first(known: dict[str, Any]) -> None:
    while len(known) > PEERS:
        del known[next(iter(known))]


def _answer(message: Located, frames: list[bytes], keys: int) -> Answer:
    """The runs as sources by key. WireError for arrays that are torn, and for runs that point out
    of them or overlap."""
    total = wire.counts(frames, wire.PLACE_BYTES, wire.COUNTER_BYTES, limit=2 * MAX_KEYS)
    places, counters = frames

    def read(name: str, runs: Iterable[Run]) -> dict[int, Source]:
        found: dict[int, Source] = {}
        for run in runs:
            end = run.first + run.n
            if run.peer >= len(message.peers):
                raise wire.WireError(f"{name}: peer {run.peer} of {len(message.peers)}")
            if run.offset + run.n > total:
                raise wire.WireError(f"{name}: offset {run.offset} + {run.n} of {total} places")
            if end > keys:
                raise wire.WireError(f"{name}: keys {run.first} .. {end - 1} of {keys}")
            for i in range(run.n):
                if run.first + i in found:
                    raise wire.WireError(f"{name}: key {run.first + i} stands in two of them")
                at = run.offset + i
                found[run.first + i] = Source(
                    message.peers[run.peer].instance,
                    places[at * 8 : at * 8 + 8],
                    int.from_bytes(counters[at * 4 : at * 4 + 4], "little"),
                )
        return found

    return Answer(
        read("runs", message.runs),
        read("alternates", message.alternates),
        {peer.instance: peer for peer in message.peers},
        message.missing,
        message.incompatible,
    )
