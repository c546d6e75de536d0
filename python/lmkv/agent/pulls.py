"""Pulls: reserve -> Pull to every rank's mover -> all answer -> admit, or abort.

A READ that timed out may still land: its places stay in limbo until every rank's mover has said
that it ended, or is another one. Movers are asked each second, as an answer may be lost with its
connection. A mover replaces itself when limbo is past its limits; `stuck()` names those that
should have, and have not. Whoever waits asks `done(job)`; requests that miss the same chunk share
its job. Calls are under the owner's lock: the scheduler thread's, or the background's while nobody
waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from lmkv import _native
from lmkv.agent.links import Link
from lmkv.agent.refusals import Refuse, ignore
from lmkv.agent.tracing import UNTRACED, Untraced
from lmkv.core import wire
from lmkv.core.messages import (
    Alarm,
    Attach,
    Forget,
    Limbo,
    LimboEnded,
    Pull,
    Pulled,
    PullPeer,
    PullResult,
    Refused,
    Unsupported,
)

GRACE = 0.05  # seconds that a mover has to answer after its deadline
ASK_EVERY = 1.0  # seconds between questions after a job in limbo
MARGIN = 5.0  # seconds that a mover has to replace itself
LIVES = 1024  # of peers that movers remember
KEY, PLACE, COUNTER = wire.KEY_BYTES, wire.PLACE_BYTES, wire.COUNTER_BYTES


@dataclass
class Job:
    keys: bytes
    places: bytes
    counters: bytes
    peer: str
    epoch: int  # the peer's
    size: int  # bytes asked for, of all ranks
    begin: float
    deadline: float
    results: list[int]
    waiting: set[int]  # ranks that have not answered
    limbo: set[int] = field(default_factory=set)  # ranks whose READs may still land
    limbo_chunks: list[int] = field(default_factory=list)
    ask_limbo: float = 0.0  # when to ask whether its READs have ended
    seconds: float = 0.0
    bytes: int = 0
    stale: bool = False  # what we know of the peer is out of date
    unheard: bool = False  # a mover of our own did not answer: the peer is not to blame
    done: bool = False
    trace: Untraced = UNTRACED  # of the request that asked first
    front: bool = False  # as of `SlotTable.admit`
    then: Callable[[Job], None] | None = None  # hears its end in the place of `on_done`

    @property
    def good(self) -> int:
        return sum(1 for result in self.results if result == PullResult.GOOD)


def _slot(job: Job, i: int) -> tuple[bytes, bytes]:
    """Place and counter of the job's chunk `i`."""
    place, counter = i * PLACE, i * COUNTER
    return job.places[place : place + PLACE], job.counters[counter : counter + COUNTER]


