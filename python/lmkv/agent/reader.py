"""The read path: keys -> lookup -> locate -> pulls -> what can be loaded.

`begin()` sends the locate when a request arrives. `match()` is asked by vLLM at each scheduling
pass and never blocks: None while answers or pulls are awaited, until their deadline; then the
number of tokens that a load brings, pinned for the request. `load()` makes the load once vLLM has
given blocks; `loaded()` hears its end. All is the scheduler thread's; pulls may also be drained by
the background thread, under `lock`.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from lmkv import _native
from lmkv.agent.locator import Locator
from lmkv.agent.pulls import Pulls
from lmkv.agent.request import Phase, RequestState, Source
from lmkv.agent.stats import Stats
from lmkv.agent.transfers import READABLE, RESERVED, Geometry, Transfers
from lmkv.core import wire
from lmkv.core.config import InstanceConfig
from lmkv.core.messages import PullPeer, PullResult
from lmkv.core.steps import SKIPPED, Load, LoadChunk, LoadResult

# What a mapped peer does not do twice in a row: it is gone, or is not what it announced.
UNFIT = (PullResult.PEER_DEAD, PullResult.TIMEOUT, PullResult.INCOMPATIBLE)
KEY, PLACE, COUNTER = wire.KEY_BYTES, wire.PLACE_BYTES, wire.COUNTER_BYTES
NULL_BLOCK = 0  # vLLM's, in the place of a block that its attention window has left behind


class Reader:
    def __init__(
        self,
        config: InstanceConfig,
        groups: Sequence[Geometry],
        table: _native.SlotTable,
        locator: Locator,
        pulls: Pulls,
        transfers: Transfers,
        stats: Stats,
        clock: Callable[[], float],
    ) -> None:
        self._config = config
        self._groups = groups
        self._chunk_tokens = groups[0].chunk_tokens
        self._table = table
        self._locator = locator
        self._pulls = pulls
        self._transfers = transfers
        self._stats = stats
        self._clock = clock
        # Of `pulls`; and so that nothing is revived between a `contains` and its `reserve`.
        self.lock = threading.Lock()
        self.epoch = 0

    # ------------------------------------------------------------ before blocks

    def begin(self, state: RequestState) -> None:
        """A request has arrived: ask for what the own pool does not hold."""
        if state.chain is None or state.skip_load:
            state.miss = "opted_out"
            state.phase = Phase.READY
            return
        last = self._last(state.prompt_tokens)
        keys = state.keys(0, last)
        with self.lock:
            state.base = self._table.lookup(keys)
        if state.base >= last:
            state.phase = Phase.PULLING
        else:
            state.locate = self._locator.ask(keys[state.base * KEY :], self.epoch)
            state.phase = Phase.LOCATING if state.locate else Phase.PULLING
            state.miss = "cold" if state.locate else "no_controller"
            if state.locate:
                state.trace.locating()

    def parts(self, state: RequestState) -> list[RequestState]:
        """A request's states by cache group; none where its own is enough."""
        return []

    def match(self, state: RequestState, computed: int, tokens: int) -> int | None:
        """Tokens beyond vLLM's own `computed` that a load brings; None: ask again."""
        if state.chain is None or state.skip_load or state.phase in (Phase.LOADING, Phase.DONE):
            return 0
        # A preempted request has more tokens than keys: those of its last steps have none yet.
        first = computed // self._chunk_tokens
        last = min(self._last(tokens), len(state.chain))
        state.computed = computed
        if first >= last:
            self._release(state)
            state.first = state.end = first
            return 0
        self._locator.drain()
        if state.phase is Phase.LOCATING and not self._located(state):
            return None
        if state.phase is Phase.PULLING and not self._gathered(state, first, last):
            return None
        if not state.chunks or state.first != first:
            self._choose(state, first, last)
        claim = state.end * self._chunk_tokens - computed
        if not state.chunks:
            return 0
        if claim < self._config.min_tokens:
            state.miss = "recompute_cheaper"
            return 0
        return claim

    def _last(self, tokens: int) -> int:
        """Chunks that a hit may cover: vLLM computes at least the last token itself."""
        return max(0, (tokens - 1) // self._chunk_tokens)

    def _located(self, state: RequestState) -> bool:
        if not state.deadline:  # counts from the moment when vLLM begins to wait
            state.deadline = self._clock() + self._config.locate_deadline
        answer = self._locator.answer(state.locate, state.deadline)
        if answer is None:
            least = self._config.locate_deadline / 8
            if not self._locator.over(state.locate, state.deadline, least):
                return False
            self._locator.drop(state.locate)
            state.miss = "locate_timeout"
        else:
            state.miss = state.missing = answer.missing
            state.differs = answer.differs
            state.sources = {state.base + i: s for i, s in answer.sources.items()}
            state.alternates = {state.base + i: s for i, s in answer.alternates.items()}
            state.holders = answer.peers
        state.trace.located(state, state.miss)
        state.phase = Phase.PULLING
        self._fetch_details(state, state.sources)
        return True

    def _fetch_details(self, state: RequestState, chunks: Iterable[int]) -> None:
        """Of the peers that hold these chunks."""
        names = {state.sources[chunk].peer for chunk in chunks if chunk in state.sources}
        refs = {name: state.holders[name] for name in names.difference(self._locator.avoided())}
        state.peers = {name: ref for name, ref in refs.items() if not self._locator.fetch(ref)}
        state.deadline = self._clock() + self._config.connect_deadline

    def _gathered(self, state: RequestState, first: int, last: int) -> bool:
        """Peers' details are here, pulls posted and ended; or their deadlines have passed."""
        while True:
            avoids, fetch = self._locator.avoids, self._locator.fetch
            state.peers = {
                peer: ref
                for peer, ref in state.peers.items()
                if not avoids(peer) and not fetch(ref)
            }
            if state.peers and self._clock() < state.deadline:
                return False
            with self.lock:
                self._pulls.drain()
                if not state.jobs:
                    self._post(state, first, last)
                if state.jobs and state.pull_began is None:
                    state.pull_began = self._clock()
                waiting = {job for job in state.jobs if not self._pulls.done(job)}
            if waiting:
                return False
            if not self._fall_back(state, first, last):
                if state.pull_began is not None:
                    state.pull_seconds = self._clock() - state.pull_began
                state.phase = Phase.READY
                return True

    def _post(self, state: RequestState, first: int, last: int) -> None:
        if state.sources:
            self._transfers.post(state, first, last)

    def _fall_back(self, state: RequestState, first: int, last: int) -> bool:
        """Where the first chunk that did not come has another holder, that one is asked, for all
        that this peer did not bring. It ends: an alternate is taken once."""
        have = self._table.contains(state.keys(first, last))
        missing = [chunk for chunk in range(first, last) if have[chunk - first] != READABLE]
        for at, chunk in enumerate(missing):
            source = state.sources.get(chunk)
            if source is not None and self._transfers.mapped(state, source):
                continue
            if source is None or have[chunk - first] == RESERVED:  # being stored here
                return False
            if source.peer not in state.asked:  # another request's pull was joined, and failed
                state.asked.add(source.peer)
                state.jobs.clear()
                self._fetch_details(state, missing[at:])
                return True
            if chunk not in state.alternates:
                return False
            self._leave_peer(state, source.peer, missing[at:])
            self._fetch_details(state, missing[at:])
            return True
        return False

    def _leave_peer(self, state: RequestState, peer: str, chunks: list[int]) -> None:
        """These chunks come from their alternates now, or from nobody."""
        state.jobs.clear()
        theirs = [c for c in chunks if c in state.sources and state.sources[c].peer == peer]
        if all(chunk in state.alternates for chunk in theirs):
            state.miss = state.missing
        for chunk in theirs:
            del state.sources[chunk]
            if chunk in state.alternates:
                state.sources[chunk] = state.alternates.pop(chunk)
                state.pulled.discard(chunk)

    # ------------------------------------------------------------ what to load

    def _choose(self, state: RequestState, first: int, last: int) -> None:
        """Pin what the own pool holds from `first` on, name mapped peers' slots between."""
        self._release(state)
        state.first = chunk = first
        while chunk < last:
            pinned = self._pin(state, state, chunk, last)
            chunk += pinned
            source = state.sources.get(chunk) if chunk < last else None
            ranks = self._transfers.mapped(state, source) if source is not None else []
            if source is not None and ranks:
                self._add_mapped(state, state, chunk, source, ranks)
                chunk += 1
            elif not pinned:
                break
        state.end = chunk
        if chunk < last and chunk in state.pulled:
            state.miss = self._transfers.why(state.keys(chunk, chunk + 1))

    def _pin(self, state: RequestState, part: RequestState, first: int, last: int) -> int:
        """Add to the load what the own pool holds of a part's chunks [first, last), up to the first
        that it has not; how many."""
        keys = part.keys(first, last)
        places, counters, pinned = self._table.pin(keys)
        if not pinned:
            return 0
        state.pins.append((places, counters))
        high = (self.epoch & 0xFFFFFFFF) << 32
        for i in range(pinned):
            counter = int.from_bytes(counters[i * COUNTER : (i + 1) * COUNTER], "little")
            place = places[i * PLACE : (i + 1) * PLACE]
            key = keys[i * KEY : (i + 1) * KEY]
            state.chunks.append(LoadChunk(key, place, high | counter, [], group=part.group))
            state.chunk_peers.append("")
        return pinned

    def _add_mapped(
        self,
        state: RequestState,
        part: RequestState,
        chunk: int,
        source: Source,
        ranks: list[PullPeer],
    ) -> None:
        # Kept until the load: meanwhile another request may find them out of date.
        ranks = state.peer_ranks.setdefault(source.peer, ranks)
        generation = (ranks[0].epoch & 0xFFFFFFFF) << 32 | source.counter
        key = part.keys(chunk, chunk + 1)
        state.chunks.append(LoadChunk(key, source.place, generation, [], 0, part.group))
        state.chunk_peers.append(source.peer)

    def _release(self, state: RequestState) -> None:
        for places, counters in state.pins:
            self._table.unpin(places, counters)
        state.pins, state.chunks, state.chunk_peers = [], [], []
        state.peer_ranks = {}

    # ------------------------------------------------------------ with blocks

    def load(self, state: RequestState, tables: Sequence[list[int]], tokens: int) -> Load:
        """vLLM has given blocks in each cache group for `tokens` more than it had computed."""
        state.phase = Phase.LOADING
        assert state.computed + tokens == state.end * self._chunk_tokens
        peers: list[str] = []
        for i, (number, chunk) in enumerate(zip(self._numbers(state), state.chunks, strict=True)):
            chunk.blocks = self._blocks(state, number, chunk.group, tables[chunk.group])
            if state.chunk_peers[i]:
                if state.chunk_peers[i] not in peers:
                    peers.append(state.chunk_peers[i])
                chunk.peer = peers.index(state.chunk_peers[i])
        return Load(state.id, state.chunks, [state.peer_ranks[peer] for peer in peers])

    def own(self, state: RequestState) -> Iterator[tuple[int, LoadChunk]]:
        """Those of a load that come from the own pool, by their numbers."""
        for number, chunk, peer in zip(self._numbers(state), state.chunks, state.chunk_peers):
            if not peer:
                yield number, chunk

    def _numbers(self, state: RequestState) -> Iterable[int]:
        """Those of the chunks that are loaded."""
        return range(state.first, state.end)

    def _blocks(
        self, state: RequestState, number: int, group: int, table: Sequence[int]
    ) -> list[int]:
        """Where this chunk goes: not to blocks that vLLM has filled, nor to its null block."""
        geometry = self._groups[group]
        blocks, skip = geometry.blocks(table, number), state.computed // geometry.block_tokens
        at = (number + 1) * geometry.blocks_per_chunk - len(blocks)
        if geometry.window:
            blocks = [SKIPPED if block == NULL_BLOCK else block for block in blocks]
        return [block if at + j >= skip else SKIPPED for j, block in enumerate(blocks)]

    def loaded(self, state: RequestState, result: LoadResult) -> int:
        """The load has ended on every rank; vLLM computes from the chunk returned on."""
        bad = None
        if result.good < len(state.chunks):
            peer = state.chunk_peers[result.good]
            state.miss = PullResult.CAUSES[result.result]
            if not peer and result.result in (PullResult.DIGEST, PullResult.GONE):  # it was pinned
                bad = state.chunks[result.good]
            unmapped = peer and result.result == PullResult.INCOMPATIBLE
            if unmapped and state.transfer == "auto" and self._transfers.cannot_map(peer):
                pass
            elif peer and result.result in UNFIT:
                self._locator.failed(peer)
        for chunk, peer in zip(state.chunks[: result.good], state.chunk_peers):
            if peer:
                self._stats.came(peer, self._groups[chunk.group].payload_bytes)
        good = self._brought(state, result.good)
        self.account(state, good)
        self._release(state)
        if bad and self._table.places(bad.key)[0] == bad.place:  # not one stored since
            self._table.retire(bad.key, revivable=False)
        state.phase = Phase.DONE
        return state.first + good

    def _brought(self, state: RequestState, good: int) -> int:
        """The prefix, in chunks, that a load with so many good ones has brought."""
        for i in range(good):
            if state.chunk_peers[i]:
                state.mapped.add(state.first + i)
        return good

    def declined(self, state: RequestState) -> None:
        """vLLM runs the request without a load."""
        self.account(state)
        self._release(state)

    def account(self, state: RequestState, good: int = 0) -> None:
        """Count the prompt's tokens by cause, once a request; `good` chunks were loaded."""
        if state.accounted:
            return
        state.accounted = True
        size = self._chunk_tokens
        whole = self._last(state.prompt_tokens) * size
        counts = Counter({("hit_vllm", ""): state.computed})
        at = state.computed
        for cause, peer, tokens in self._hits(state, good):
            counts[cause, peer] += tokens
            at += tokens
        if at < whole:
            counts[state.miss, self._holder(state, at // size)] += whole - at
            at = whole
        rest = "opted_out" if state.chain is None else "too_short"
        counts[rest, ""] += state.prompt_tokens - at
        for (cause, peer), tokens in counts.items():
            told = state.hits if cause.startswith("hit_") else state.misses
            told[cause] += tokens
            if peer and cause.startswith("hit_"):
                state.brought[peer] += tokens
            self._stats.tokens(cause, tokens, peer)

    def planned(self, state: RequestState) -> Counter[str]:
        """Tokens of a load that has begun, by the cause that they are to count under."""
        found: Counter[str] = Counter()
        for cause, _, tokens in self._hits(state, state.end - state.first):
            found[cause] += tokens
        return found

    def _hits(self, state: RequestState, good: int) -> Iterator[tuple[str, str, int]]:
        """(cause, peer, tokens) of each of a load's first `good` chunks."""
        at = state.computed
        for number, (cause, peer) in zip(
            range(state.first, state.first + good), self._origins(state)
        ):
            end = (number + 1) * self._chunk_tokens
            yield cause, peer, end - at
            at = end

    def _origins(self, state: RequestState) -> Iterator[tuple[str, str]]:
        """(cause of a hit, peer or "") of each chunk of the load, in order."""
        for number, peer in zip(range(state.first, state.end), state.chunk_peers):
            if peer:
                yield "hit_mapped", peer
            elif number in state.pulled:
                yield "hit_peer", self._holder(state, number)
            else:
                yield "hit_pool", ""

    def _holder(self, state: RequestState, number: int) -> str:
        """The peer that this chunk came from, or was to come from; "" for none."""
        source = state.sources.get(number)
        return source.peer if source is not None else ""

    def end(self, state: RequestState) -> None:
        """The request is over, with or without a load."""
        if state.locate:
            self._locator.drop(state.locate)
        if state.phase is not Phase.LOADING:
            self._release(state)
