"""The agent of one instance: begin -> match -> allocated -> step -> loaded -> finished.

The calls of vLLM's scheduler come from its one thread and never block. `Background` carries the
rest in a thread of its own: the stream to the controller, reports of workers, and pulls while
nobody waits for them. `turn()` is one round of it, so that a simulator may drive many agents.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lmkv import __version__, _native
from lmkv.agent import tracing
from lmkv.agent.background import Background
from lmkv.agent.checks import Checks
from lmkv.agent.commands import Commands
from lmkv.agent.controllers import Controllers
from lmkv.agent.ended import Ended
from lmkv.agent.engine import Engine
from lmkv.agent.fetches import Fetches
from lmkv.agent.gauges import Gauges
from lmkv.agent.group_reader import GroupReader
from lmkv.agent.jobs import Jobs, split
from lmkv.agent.kv_events import Describe, KvEvents
from lmkv.agent.links import Link
from lmkv.agent.locator import Locator
from lmkv.agent.operations import OPERATIONS
from lmkv.agent.options import Options
from lmkv.agent.pins import Pins
from lmkv.agent.pulls import Job, Pulls
from lmkv.agent.rates import Rates
from lmkv.agent.reader import NULL_BLOCK, Reader
from lmkv.agent.refusals import Refusals
from lmkv.agent.request import Phase, RequestState
from lmkv.agent.resolve import Addresses
from lmkv.agent.rewrites import Rewrites
from lmkv.agent.settings import handler as config_handler
from lmkv.agent.slots import Slots
from lmkv.agent.stats import Stats
from lmkv.agent.stores import Stores
from lmkv.agent.streams import Streams
from lmkv.agent.texts import Texts
from lmkv.agent.transfers import Transfers
from lmkv.core import geometry, identity, wire
from lmkv.core.config import InstanceConfig
from lmkv.core.geometry import GRANULES_A_SLOT
from lmkv.core.messages import PROTOCOL_MAX, PROTOCOL_MIN, Attach, RankInfo, Register
from lmkv.core.steps import SKIPPED, Load, LoadResult, StepPlan, Store

log = logging.getLogger("lmkv.agent")

MAPPED_REMEMBERED = 1 << 16  # keys
CONTROLLERS_TOLD = 16
STEP_FOR_EVENTS = 1.0  # seconds that an idle engine steps on, to tell what it did last


@dataclass
class _Step:
    loads: list[Load] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)  # about to be written by loads


class Agent:
    def __init__(
        self,
        config: InstanceConfig,
        engine: Engine,
        clock: Callable[[], float] = time.monotonic,
        connect: Callable[[str], Link] = Link,
        ranks: Callable[[str], Link] | None = None,
        addresses: Addresses | None = None,
        describe: Describe | None = None,
        tracer: tracing.Off = tracing.OFF,
        texts: Texts | None = None,
    ) -> None:
        """`connect` makes links to controllers, `ranks` those to workers and movers (by default it
        does too). With `describe` vLLM's KV events are fed; without it they cost nothing;
        without `texts` no text is looked up."""
        self._config = config
        self._engine = engine
        self._clock = clock
        self.stats = Stats(clock)
        self.refuse = Refusals(self.stats)
        self.events = KvEvents(describe, self.refuse) if describe is not None else None

        def refusing(make: Callable[[str], Link]) -> Callable[[str], Link]:
            def linked(address: str) -> Link:
                link = make(address)
                link.refuse = self.refuse
                return link

            return linked

        to_ranks = refusing(ranks or connect)

        self.instance, self.cluster = engine.instance, config.cluster
        self.groups = len(engine.groups)
        self.epoch = identity.new_epoch()
        self._isolation = ""
        self.slot_bytes = max(group.payload_bytes for group in engine.groups)
        self.segment_slots = engine.segment_slots
        self.table = _native.SlotTable(
            engine.slots, engine.segment_slots, config.retired_share, tier=engine.ranks[0].info.tier
        )
        self._namespace()
        self.infos = [rank.info for rank in engine.ranks]
        self.data_version = 0
        self._info_lock = threading.Lock()
        listener = self.events.changed if self.events is not None else None
        self.jobs = Jobs(self, OPERATIONS, config.job_bytes_per_second, clock)
        self.pins = Pins(
            self.table,
            config.pin_share,
            engine.instance,
            self.slot_bytes,
            lambda: self.epoch,
            clock,
            self._pin_refused,
            self.lookup,
        )
        news = [self.jobs.news, self.pins.news]
        self.streams = Streams(
            self.table, self.registration, self.stats, clock, self.refuse, listener, news
        )
        self.ended = Ended(clock)
        self._tracer = tracer
        self.checks = Checks(self.table, len(engine.ranks), lambda: self.epoch, self._wake)
        handlers = {
            "config": config_handler(config, engine.used()),
            "why": self.ended.why,
            "verify": self.checks.verify,
            "lookup_text": (texts or Texts()).look,
        }
        self.slots = Slots(self)
        prompt = {**self.jobs.handlers, **self.slots.handlers}
        self.commands = Commands(handlers, self._wake, clock, prompt)
        addresses = addresses or Addresses(config.controllers, clock)
        self._controllers = Controllers(
            addresses, self.streams, self.commands, refusing(connect), clock
        )
        self.fetches = Fetches(self, refusing(connect), clock)
        self.rewrites = Rewrites(self, to_ranks, clock)
        self.locator = Locator(config.cluster, engine.instance, clock, self.refuse)
        self.pulls = Pulls(
            self.table,
            [rank.fingerprints for rank in engine.ranks],
            to_ranks,
            clock,
            self._pulled,
            config.limbo_seconds,
            config.limbo_share * engine.slots,
            self.refuse,
        )
        self.stores = Stores(self.table, len(engine.ranks), self.refuse)
        self._chunk_tokens = engine.groups[0].chunk_tokens
        chunk_bytes = sum(group.payload_bytes for group in engine.groups)
        self.rates = Rates(chunk_bytes, self._chunk_tokens, clock)
        self.transfers = Transfers(
            config,
            engine.groups,
            self.table,
            self.locator,
            self.pulls,
            self.rates,
            self.stats,
            [rank.info for rank in engine.ranks],
            clock,
            self.events,
        )
        whole = geometry.loads_whole([group.window for group in engine.groups])
        self.reader = (GroupReader if whole else Reader)(
            config,
            engine.groups,
            self.table,
            self.locator,
            self.pulls,
            self.transfers,
            self.stats,
            clock,
        )
        self.reader.epoch = self.epoch
        self.pulls.attach(self.attach())
        self._gauges = Gauges(
            engine.instance,
            self.table,
            self.streams,
            self.locator,
            self.pulls,
            self.rates,
            self.pins,
            self.jobs,
            clock,
        )
        self._requests: dict[str, RequestState] = {}
        self._mapped_keys: OrderedDict[bytes, None] = OrderedDict()
        self._step = _Step()
        self._step_until = float("-inf")  # see `must_step`
        self._told_incompatible = self._told_wrong = self._told_unpinned = False
        self.background = Background(
            self, self._controllers, [rank.control for rank in engine.ranks], to_ranks, clock
        )

    def _namespace(self) -> None:
        self.namespace = self._engine.namespace(self._isolation)
        self._hasher = _native.KeyHasher(
            self.namespace, self._engine.group_specs, self._engine.groups[0].chunk_tokens
        )

    def start(self) -> None:
        self.background.start()

    def attach(self) -> Attach:
        return Attach(self._engine.instance, self.epoch, self.data_version)

    def registration(self) -> Register:
        with self._info_lock:
            ranks, version = list(self.infos), self.data_version
        return Register(
            PROTOCOL_MIN,
            PROTOCOL_MAX,
            self._config.cluster,
            self._engine.instance,
            self.epoch,
            self.namespace,
            [layout for rank in self._engine.ranks for layout in rank.layouts],
            self._chunk_tokens,
            ranks,
            data_version=version,
            model=self._engine.model,
            serving_url=self._config.serving_url,
            dp_rank=self._engine.dp_rank,
            group_specs=self._engine.group_specs,
            version=__version__,
            controllers=self.streams.addresses[:CONTROLLERS_TOLD],
            slots=self.table.sums()[0],
        )

    def lookup(self, keys: bytes) -> int:
        """As the table has it. What it takes back from the retired ones is no chunk that the other
        thread is just about to reserve room for."""
        with self.reader.lock:
            return self.table.lookup(keys)

    def room(self, places: bytes) -> int:
        """Bytes that these places take in the pools of all ranks."""
        return sum(places[4 :: wire.PLACE_BYTES]) * self.slot_bytes // GRANULES_A_SLOT

    def _pin_refused(self, sentence: str) -> None:
        if not self._told_unpinned:
            self._told_unpinned = True
            log.warning("lmkv: %s; said once", sentence)

    def rank_changed(self, rank: int, info: RankInfo) -> None:
        """A worker has new segments or another mover (background thread)."""
        with self._info_lock:
            if self.infos[rank] == info:
                return
            self.infos[rank] = info
            self.data_version += 1

    # ------------------------------------------------------------ requests

    def begin(
        self,
        request: str,
        tokens: Sequence[int],
        extra: bytes,
        extras: Mapping[int, bytes],
        options: Options,
        opted_out: str = "",
        trace_headers: Mapping[str, str] | None = None,
    ) -> None:
        """A request has arrived. `opted_out` says why it is not shared, if it is not."""
        state = RequestState(
            request,
            None if opted_out else self._chain(tokens, extra, extras),
            len(tokens),
            self.epoch,
            options.transfer or self._config.transfer,
            options.skip_load,
            options.skip_store,
            opted_out,
            self._tracer.begin(request, trace_headers),
        )
        self._requests[request] = state
        self._take_links()
        self.locator.order = self.streams.order()
        self.reader.begin(state)
        if options.wrong and not self._told_wrong:
            self._told_wrong = True
            log.warning("lmkv: kv_transfer_params of a request: %s; said once", options.wrong)
        if options.pin_ttl and state.chain is not None:
            n = len(state.chain)
            keys = [key for part in state.groups for key in split(part.keys(0, n))]
            if keys:
                self.pins.want(keys, options.pin_ttl)

    def _chain(
        self, tokens: Sequence[int], extra: bytes, extras: Mapping[int, bytes]
    ) -> _native.KeyChain:
        chain = self._hasher.chain(extra)
        chain.extend(tokens, 0, dict(extras))
        return chain

    def _take_links(self) -> None:
        for address, links in self._controllers.take_links().items():
            self.locator.use(address, links)

    def match(self, request: str, computed: int, tokens: int) -> int | None:
        """Tokens that can be loaded beyond `computed`, or None: not known yet."""
        state = self._requests.get(request)
        if state is None or state.epoch != self.epoch:
            return 0
        found = self.reader.match(state, computed, tokens)
        if found is not None:
            state.trace.matched()
        return found

    def allocated(self, request: str, tables: Sequence[list[int]], tokens: int) -> None:
        """vLLM has given blocks, a table for each cache group; with `tokens` > 0 a load of that
        many begins."""
        state = self._requests.get(request)
        if state is None:
            return
        if tokens == 0:
            if state.phase is not Phase.LOADING:
                self.reader.declined(state)
            return
        state.trace.loading()
        load = self.reader.load(state, tables, tokens)
        if self.events is not None:
            for number, chunk in self.reader.own(state):
                self.events.met(request, chunk.group, number, chunk.key, chunk.place)
        self._step.loads.append(load)
        self._step.blocks += [b for chunk in load.chunks for b in chunk.blocks if b != SKIPPED]

    def hit_tokens(self, request: str) -> dict[str, int]:
        """By cause, those of the load that vLLM has just allocated blocks for."""
        state = self._requests.get(request)
        return self.reader.planned(state) if state is not None else {}

    def plan(self, request: str, tokens: Sequence[int], confirmed: int) -> tuple[int, int]:
        """Chunks [first, last) that become storable when `confirmed` tokens are computed."""
        state = self._requests.get(request)
        if state is None or state.chain is None or state.skip_store or state.epoch != self.epoch:
            return 0, 0
        state.confirmed = confirmed
        last = confirmed // self._chunk_tokens
        if last <= state.next_store:
            return 0, 0
        if last > len(state.chain):
            state.chain.extend(tokens)
        return state.next_store, min(last, len(state.chain))

    def has_grown(self, request: str, prompt_tokens: int) -> bool:
        """Whether vLLM has given this request (a streaming session) more input since it began."""
        state = self._requests.get(request)
        return state is not None and state.prompt_tokens != prompt_tokens

    def continued(
        self,
        request: str,
        tokens: Sequence[int],
        extra: bytes,
        extras: Mapping[int, bytes],
        opted_out: str = "",
    ) -> None:
        """A session's next input is here, behind a last turn that vLLM has cut: its keys are made
        afresh. It loads no more; what it computes is stored, unless `opted_out` says why not."""
        was = self._requests[request]
        self.reader.end(was)
        state = self._requests[request] = replace(
            was,
            chain=None if opted_out else self._chain(tokens, extra, extras),
            prompt_tokens=len(tokens),
            opted_out=opted_out,
            phase=Phase.DONE,
            accounted=True,
            next_store=0,
            locate=0,
            parts=[],
        )
        if state.chain is not None:
            state.parts = self.reader.parts(state)
        for part, before in zip(state.parts, was.parts):
            part.mapped = before.mapped

    def step(
        self,
        stores: Iterable[tuple[str, int, int, Sequence[Sequence[int]]]],
        new_blocks: Iterable[int],
    ) -> StepPlan:
        """The plan of a step: `stores` are (request, first chunk, last chunk, its blocks by cache
        group), and `new_blocks` those that the step's forward may overwrite."""
        step, self._step = self._step, _Step()
        # Before this step's own stores are planned: those read blocks that it writes itself.
        wait_for = self.stores.must_wait([*step.blocks, *new_blocks])
        plan = StepPlan(self.epoch, [], step.loads, wait_for)
        try:
            for request, first, last, tables in stores:
                state = self._requests[request]
                state.next_store = last
                for part, blocks in zip(state.groups, tables, strict=True):
                    with self.reader.lock:  # a job may be about to pull the same chunks
                        plan.stores += self._store(state, part, first, last, blocks)
        except Exception:  # must cost neither the loads nor the waits
            log.exception("lmkv: a step's chunks cannot be stored")
        return plan

    def _store(
        self,
        state: RequestState,
        part: RequestState,
        first: int,
        last: int,
        blocks: Sequence[int],
    ) -> list[Store]:
        """Of one cache group, of which `part` knows; the request's own state where it is alone."""
        group = self._engine.groups[part.group]
        have = self.table.contains(part.keys(first, last))
        chunks: list[tuple[bytes, list[int]]] = []
        for chunk in range(first, last):
            key = part.keys(chunk, chunk + 1)
            mine = group.blocks(blocks, chunk)
            if have[chunk - first] or chunk in part.mapped:
                continue
            if group.window and NULL_BLOCK in mine:
                continue  # the window has left a part of it behind
            if group.state and (chunk + 1) * self._chunk_tokens != state.confirmed:
                continue  # the state after other tokens
            if key in self._mapped_keys:
                if (chunk + 1) * self._chunk_tokens <= state.computed:
                    continue  # vLLM kept what had come from a peer
                del self._mapped_keys[key]  # computed here: no peer had it any more
            if key not in (k for k, _ in chunks):
                chunks.append((key, mine))
        if not chunks:
            return []
        stores = self.stores.plan(chunks, self._clock(), part.group)
        if self.events is not None:
            numbers = {part.keys(chunk, chunk + 1): chunk for chunk in range(first, last)}
            for store in stores:
                number = numbers[store.key]
                self.events.reserved(state.id, part.group, number, store.key, store.place)
            self._step_until = self._clock() + STEP_FOR_EVENTS
        return stores

    def loaded(self, request: str, result: LoadResult) -> None:
        """Every rank has reported a load."""
        state = self._requests.get(request)
        if state is None or state.phase is not Phase.LOADING:
            return
        chunks = len(state.chunks)
        computed_from = self.reader.loaded(state, result)
        state.trace.loaded(state, chunks, result.good)
        for part in state.groups:
            for chunk in part.mapped:
                self._mapped_keys[part.keys(chunk, chunk + 1)] = None
        while len(self._mapped_keys) > MAPPED_REMEMBERED:
            self._mapped_keys.popitem(last=False)
        if result.good < chunks:
            state.next_store = min(state.next_store, computed_from)
        if state.over:
            self._over(state)
            del self._requests[request]

    def finished(self, request: str) -> dict[str, Any] | None:
        """The request is over; its counts by cause for the response."""
        state = self._requests.get(request)
        if state is None:
            return None
        self.reader.end(state)
        if state.accounted:  # a load that runs is accounted for at its end
            self._over(state)
        if state.missing == "incompatible" and not self._told_incompatible:
            self._told_incompatible = True
            log.warning(
                "lmkv: only instances of another %s hold a prompt, so it is computed here too",
                state.differs or "layout",
            )
        if state.phase is Phase.LOADING:
            state.over = True  # its pins end with the load
        else:
            del self._requests[request]
        if state.chain is not None and state.next_store:  # so that the chain ages from its tail
            end = min(state.next_store, len(state.chain))
            for part in state.groups:
                first = self._engine.groups[part.group].first_needed(end)
                self.lookup(part.keys(first, end))
        return {"lmkv": {"hit_tokens": dict(state.hits), "miss_tokens": dict(state.misses)}}

    def _over(self, state: RequestState) -> None:
        self.ended.add(state)
        state.trace.ended(state)

    def _wake(self) -> None:
        self.background.wake()

    def _pulled(self, job: Job) -> None:
        """A pull has ended, on either thread."""
        self.transfers.ended(job)
        if self.events is not None:
            self._wake()

    # ------------------------------------------------------------ life

    def take_stats(self) -> dict[str, Any]:
        """What was counted since the last call, and once a second how things stand."""
        return {**self.stats.take(), **self._gauges.take()}

    def reset(self) -> None:
        """vLLM's caches were reset, perhaps since the weights changed: a new epoch."""
        with self.reader.lock:  # no job's pull has slots of one epoch under the name of another
            self.table.begin_epoch()
            self.epoch = self.reader.epoch = identity.new_epoch()
            self.pulls.attach(self.attach())
        if self._config.on_reset == "isolate" and not self._config.weights_version:
            self._isolation = f"{identity.new_epoch():016x}"
            log.info("lmkv: caches were reset; sharing starts afresh, apart from other instances")
        else:
            log.info("lmkv: caches were reset; the pool is empty, its namespace stays")
        self._namespace()
        self._mapped_keys.clear()
        self._step_until = self._clock() + STEP_FOR_EVENTS
        self.background.restart()

    def must_step(self) -> bool:
        """Whether vLLM's KV events lack something that only a step of the engine can tell them."""
        if self.events is None:
            return False
        # Asked in the order in which a report is heard, so that nothing falls between.
        soon = self._clock() < self._step_until and (
            self.stores.open > 0 or self.background.turning
        )
        return soon or self.events.pending

    @property
    def pending(self) -> dict[str, int]:
        """Counters that must return to zero at rest."""
        return {
            "requests": len(self._requests),
            "stores": self.stores.open,
            "pulls": self.pulls.open,
            "pins": self.table.pins,
            "jobs": self.jobs.open,
            "rewrites": self.rewrites.open,
        }

    def close(self) -> None:
        """Leave the cluster; waits at most a second."""
        self.background.stop()
        self._take_links()
        self.locator.close()
        self.pulls.close()
        self._tracer.close()
