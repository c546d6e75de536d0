"""From whom chunks come, and whether it pays: mapped, pulled, or computed instead.

`post()` sends the pulls for chunks that are neither here nor mapped; `ended()` hears each end, by
which peers are measured, avoided and trusted again. Under `pull: auto` a pull is made unless it
would take longer than computing what it brings (agent/rates.py); a mapped pool is copied from at
the speed of memory, and always taken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lmkv import _native
from lmkv.agent.kv_events import KvEvents
from lmkv.agent.locator import Locator
from lmkv.agent.pulls import Job, Pulls
from lmkv.agent.rates import Rates
from lmkv.agent.request import RequestState, Source
from lmkv.agent.stats import Stats
from lmkv.core import wire
from lmkv.core.config import InstanceConfig
from lmkv.core.geometry import GRANULES_A_SLOT, HOST
from lmkv.core.messages import PullPeer, PullResult, RankInfo
from lmkv.core.metrics import PULL_RESULTS
from lmkv.core.parts import parts

KEY, PLACE, COUNTER = wire.KEY_BYTES, wire.PLACE_BYTES, wire.COUNTER_BYTES
READABLE, RESERVED = 1, 2
PEERS = 4096  # whose ranks are remembered
FAILURES = 1 << 14  # chunks whose pull failed that are remembered


@dataclass
class Geometry:
    """Of the engine's chunks and blocks in one cache group."""

    chunk_tokens: int  # the same in every group
    block_tokens: int
    payload_bytes: int  # of a chunk, over all ranks
    window: int = 0  # tokens that its attention sees, the new one too; 0: all
    state: bool = False  # a block is the state after its last token

    @property
    def blocks_per_chunk(self) -> int:
        return self.chunk_tokens // self.block_tokens

    def blocks(self, table: Sequence[int], chunk: int) -> list[int]:
        """Those of a request's blocks that a chunk's slot holds."""
        end = (chunk + 1) * self.blocks_per_chunk
        return list(table[end - 1 if self.state else end - self.blocks_per_chunk : end])

    def first_needed(self, end: int) -> int:
        """The first chunk of which a hit of chunks [0, end) needs something."""
        if not self.window:
            return 0
        return max(0, end * self.chunk_tokens - self.window + 1) // self.chunk_tokens


def room_for(place: bytes) -> int:
    """Granules of an own place for what is pulled from a peer's: as many, where that can be."""
    return place[4] if 0 < place[4] < GRANULES_A_SLOT else GRANULES_A_SLOT


def is_whole(own: Sequence[RankInfo], ranks: Sequence[PullPeer], group: int) -> bool:
    """Whether each rank here reads whole slots of a peer's."""
    infos = [peer.info for peer in ranks]
    return all(part.whole for rank in own for part in parts(rank, infos, group))


