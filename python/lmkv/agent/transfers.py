"""From whom chunks come, and whether it pays: mapped, pulled, or computed instead.

`post()` sends the pulls for chunks that are neither here nor mapped; `ended()` hears each end, by
which peers are measured, avoided and trusted again. Under `pull: auto` a pull is made unless it
would take longer than computing what it brings (agent/rates.py); a mapped pool is copied from at
the speed of memory, and always taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lmkv import _native
from lmkv.agent.locator import Locator
from lmkv.agent.pulls import Job, Pulls
from lmkv.agent.rates import Rates
from lmkv.agent.request import RequestState, Source
from lmkv.agent.stats import Stats
from lmkv.core import wire
from lmkv.core.config import InstanceConfig
from lmkv.core.messages import HostIdentity, PullPeer, PullResult

KEY, COUNTER = wire.KEY_BYTES, wire.COUNTER_BYTES
READABLE, RESERVED = 1, 2
FAILURES = 1 << 14  # chunks whose pull failed that are remembered


@dataclass
class Geometry:
    """Of the engine's chunks and blocks."""

    chunk_tokens: int
    block_tokens: int
    payload_bytes: int

    @property
    def blocks_per_chunk(self) -> int:
        return self.chunk_tokens // self.block_tokens


class Transfers:
    def __init__(
        self,
        config: InstanceConfig,
        geometry: Geometry,
        table: _native.SlotTable,
        locator: Locator,
        pulls: Pulls,
        rates: Rates,
        stats: Stats,
        host: HostIdentity | None,
        clock: Callable[[], float],
    ) -> None:
        self._config = config
        self._geometry = geometry
        self._table = table
        self._locator = locator
        self._pulls = pulls
        self._rates = rates
        self._stats = stats
        self._host = host
        self._clock = clock
        self._failures: dict[bytes, str] = {}  # causes by key, the latest last

    def mapped(self, state: RequestState, source: Source) -> list[PullPeer]:
        """The peer's ranks where its pool is mapped rather than pulled from, else []."""
        ranks = [] if state.transfer == "nixl" else self._locator.ranks(source.peer)
        here = all(rank.info.share_socket and rank.info.host == self._host for rank in ranks)
        return ranks if here else []

    def post(self, state: RequestState, first: int, last: int) -> None:
        """Pulls for chunks that are neither here nor mapped, one job a peer and run; up to the
        first chunk that does not come, behind which no other is of use."""
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
            if source is None or not self._usable(state, source):
                end = chunk
                break
            if self.mapped(state, source):
                continue
            if batch and batch[-1][1].peer != source.peer:
                if not self._post_batch(state, batch, chunk):
                    return
                batch = []
            batch.append((chunk, source))
        if batch:
            self._post_batch(state, batch, end)

    def _usable(self, state: RequestState, source: Source) -> bool:
        state.asked.add(source.peer)
        ranks = self._locator.ranks(source.peer)
        if ranks and self.mapped(state, source):
            return True
        if not ranks or self._locator.avoids(source.peer):
            state.miss = "peer_dead"
            return False
        if state.transfer == "mapped" or self._config.pull == "never":
            state.miss = "incompatible" if state.transfer == "mapped" else "recompute_cheaper"
            return False
        if not self._pulls.ready or not all(r.info.nixl_metadata for r in ranks):
            state.miss = "mover_down"
            return False
        return True

    def _post_batch(self, state: RequestState, batch: list[tuple[int, Source]], end: int) -> bool:
        """Pull these chunks, which bring what lies before chunk `end`; False if that is not done,
        with its cause."""
        ranks = self._locator.ranks(batch[0][1].peer)
        size = len(batch) * self._geometry.payload_bytes * len(ranks)
        if self._config.pull == "auto" and not self._pays(state, ranks, size, batch[0][0], end):
            state.miss = "recompute_cheaper"
            return False
        keys = b"".join(state.keys(chunk, chunk + 1) for chunk, _ in batch)
        own = self._table.reserve(keys, self._clock())
        if own is None:
            state.miss = "no_room"
            return False
        remote = (
            b"".join(source.place for _, source in batch),
            b"".join(source.counter.to_bytes(COUNTER, "little") for _, source in batch),
        )
        peer = ranks[0].instance
        seconds = min(
            max(self._config.pull_deadline_min, 4 * self._rates.estimate(peer, size)),
            self._config.pull_deadline_max,
        )
        self._rates.started(peer, size)
        state.jobs.add(self._pulls.post(ranks, keys, remote, own, size, seconds))
        state.pulled |= {chunk for chunk, _ in batch}
        return True

    def _pays(
        self, state: RequestState, ranks: list[PullPeer], size: int, first: int, end: int
    ) -> bool:
        """Whether pulling is not slower than computing chunks [first, end)."""
        chunk = self._geometry.chunk_tokens
        tokens = end * chunk - max(first * chunk, state.computed)
        return not self._rates.computing_is_faster(ranks[0].instance, size, tokens)

    def ended(self, job: Job) -> None:
        """Called by `pulls` at the end of each job."""
        results = set(job.results)
        if job.good:
            self._stats.pull(job.seconds, job.bytes)
        whole = all(r in (PullResult.GOOD, PullResult.TIMEOUT) for r in job.results)
        brought = job.bytes if whole else 0
        self._rates.ended(job.peer, job.size, brought, job.begin, job.seconds)
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