class Pulls:
    """`attach` is what every mover is told first. `on_done(job)` hears each end once. The limits of
    limbo are the movers' own: seconds, and slots of a pool."""

    def __init__(
        self,
        table: _native.SlotTable,
        fingerprints: list[list[int]],  # by rank and cache group
        connect: Callable[[str], Link],
        clock: Callable[[], float],
        on_done: Callable[[Job], None],
        limbo_seconds: float,
        limbo_slots: float,
        refuse: Refuse = ignore,
    ) -> None:
        self._refuse = refuse
        self._table = table
        self._fingerprints = fingerprints
        self._connect = connect
        self._clock = clock
        self._on_done = on_done
        self._limbo_seconds = limbo_seconds
        self._limbo_slots = limbo_slots
        self._lives: dict[str, int] = {}  # epochs of peers, the one pulled from last at the end
        self._links: dict[int, Link] = {}
        self._jobs: dict[int, Job] = {}
        self._by_key: dict[bytes, int] = {}
        self._next = 1
        self._attach: Attach | None = None
        self.posted = 0  # Pull messages, for tests and metrics

    # ------------------------------------------------------------ movers

    def attach(self, attach: Attach) -> None:
        self._attach = attach
        for link in self._links.values():
            link.send(attach)

    def mover(self, rank: int, address: str) -> None:
        """This rank's mover is now at `address`, "" for none. The old one's READs have ended."""
        link = self._links.get(rank)
        if link is not None and link.address == address:
            return
        if link is not None:
            link.close()
            del self._links[rank]
        for number, job in list(self._jobs.items()):
            if rank in job.waiting:
                self._answered(number, job, rank, [PullResult.MOVER_DOWN] * len(job.results))
            self._limbo_ended(number, job, rank)
        if address:
            self._links[rank] = self._connect(address)
            if self._attach is not None:
                self._links[rank].send(self._attach)

    @property
    def movers(self) -> dict[int, str]:
        """Their addresses, by rank; for the background thread."""
        return {rank: link.address for rank, link in self._links.items()}

    @property
    def ready(self) -> bool:
        """Whether every rank has a mover."""
        return len(self._links) == len(self._fingerprints)

    def stuck(self) -> list[int]:
        """Ranks whose mover keeps READs past the limits of limbo: it is stopped, or hangs."""
        now, stuck = self._clock(), []
        for rank in self._links:
            jobs = [job for job in self._jobs.values() if job.done and rank in job.limbo]
            over = sum(len(job.limbo_chunks) for job in jobs) > self._limbo_slots
            longest = MARGIN if over else self._limbo_seconds + MARGIN
            if any(now - job.deadline > longest for job in jobs):
                stuck.append(rank)
        return stuck

    # ------------------------------------------------------------ peers

    def _live(self, peer: PullPeer) -> None:
        """Movers keep a connection for every life of a peer, until they are told to forget it."""
        earlier = self._lives.pop(peer.instance, peer.epoch)
        if earlier != peer.epoch:
            self._forget(peer.instance, earlier)
        self._lives[peer.instance] = peer.epoch
        while len(self._lives) > LIVES:
            instance = next(iter(self._lives))
            self._forget(instance, self._lives.pop(instance))

    def _died(self, job: Job) -> None:
        """The peer did not answer this job. It may be another mover's by now, for other jobs."""
        others = any(j.peer == job.peer and not j.done for j in self._jobs.values())
        if not others and self._lives.get(job.peer) == job.epoch:
            self._forget(job.peer, self._lives.pop(job.peer))

    def _forget(self, instance: str, epoch: int) -> None:
        for link in self._links.values():
            link.send(Forget(instance, epoch))

    # ------------------------------------------------------------ pulls

    def job_of(self, key: bytes) -> int | None:
        return self._by_key.get(key)

    def done(self, number: int) -> bool:
        return number not in self._jobs or self._jobs[number].done

    def post(
        self,
        peers: list[list[PullPeer]],
        keys: bytes,
        remote: tuple[bytes, bytes],
        own: tuple[bytes, bytes],
        size: int,
        seconds: float,
        group: int = 0,
        trace: Untraced = UNTRACED,
        then: Callable[[Job], None] | None = None,
    ) -> int:
        """Pull reserved slots of one cache group, `size` bytes in all, within `seconds`; the number
        of the job. By rank here, `peers` are those ranks of one instance that have its heads. With
        `then` no request waits for it: an operator does, and its chunks are no less worth than
        those that were computed here."""
        self._live(peers[0][0])
        number, self._next = self._next, self._next + 1
        n, now = len(keys) // KEY, self._clock()
        job = Job(
            keys,
            own[0],
            own[1],
            peers[0][0].instance,
            peers[0][0].epoch,
            size,
            now,
            now + seconds + GRACE,
            [PullResult.GOOD] * n,
            set(range(len(peers))),
            trace=trace,
            front=then is not None,
            then=then,
        )
        self._jobs[number] = job
        for i in range(n):
            self._by_key[keys[i * KEY : (i + 1) * KEY]] = number
        for rank, (peer, *others) in enumerate(peers):
            message = Pull(number, peer, seconds, self._fingerprints[rank][group], others)
            link = self._links.get(rank)
            if link is None or not link.send(message, keys, *remote, *own):
                self._answered(number, job, rank, [PullResult.MOVER_DOWN] * n)
        self.posted += 1
        return number

    def drain(self) -> None:
        """Take what the movers have said, and end what is past its deadline."""
        for link in list(self._links.values()):
            for message, frames in link.receive():
                if isinstance(message, Pulled):
                    self._pulled(message, frames)
                elif isinstance(message, LimboEnded) and message.job in self._jobs:
                    self._limbo_ended(message.job, self._jobs[message.job], message.rank)
                elif isinstance(message, Alarm):
                    self._refuse(message.kind, f"mover of rank {message.rank}: {message.text}")
                elif isinstance(message, (Refused, Unsupported)):
                    what = message.message if isinstance(message, Refused) else message.name
                    self._refuse("message", f"refused by {link.address}: {what}")
        now = self._clock()
        for number, job in list(self._jobs.items()):
            if not job.done and now > job.deadline:
                job.unheard = True
                for rank in list(job.waiting):  # nobody knows: it may still land
                    self._answered(number, job, rank, [PullResult.TIMEOUT] * len(job.results))
            if job.done and now >= job.ask_limbo:
                job.ask_limbo = now + ASK_EVERY
                for rank in job.limbo & self._links.keys():
                    self._links[rank].send(Limbo(number))

    def _pulled(self, message: Pulled, frames: list[bytes]) -> None:
        job = self._jobs.get(message.job)
        if job is None or message.rank not in job.waiting:
            if job is not None:  # it had been given up, and has ended after all
                self._limbo_ended(message.job, job, message.rank, frames[0] if frames else b"")
            return
        job.seconds = max(job.seconds, message.seconds)
        job.bytes += message.bytes
        job.stale |= message.stale
        results = list(frames[0]) if frames else []
        if len(results) != len(job.results) or max(results) >= len(PullResult.CAUSES):
            what = f"{len(results)} results for {len(job.results)} chunks"
            self._refuse("message", f"pulled of rank {message.rank}: {what}, or none of ours")
            results = [PullResult.MOVER_DOWN] * len(job.results)
        self._answered(message.job, job, message.rank, results)

    def _answered(self, number: int, job: Job, rank: int, results: Iterable[int]) -> None:
        results = list(results)
        job.waiting.discard(rank)
        if PullResult.TIMEOUT in results:
            job.limbo.add(rank)
        for i, result in enumerate(results):
            if result == PullResult.TIMEOUT and i not in job.limbo_chunks:
                job.limbo_chunks.append(i)
            if job.results[i] == PullResult.GOOD:
                job.results[i] = result
        if not job.waiting:
            self._finish(number, job)

    def _finish(self, number: int, job: Job) -> None:
        if job.done:
            return
        job.done = True
        for i, result in enumerate(job.results):
            place, counter = _slot(job, i)
            good = result == PullResult.GOOD and self._table.admit(place, counter, job.front)
            if not good:  # failed, or of an epoch that has ended: taken until it is given up
                # A READ may have ended on its rank before the other ranks answered.
                self._table.abort(place, counter, bool(job.limbo) and i in job.limbo_chunks)
            self._by_key.pop(job.keys[i * KEY : (i + 1) * KEY], None)
        if not job.limbo:
            del self._jobs[number]
        if PullResult.PEER_DEAD in job.results:
            self._died(job)
        (job.then or self._on_done)(job)

    def _limbo_ended(self, number: int, job: Job, rank: int, results: bytes = b"") -> None:
        if PullResult.TIMEOUT in results:
            return  # its answer came late, and its READ is still on its way
        job.limbo.discard(rank)
        if job.done and not job.limbo:
            for i in job.limbo_chunks:
                self._table.end_limbo(*_slot(job, i))
            self._jobs.pop(number, None)

    @property
    def awaited(self) -> bool:
        """Whether a request waits for one."""
        return any(job.then is None and not job.done for job in self._jobs.values())

    @property
    def open(self) -> int:
        """Jobs that have not ended, limbo included."""
        return len(self._jobs)

    def close(self) -> None:
        for link in self._links.values():
            link.close()
        self._links.clear()