class Transfers:
    def __init__(
        self,
        config: InstanceConfig,
        groups: Sequence[Geometry],
        table: _native.SlotTable,
        locator: Locator,
        pulls: Pulls,
        rates: Rates,
        stats: Stats,
        ranks: list[RankInfo],
        clock: Callable[[], float],
        events: KvEvents | None = None,
    ) -> None:
        self._events = events
        self._config = config
        self._groups = groups
        self._table = table
        self._locator = locator
        self._pulls = pulls
        self._rates = rates
        self._stats = stats
        self._own = ranks
        self._clock = clock
        self._read: dict[
            tuple[str, int], tuple[list[PullPeer], list[list[PullPeer]], bool]
        ] = {}  # see `_parts`
        self._failures: dict[bytes, str] = {}  # causes by key, the latest last
        self._unmapped: dict[str, int] = {}  # epochs of peers of this host that cannot be mapped

    def mapped(self, state: RequestState, source: Source) -> list[PullPeer]:
        """The peer's ranks where its pool is mapped rather than pulled from, else []."""
        ranks = [] if state.transfer == "nixl" else self._locator.ranks(source.peer)
        if state.transfer == "auto" and ranks and self._unmapped.get(source.peer) == ranks[0].epoch:
            return []
        host = self._own[0].host
        together = all(own.host == host for own in self._own)
        here = together and all(rank.info.share_socket and rank.info.host == host for rank in ranks)
        return ranks if here and self._parts(source.peer, state.group) else []

    def cannot_map(self, peer: str) -> bool:
        """From now on this life of the peer is pulled from, as one on another host: CUDA IPC is
        refused. False: its pools are the host's, or not pullable."""
        ranks = self._locator.ranks(peer)
        pullable = (rank.info.tier != HOST and rank.info.nixl_metadata for rank in ranks)
        if not ranks or not all(pullable):
            return False
        self._unmapped[peer] = ranks[0].epoch
        while len(self._unmapped) > PEERS:
            del self._unmapped[next(iter(self._unmapped))]
        return True

    def _whole(self, instance: str, group: int) -> bool:
        """Whether the slots of the peer's ranks are like ours."""
        return bool(self._parts(instance, group)) and self._read[instance, group][2]

    def _parts(self, instance: str, group: int) -> list[list[PullPeer]]:
        """By rank here, the peer's ranks that its heads of a cache group are read from; [] when
        some lack."""
        ranks = self._locator.ranks(instance)
        known = self._read.get((instance, group))
        if known is None or known[0] is not ranks:  # asked by the chunk, made once
            infos = [peer.info for peer in ranks]
            each = [parts(own, infos, group) for own in self._own]
            found = [[ranks[part.at] for part in of_rank] for of_rank in each]
            whole = all(part.whole for of_rank in each for part in of_rank)
            known = self._read[instance, group] = ranks, found if all(found) else [], whole
            while len(self._read) > PEERS:
                del self._read[next(iter(self._read))]
        return known[1]

    def post(self, state: RequestState, first: int, last: int, weigh: bool = True) -> None:
        """Pulls for chunks that are neither here nor mapped, one job a peer and run; up to the
        first chunk that does not come, behind which no other is of use. `weigh`: where that pays.
        """
        have = self._table.contains(state.keys(first, last))
        batch: list[tuple[int, Source]] = []
        end = last
        for chunk in range(first, last):
            source = state.sources.get(chunk)
            there = have[chunk - first]
            if there == RESERVED:
                job = self._pulls.job_of(state.keys(chunk, chunk + 1))
                if job is not None:
                    state.jobs.add(job)
                    state.pulled.add(chunk)
                continue
            if there == READABLE:
                continue
            if source is None or not self.usable(state, source):
                end = chunk
                break
            if self.mapped(state, source):
                continue
            if batch and batch[-1][1].peer != source.peer:
                if not self._post_batch(state, batch, chunk, weigh):
                    return
                batch = []
            batch.append((chunk, source))
        if batch:
            self._post_batch(state, batch, end, weigh)

    def usable(self, state: RequestState, source: Source) -> bool:
        """Whether the chunk can come from there; if not, the cause is noted."""
        state.asked.add(source.peer)
        ranks = self._locator.ranks(source.peer)
        if ranks and self.mapped(state, source):
            return True
        if not ranks or self._locator.avoids(source.peer):
            state.miss = "peer_dead"
            return False
        if not self._parts(source.peer, state.group) or not self._fits(state, source):
            state.miss = "incompatible"
            return False
        if state.transfer == "mapped" or self._config.pull == "never":
            state.miss = "incompatible" if state.transfer == "mapped" else "recompute_cheaper"
            return False
        if not self.can_pull(ranks):
            state.miss = "mover_down"
            return False
        return True

    def _fits(self, state: RequestState, source: Source) -> bool:
        """Parts of slots are put together in the host's memory alone, and compressed ones lie there
        alone. Of those only the whole can be pulled: where its heads lie, only its own table
        tells, and a READ must know that before."""
        on_gpu, short = self._own[0].tier != HOST, source.place[4] < GRANULES_A_SLOT
        if on_gpu and short:
            return False
        return not (on_gpu or short) or self._whole(source.peer, state.group)

    def can_pull(self, ranks: Sequence[PullPeer]) -> bool:
        """Whether the movers here and those of a peer's ranks are there."""
        return self._pulls.ready and all(r.info.nixl_metadata for r in ranks)

    def _post_batch(
        self, state: RequestState, batch: list[tuple[int, Source]], end: int, weigh: bool
    ) -> bool:
        """Pull these chunks, which bring what lies before chunk `end`; False if that is not done,
        with its cause."""
        peer = batch[0][1].peer
        granules = bytes(room_for(source.place) for _, source in batch)
        size = self.size(state, 1) * sum(granules) // GRANULES_A_SLOT
        if weigh and not self.pays(state, peer, size, batch[0][0], end):
            state.miss = "recompute_cheaper"
            return False
        keys = b"".join(state.keys(chunk, chunk + 1) for chunk, _ in batch)
        own = self._table.reserve(keys, self._clock(), granules)
        if own is None:
            state.miss = "no_room"
            return False
        if self._events is not None:
            for at, (chunk, _) in enumerate(batch):
                key, place = keys[at * KEY : (at + 1) * KEY], own[0][at * PLACE : (at + 1) * PLACE]
                self._events.reserved(state.id, state.group, chunk, key, place)
        remote = (
            b"".join(source.place for _, source in batch),
            b"".join(source.counter.to_bytes(COUNTER, "little") for _, source in batch),
        )
        seconds = self.started(peer, size)
        ranks = self._parts(peer, state.group)
        state.jobs.add(
            self._pulls.post(ranks, keys, remote, own, size, seconds, state.group, state.trace)
        )
        state.pulled |= {chunk for chunk, _ in batch}
        return True

    def started(self, peer: str, size: int, least: float = 0.0) -> float:
        """A pull of so many bytes is about to be posted: its deadline in seconds."""
        seconds = max(least, self._config.pull_deadline_min, 4 * self._rates.estimate(peer, size))
        self._rates.started(peer, size)
        return min(seconds, self._config.pull_deadline_max)

    def size(self, state: RequestState, chunks: int) -> int:
        """Bytes of so many chunks, of all ranks."""
        return chunks * self._groups[state.group].payload_bytes

    def pays(self, state: RequestState, peer: str, size: int, first: int, end: int) -> bool:
        """Whether pulling is not slower than computing chunks [first, end), or is not weighed."""
        chunk = self._groups[0].chunk_tokens
        tokens = end * chunk - max(first * chunk, state.computed)
        faster = self._rates.computing_is_faster
        return self._config.pull != "auto" or not faster(peer, size, tokens)

    def measured(self, job: Job) -> None:
        """What the end of a pull says of its peer's rate, and for the counts."""
        if job.good:
            self._stats.pull(job.peer, job.seconds, job.bytes)
        for result, chunks in Counter(job.results).items():
            self._stats.count("pulled_chunks", PULL_RESULTS[result], by=chunks)
        whole = all(r in (PullResult.GOOD, PullResult.TIMEOUT) for r in job.results)
        brought = job.bytes if whole else 0
        self._rates.ended(job.peer, job.size, brought, job.begin, job.seconds)

    def ended(self, job: Job) -> None:
        """Called by `pulls` at the end of each request's job."""
        results = set(job.results)
        job.trace.pulled(job)
        self.measured(job)
        unfit = {PullResult.PEER_DEAD, PullResult.INCOMPATIBLE}  # what it announced is not so
        if results & unfit or (PullResult.TIMEOUT in results and not job.unheard):
            self._locator.failed(job.peer)
        elif results == {PullResult.GOOD}:
            self._locator.worked(job.peer)
        if job.stale:
            self._locator.outdated(job.peer)
        for i, result in enumerate(job.results):
            key = job.keys[i * KEY : (i + 1) * KEY]
            self._failures.pop(key, None)
            if result != PullResult.GOOD:
                self._failures[key] = PullResult.CAUSES[result]
        while len(self._failures) > FAILURES:
            del self._failures[next(iter(self._failures))]

    def why(self, key: bytes) -> str:
        """The cause for which the last pull of this key failed."""
        return self._failures.get(key, "gone")
