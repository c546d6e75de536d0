"""Where a job's chunks are, and pulling them: for the background thread.

    find(keys), or named(source, keys) -> pull(chunks of one peer) ...

Questions go over links of their own, which are made when a job asks and closed when none runs
(`rest`); the scheduler thread's are not touched. A pull brings only what every rank's mover has
checked against its digests; it is admitted like a chunk that was computed here, and goes on to its
end when the job does not wait for it any more.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from lmkv.agent.commands import Failed
from lmkv.agent.controllers import query_address
from lmkv.agent.jobs import Steps, split
from lmkv.agent.links import Link
from lmkv.agent.locator import Answer, Locator
from lmkv.agent.pulls import Job
from lmkv.agent.relay import POLL, Relay
from lmkv.agent.request import Source
from lmkv.agent.transfers import is_whole, room_for
from lmkv.core import geometry, wire
from lmkv.core.clock import Clock, Deadline
from lmkv.core.geometry import GRANULES_A_SLOT, HOST
from lmkv.core.messages import PeerRef, PullPeer, PullResult, Register, SlotsPage, Welcome
from lmkv.core.parts import parts

if TYPE_CHECKING:
    from lmkv.agent.agent import Agent

LOCATE, DETAILS = 2.0, 5.0  # seconds
LEAST = 1.0  # seconds that a pull has: nobody's first token waits for it
PATIENCE = 0.25  # seconds that a pull lets those of requests go first

KEY, PLACE, COUNTER = wire.KEY_BYTES, wire.PLACE_BYTES, wire.COUNTER_BYTES


@dataclass
class Found:
    """Where chunks are, by key; `missing` is the cause of the first that is nowhere, `differs` the
    field where only instances that differ have it."""

    sources: dict[bytes, Source]
    peers: dict[str, list[PullPeer]]  # rank by rank
    missing: str = ""
    differs: str = ""
    next: int = 0  # of a page: the granule to go on from
    slots: int = 0  # that the source has in all, where it is named


class Fetches:
    def __init__(self, agent: Agent, connect: Callable[[str], Link], clock: Clock) -> None:
        self._agent = agent
        self._connect = connect
        self._clock = clock
        self._links: dict[str, tuple[Welcome, Link, Link]] = {}  # what the locator has
        self._locator = Locator(agent.cluster, agent.instance, clock, agent.refuse)
        self._finding = 0  # jobs
        self._group = 0  # of the last chunk that came: the next one is tried as of this one
        self.relay = Relay(connect, agent.streams.order, clock)

    def sockets(self) -> list[Link]:
        """That may have something for a job which waits for it."""
        mine = [link for _, query, state in self._links.values() for link in (query, state)]
        return (mine if self._finding else []) + self.relay.awaited()

    def rest(self) -> None:
        """No job runs."""
        self.relay.rest()
        for address in list(self._links):
            self._leave(address)

    def _leave(self, address: str) -> None:
        del self._links[address]
        self._locator.use(address, None)

    def _follow(self) -> None:
        """Links to the controllers that may be asked now."""
        self._locator.order = order = self._agent.streams.order()
        for address in [a for a in self._links if a not in order]:
            self._leave(address)
        for address in order:
            welcome = self._agent.streams[address].welcome
            if welcome is None or (address in self._links and self._links[address][0] is welcome):
                continue
            query = self._connect(query_address(address, welcome))
            pair = query, self._connect(address)
            self._locator.use(address, pair)
            self._links[address] = welcome, *pair

    # ------------------------------------------------------------ where they are

    def find(self, keys: Sequence[bytes]) -> Generator[float, None, Found]:
        """At other instances, as the controllers know. Raises Failed."""
        self._finding += 1
        try:
            answer = yield from self._located(keys)
            sources = {keys[i]: source for i, source in answer.sources.items()}
            names = dict.fromkeys(source.peer for source in sources.values())
            for name in names:
                yield from self._details(answer.peers[name])
        finally:
            self._finding -= 1
        peers = {name: self._locator.ranks(name) for name in names}
        sources = {key: source for key, source in sources.items() if peers[source.peer]}
        return Found(sources, peers, answer.missing, answer.differs)

    def _located(self, keys: Sequence[bytes]) -> Generator[float, None, Answer]:
        until, request = Deadline(LOCATE, self._clock), 0
        try:
            while not request:
                self._follow()
                request = self._locator.ask(b"".join(keys), self._agent.epoch, sparse=True)
                if not request and until.over:
                    raise Failed("no_controller", f"no controller was there in {LOCATE:g} s to ask")
                if not request:
                    yield POLL
            end = self._clock() + LOCATE
            while (answer := self._locator.answer(request, end)) is None:
                if self._clock() >= end:
                    raise Failed("no_controller", f"no controller has answered in {LOCATE:g} s")
                yield POLL
                self._locator.drain()
        finally:
            self._locator.drop(request)
        if answer.missing == "no_controller" and not answer.sources:
            raise Failed("no_controller", "no controller could say where the chunks are")
        return answer

    def _details(self, ref: PeerRef) -> Steps:
        """Until they are known, or the peer is not: it may have left since it was named."""
        until = Deadline(DETAILS, self._clock)
        while not self._locator.fetch(ref):
            if self._locator.avoids(ref.instance) or until.over:
                return
            yield POLL
            self._locator.drain()

    def failed(self, peer: str) -> None:
        """Others are to be found for what it had."""
        self._locator.failed(peer)

    def forgive(self) -> None:
        """Every peer may be found: one that failed before may be there again."""
        for peer in self._locator.avoided():
            self._locator.worked(peer)

    def named(
        self, source: str, keys: Sequence[bytes] | None, first: int = 0, limit: int = 64
    ) -> Generator[float, None, Found]:
        """At that instance, as itself says: these chunks, or those of a page. Raises Failed."""
        arguments = {"who": "1", "first": str(first), "limit": str(limit)}
        frames = [] if keys is None else [b"".join(keys)]
        result, arrays = yield from self.relay.ask(source, "slots", arguments, frames)
        try:
            page = msgspec.msgpack.decode(result, type=SlotsPage)
            sources = sources_of(source, arrays)
        except (msgspec.MsgspecError, wire.WireError) as error:
            text = f"instance {source!r} answered slots with what is none: {error}"
            raise Failed("failed", text) from None
        if page.who is None or (wrong := geometry.unfit_ranks(page.who.ranks)) is not None:
            what = "does not say what it is" if page.who is None else f"says of its ranks: {wrong}"
            raise Failed("incompatible", f"instance {source!r} {what}")
        if differs := geometry.differs(self._agent.registration(), page.who):
            text = f"instance {source!r} differs from this one in {differs}: they do not share"
            raise Failed("incompatible", text)
        ranks, slots = _ranks(page.who), page.who.slots
        return Found(sources, {source: ranks}, next=page.next, slots=slots)

    # ------------------------------------------------------------ pulling

    def pull(
        self, ranks: Sequence[PullPeer], chunks: dict[bytes, Source]
    ) -> Generator[float, None, tuple[dict[bytes, int], int]]:
        """Results by key, and bytes that came. A key says nothing of its cache group: it is tried
        as of each, the one that was right last first; the slot's header knows. Raises Failed."""
        groups = range(self._agent.groups)
        results: dict[bytes, int] = {}
        size = 0
        for group in sorted(groups, key=lambda g: g != self._group):
            left = {k: s for k, s in chunks.items() if results.get(k, 3) == PullResult.INCOMPATIBLE}
            if not left:
                break
            job = yield from self._pull(ranks, left, group)
            if job is None:  # meanwhile all came here by another way
                continue
            results |= dict(zip(split(job.keys), job.results))
            size += job.bytes
            if job.good:
                self._group = group
        return results, size

    def _pull(
        self, ranks: Sequence[PullPeer], chunks: dict[bytes, Source], group: int
    ) -> Generator[float, None, Job | None]:
        agent, ended = self._agent, list[Job]()
        infos = [peer.info for peer in ranks]
        from_ranks = [[ranks[part.at] for part in parts(own, infos, group)] for own in agent.infos]
        if not all(from_ranks):
            text = f"instance {ranks[0].instance!r} has not all heads of this one's ranks"
            raise Failed("incompatible", text)
        if self._on_gpu and not is_whole(agent.infos, ranks, group):
            text = f"instance {ranks[0].instance!r} has slots of other heads, and parts of slots "
            raise Failed("incompatible", text + "are not pulled into GPU memory")
        if not agent.transfers.can_pull(ranks):
            raise Failed("mover_down", self._no_movers(ranks))
        epoch, patience = agent.epoch, Deadline(PATIENCE, self._clock)
        while True:
            with agent.reader.lock:
                if agent.epoch != epoch:
                    raise Failed("reset", "the instance's caches were reset meanwhile")
                if not agent.pulls.awaited or patience.over:
                    if not self._post(from_ranks, chunks, group, ended.append):
                        return None
                    break
            yield POLL
        while not ended:
            yield POLL
        return ended[0]

    def _post(
        self,
        ranks: list[list[PullPeer]],
        chunks: dict[bytes, Source],
        group: int,
        then: Callable[[Job], None],
    ) -> bool:
        """False: there is nothing left to pull. Under the reader's lock. Raises Failed."""
        agent = self._agent
        there = agent.table.contains(b"".join(chunks))
        wanted = {key: s for (key, s), state in zip(chunks.items(), there) if not state}
        if not wanted:
            return False
        keys, *remote = arrays_of(wanted)
        peers = [peer for each in ranks for peer in each]
        whole = not self._on_gpu and is_whole(agent.infos, peers, group)
        granules = bytes(room_for(s.place) if whole else GRANULES_A_SLOT for s in wanted.values())
        own = agent.table.reserve(keys, self._clock(), granules)
        if own is None:
            slots = agent.table.granules()
            text = (
                f"{len(wanted)} slots of the pool are needed and fewer can be taken: "
                f"{slots['pinned'] // 16} of {agent.table.usable} are pinned or being read"
            )
            raise Failed("no_room", text)
        for i, key in enumerate(wanted):
            if agent.events is not None:
                agent.events.brought(key, own[0][i * PLACE : (i + 1) * PLACE])
        peer, size = ranks[0][0].instance, agent.room(own[0])
        seconds = agent.transfers.started(peer, size, LEAST)

        def ended(job: Job) -> None:
            agent.transfers.measured(job)
            then(job)

        agent.pulls.post(ranks, keys, (remote[0], remote[1]), own, size, seconds, group, then=ended)
        return True

    @property
    def _on_gpu(self) -> bool:
        return self._agent.infos[0].tier != HOST

    def _no_movers(self, ranks: Sequence[PullPeer]) -> str:
        if not self._agent.pulls.ready:
            return "a rank of this instance has no mover: nothing can be pulled"
        return f"instance {ranks[0].instance!r} has a rank without a mover: nothing can be pulled"


def arrays_of(slots: Mapping[bytes, Source]) -> tuple[bytes, bytes, bytes]:
    """Keys, places and counters, as they travel."""
    return (
        b"".join(slots),
        b"".join(slot.place for slot in slots.values()),
        b"".join(slot.counter.to_bytes(COUNTER, "little") for slot in slots.values()),
    )


def sources_of(peer: str, arrays: Sequence[bytes]) -> dict[bytes, Source]:
    """The slots that it has named, by key. Raises WireError."""
    n = wire.counts(arrays, KEY, PLACE, COUNTER)
    keys, places, counters = arrays
    return {
        keys[i * KEY : (i + 1) * KEY]: Source(
            peer,
            places[i * PLACE : (i + 1) * PLACE],
            int.from_bytes(counters[i * COUNTER : (i + 1) * COUNTER], "little"),
        )
        for i in range(n)
    }


def _ranks(who: Register) -> list[PullPeer]:
    return [
        PullPeer(who.instance, who.epoch, who.data_version, info)
        for info in sorted(who.ranks, key=lambda info: info.rank)
    ]
