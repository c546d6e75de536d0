"""The read path of an engine with several cache groups, or with attention windows.

A hit of n chunks needs of each group what vLLM will look at: of full attention all n, of a sliding
window those that hold the last `window - 1` tokens. So each group is located for itself (windows
sparsely: what was before the window may be gone), the largest n is chosen for which everything is
here, mapped or can be pulled, and chosen again among what came. vLLM takes such a load whole or not
at all: one chunk that fails fails it.

A group's state is a `part` of the request's: its keys, and where they were found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain

from lmkv.agent.reader import Reader
from lmkv.agent.request import Phase, RequestState, Source
from lmkv.agent.transfers import READABLE, RESERVED
from lmkv.core.geometry import GRANULES_A_SLOT


class GroupReader(Reader):
    # ------------------------------------------------------------ before blocks

    def begin(self, state: RequestState) -> None:
        """A request has arrived: ask for each group's chunks that the own pool does not hold."""
        if state.chain is not None:
            state.parts = self.parts(state)
        if state.chain is None or state.skip_load:
            super().begin(state)
            return
        last = self._last(state.prompt_tokens)
        with self.lock:
            self._look_up(state, last)
        state.phase = Phase.PULLING
        for part in state.parts:
            if part.base < last:
                sparse = self._groups[part.group].window > 0
                part.locate = self._locator.ask(part.keys(part.base, last), self.epoch, sparse)
                part.miss = "cold" if part.locate else "no_controller"
        if any(part.locate for part in state.parts):
            state.phase = Phase.LOCATING
            state.trace.locating()

    def parts(self, state: RequestState) -> list[RequestState]:
        return [
            RequestState(
                state.id,
                state.chain,
                state.prompt_tokens,
                state.epoch,
                state.transfer,
                trace=state.trace,
                group=group,
            )
            for group in range(len(self._groups))
        ]

    def _look_up(self, state: RequestState, last: int) -> None:
        """Each part's `base`: the first chunk that is missing here and that a hit may need."""
        full = [part for part in state.parts if not self._groups[part.group].window]
        for part in full:
            part.base = self._table.lookup(part.keys(0, last))
        reach = min([last, *(part.base for part in full)])
        for part in state.parts:
            if part not in full:
                first = self._groups[part.group].first_needed(reach)
                whole = self._table.lookup(part.keys(first, reach)) == reach - first
                have = self._table.contains(part.keys(0, last))
                missing = (i for i, there in enumerate(have) if there != READABLE)
                part.base = last if whole and reach == last else next(missing, last)

    def _located(self, state: RequestState) -> bool:
        if not state.deadline:  # counts from the moment when vLLM begins to wait
            state.deadline = self._clock() + self._config.locate_deadline
        for part in state.parts:
            answer = self._locator.answer(part.locate, state.deadline) if part.locate else None
            if answer is not None:
                part.locate = 0
                part.miss = answer.missing
                part.sources = {part.base + i: s for i, s in answer.sources.items()}
                part.alternates = {part.base + i: s for i, s in answer.alternates.items()}
                state.holders |= answer.peers
                if answer.missing == "incompatible":
                    state.missing, state.differs = answer.missing, answer.differs
        waiting = [part for part in state.parts if part.locate]
        if waiting and self._clock() < state.deadline:
            return False
        for part in waiting:
            self._locator.drop(part.locate)
            part.locate, part.miss = 0, "locate_timeout"
        state.trace.located(state, "locate_timeout" if waiting else state.missing)
        state.phase = Phase.PULLING
        self._fetch_details(state, ())
        return True

    def _fetch_details(self, state: RequestState, chunks: Iterable[int]) -> None:
        """Of all peers that hold something."""
        names = {source.peer for part in state.parts for source in part.sources.values()}
        names &= state.holders.keys() - set(self._locator.avoided())
        refs = {name: state.holders[name] for name in sorted(names)}
        state.peers = {name: ref for name, ref in refs.items() if not self._locator.fetch(ref)}
        state.deadline = self._clock() + self._config.connect_deadline

    def _post(self, state: RequestState, first: int, last: int) -> None:
        """Pulls of all groups for the longest hit that there can be, if they pay."""
        state.goal = self._reach(state, first, last, pull=True)
        if not self._pays(state, first):
            for part in state.parts:
                part.miss = "recompute_cheaper"
            state.goal = self._reach(state, first, last, pull=False)
        for part in state.parts:
            start = self._start(state, part, first, state.goal)
            self._transfers.post(part, start, state.goal, weigh=False)
            state.jobs |= part.jobs

    def _pays(self, state: RequestState, first: int) -> bool:
        """Whether what the goal takes from each peer comes faster than it is computed."""
        sizes: Counter[str] = Counter()
        for part, _, source in self._pullable(state, first):
            sizes[source.peer] += self._transfers.size(part, 1)
        return all(
            self._transfers.pays(state, peer, size, first, state.goal)
            for peer, size in sizes.items()
        )

    def _pullable(
        self, state: RequestState, first: int
    ) -> Iterator[tuple[RequestState, int, Source]]:
        """(part, chunk, source) of what the goal needs, is not here, and is not mapped."""
        for part in state.parts:
            start = self._start(state, part, first, state.goal)
            have = self._table.contains(part.keys(start, state.goal))
            for chunk in range(start, state.goal):
                source = part.sources.get(chunk)
                if have[chunk - start] or source is None or self._transfers.mapped(part, source):
                    continue
                yield part, chunk, source

    def _fall_back(self, state: RequestState, first: int, last: int) -> bool:
        """Strike out what was to come and did not; True where that leaves something else to try. It
        ends: a chunk is asked once of its holder, and once of the alternate."""
        struck = False
        for part, chunk, source in self._pullable(state, first):
            struck = True
            if source.peer not in part.asked:  # another request's pull was joined, and failed
                part.asked.add(source.peer)
                continue
            del part.sources[chunk]
            if chunk in part.alternates:
                part.sources[chunk] = part.alternates.pop(chunk)
                part.pulled.discard(chunk)
        if struck:
            for each in (state, *state.parts):
                each.jobs.clear()
            self._fetch_details(state, ())
        return struck

    # ------------------------------------------------------------ how far a hit can go

    def _start(self, state: RequestState, part: RequestState, first: int, end: int) -> int:
        """The first chunk of this part that a hit of [first, end) needs."""
        return min(end, max(first, self._groups[part.group].first_needed(end)))

    def _reach(self, state: RequestState, first: int, last: int, pull: bool) -> int:
        """The greatest end of a hit from `first` on whose chunks are all here or mapped, or
        can come (`pull`); where that is not `last`, the cause is noted."""
        # Of each part, for each end: how many chunks in a row before it there are.
        rows = [self._rows(part, first, last, pull) for part in state.parts]

        def lacks(end: int) -> RequestState | None:
            for part, row in zip(state.parts, rows, strict=True):
                if row[end - first] < end - self._start(state, part, first, end):
                    return part
            return None

        end = next(end for end in range(last, first - 1, -1) if not lacks(end))
        if end < last:
            part = lacks(end + 1)
            assert part is not None
            chunk = end - rows[part.group][end + 1 - first]
            state.miss = part.miss
            if chunk in part.pulled:
                state.miss = self._transfers.why(part.keys(chunk, chunk + 1))
        return end

    def _rows(self, part: RequestState, first: int, last: int, pull: bool) -> list[int]:
        have = self._table.contains(part.keys(first, last))
        mapped: dict[str, bool] = {}  # by peer
        usable: dict[tuple[str, bool], bool] = {}  # by peer and whether it is compressed there
        rows = [0]
        for chunk in range(first, last):
            there, source = have[chunk - first], part.sources.get(chunk)
            good = there == READABLE
            if pull and there == RESERVED:  # for another request
                good = self._pulls.job_of(part.keys(chunk, chunk + 1)) is not None
            if not good and source is not None:
                peer = source.peer
                if peer not in mapped:
                    mapped[peer] = bool(self._transfers.mapped(part, source))
                good = mapped[peer]
                if pull and not good and there != RESERVED:
                    kind = peer, source.place[4] < GRANULES_A_SLOT
                    if kind not in usable:
                        usable[kind] = self._transfers.usable(part, source)
                    good = usable[kind]
            rows.append(rows[-1] + 1 if good else 0)
        return rows

    # ------------------------------------------------------------ what to load

    def _choose(self, state: RequestState, first: int, last: int) -> None:
        """Pin or name, group by group, what the longest hit needs; a miss is searched once, as
        vLLM may ask for many steps."""
        if state.nothing_from == first:
            return
        self._release(state)
        state.first = first
        state.end = self._reach(state, first, last, pull=False)
        if state.end == first:
            state.nothing_from = first
        for part in state.parts:
            chunk = self._start(state, part, first, state.end)
            while chunk < state.end:
                chunk += self._pin(state, part, chunk, state.end)
                source = part.sources.get(chunk)
                if chunk == state.end:
                    break
                ranks = self._transfers.mapped(part, source) if source is not None else []
                if source is None or not ranks:  # gone since it was counted
                    self._release(state)
                    state.end = first
                    return
                self._add_mapped(state, part, chunk, source, ranks)
                chunk += 1

    def _numbers(self, state: RequestState) -> Iterable[int]:
        return chain.from_iterable(
            range(self._start(state, part, state.first, state.end), state.end)
            for part in state.parts
        )

    def _brought(self, state: RequestState, good: int) -> int:
        if good < len(state.chunks):
            return 0
        for number, chunk, peer in zip(
            self._numbers(state), state.chunks, state.chunk_peers, strict=True
        ):
            if peer:
                state.parts[chunk.group].mapped.add(number)
        return state.end - state.first

    def _origins(self, state: RequestState) -> Iterator[tuple[str, str]]:
        peers = zip(self._numbers(state), state.chunk_peers, strict=True)
        mapped = {number: peer for number, peer in peers if peer}
        for number in range(state.first, state.end):
            if number in mapped:
                yield "hit_mapped", mapped[number]
            elif any(number in part.pulled for part in state.parts):
                yield "hit_peer", self._holder(state, number)
            else:
                yield "hit_pool", ""

    def _holder(self, state: RequestState, number: int) -> str:
        sources = (part.sources.get(number) for part in state.parts)
        return next((source.peer for source in sources if source is not None), "")

    def end(self, state: RequestState) -> None:
        for part in state.parts:
            if part.locate:
                self._locator.drop(part.locate)
        super().end(state)
