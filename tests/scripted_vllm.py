"""A scheduler that behaves as vLLM 0.32's does, in small numbers, around the real agent and ranks.

Blocks have 2 tokens, chunks 4 (tests/scripted_ranks.py). `schedule()` plans a step, `execute()`
carries the oldest planned one out and hears its result. With `depth` 2 a step is planned while the
one before is in flight, as by vLLM's async scheduling. Reports of stores arrive when `World.turn`
is called.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lmkv.agent.options import Options
from lmkv.agent.stores import confirmed
from lmkv.core.steps import LoadResult, StepPlan

from tests.fake_links import BLOCK, CHUNK, World
from tests.scripted_blocks import Blocks
from tests.scripted_ranks import TOKEN, Rank, oracle, token_bytes


@dataclass(eq=False)
class Request:
    """vLLM's, with the fields' meanings of v1/request.py."""

    id: str
    tokens: list[int]
    max_tokens: int
    session: bool = False
    prompt: int = 0
    outputs: int = 0
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    status: str = "waiting"  # running, preempted, loading, loaded, paused, over
    drafts: int = 0  # scheduled with the next step
    placeholders: int = 0
    in_flight: int = 0
    stale: int = 0
    drop_stale: bool = False
    rejected: int = 0  # so far
    bad: bool = False
    inputs: deque[list[int]] = field(default_factory=deque)


@dataclass
class Planned:
    """A request's part of a step."""

    request: Request
    start: int
    count: int
    drafts: int
    blocks: list[int]
    rejected: int
    known: list[int]  # token ids that the step is given, from `start` on


class Vllm:
    """`choose(n)` answers a number below n: budgets, sampled tokens, drafts that are accepted."""

    def __init__(
        self,
        choose: Callable[[int], int],
        *,
        ranks: int = 1,
        blocks: int = 12,
        slots: int = 6,
        drafts: int = 0,
        depth: int = 1,
        volatile: int = 0,
        caching: bool = True,
        on_reset: str = "isolate",
        **more: Any,
    ) -> None:
        self.choose, self.drafts, self.depth, self.volatile = choose, drafts, depth, volatile
        self.world = World(ranks=ranks, controller=False, slots=slots, on_reset=on_reset, **more)
        self.agent = self.world.agent
        self.ranks = [Rank(r, blocks, self.world) for r in range(ranks)]
        self.blocks, self.caching = Blocks(blocks), caching
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.requests: dict[str, Request] = {}
        self.steps: deque[tuple[list[Planned], StepPlan]] = deque()
        self.ended: dict[str, tuple[int, LoadResult]] = {}
        self.weights, self.names = 0, 0
        self.right: dict[bytes, list[int]] = {}  # keys that may be stored, by their tokens

    # ------------------------------------------------------------ from outside

    def add(self, prompt: list[int], max_tokens: int, n: int = 1, **more: Any) -> None:
        skip, headers = more.pop("skip_store", False), more.pop("headers", None)
        for _ in range(n):
            self.names += 1
            request = Request(
                f"r{self.names}", list(prompt), max_tokens, prompt=len(prompt), **more
            )
            self.requests[request.id] = request
            self.waiting.append(request)
            self._learn(request)
            self.agent.begin(
                request.id, request.tokens, b"", {}, Options(skip_store=skip), trace_headers=headers
            )

    def _learn(self, request: Request) -> None:
        chain = self.agent._hasher.chain()
        chain.extend(request.tokens)
        for i in range(len(chain)):
            self.right[chain.keys(0, i, i + 1)] = request.tokens[: (i + 1) * CHUNK]

    def more_input(self, request: Request, tokens: list[int]) -> None:
        if request.status == "paused":
            self._continue(request, tokens)
            self.waiting.append(request)
        else:
            request.inputs.append(tokens)

    def abort(self, request: Request) -> None:
        loading = request.status == "loading"
        for queue in (self.waiting, self.running):
            if request in queue:
                queue.remove(request)
        self._finish(request, free=not loading)

    def reset(self, connector_only: bool) -> None:
        """vLLM's `reset_prefix_cache(reset_running_requests=True, reset_connector=True)`, which
        refuses where a load or a paused session holds blocks."""
        if not connector_only:
            held = [r for r in self.requests.values() if r.status in ("loading", "loaded")]
            if held or any(r.blocks for r in self.waiting) or self._paused():
                return
            for request in reversed(list(self.running)):
                self.running.remove(request)
                self._preempt(request, drop=True)
            self.blocks.found.clear()
            self.blocks.named.clear()
        if not connector_only and not self.steps:
            self.weights += 1
        self.agent.reset()
        self.right.clear()
        for request in self.requests.values():
            self._learn(request)

    def _paused(self) -> bool:
        return any(r.status == "paused" and r.blocks for r in self.requests.values())

    # ------------------------------------------------------------ schedule

    def schedule(self, budget: int) -> None:
        planned: dict[str, Planned] = {}
        new_blocks: list[int] = []
        preempted = False
        for request in list(self.running):
            if request not in self.running or budget <= 0:
                continue
            if (
                request.placeholders
                and request.computed + 2 - request.placeholders
                >= request.prompt + request.max_tokens
            ):
                continue
            count = len(request.tokens) + request.drafts + request.placeholders - request.computed
            count = min(count, budget)
            if count <= 0:
                continue
            while (got := self._allocate(request, request.computed + count)) is None:
                victim = self.running.pop()
                self._preempt(victim)
                preempted = True
                if (gone := planned.pop(victim.id, None)) is not None:
                    budget += gone.count
                if victim is request:
                    break
            if got is None:
                break
            new_blocks += got
            planned[request.id] = self._plan(request, count)
            budget -= count
        skipped: list[Request] = []
        while self.waiting and budget > 0 and not preempted:
            request = self.waiting[0]
            if request.status == "loading" or (request.stale and not request.drop_stale):
                skipped.append(self.waiting.pop(0))
                continue
            local: list[int] = []
            external = 0
            if request.computed == 0:
                local = self.blocks.hit(request.tokens) if self.caching else []
                answer = self.agent.match(request.id, len(local) * BLOCK, len(request.tokens))
                assert answer is not None, "nobody to wait for"
                external = answer
            computed = request.computed or len(local) * BLOCK + external
            count = 0 if external else min(len(request.tokens) - computed, budget)
            if self._allocate(request, computed + count, local, not external) is None:
                break
            tables = [list(request.blocks)] if external else []
            self.agent.allocated(request.id, tables, external)
            self.waiting.pop(0)
            request.computed = computed
            if external:
                request.status = "loading"
                skipped.append(request)
                continue
            request.status = "running"
            self.running.append(request)
            new_blocks += request.blocks
            planned[request.id] = self._plan(request, count)
            budget -= count
        self.waiting[:0] = skipped
        self.steps.append((list(planned.values()), self._step(planned, new_blocks)))
        for part in planned.values():
            self._after_schedule(part)

    def _plan(self, request: Request, count: int) -> Planned:
        over = count + request.computed - len(request.tokens) - request.placeholders
        drafts, request.drafts = max(over, 0), 0
        known = request.tokens[request.computed : request.computed + count]
        return Planned(
            request, request.computed, count, drafts, request.blocks, request.rejected, known
        )

    def _step(self, planned: dict[str, Planned], new_blocks: list[int]) -> StepPlan:
        """As connector.py does."""
        stores = []
        for part in planned.values():
            request = part.request
            if self.agent.has_grown(request.id, request.prompt):
                why = "drafts may be left in its blocks" if self.drafts else ""
                self.agent.continued(request.id, request.tokens, b"", {}, why)
            tokens = confirmed(
                request.computed, part.count, len(request.tokens), request.prompt, self.volatile
            )
            first, last = self.agent.plan(request.id, request.tokens, tokens)
            if last > first:
                stores.append((request.id, first, last, [list(request.blocks)]))
        return self.agent.step(stores, new_blocks)

    def _after_schedule(self, part: Planned) -> None:
        request = part.request
        request.computed += part.count
        request.in_flight += part.count
        if self.depth > 1 and request.computed >= len(request.tokens) + request.placeholders:
            request.placeholders += 1 + part.drafts
            request.drafts = self.drafts

    def _allocate(
        self, request: Request, tokens: int, local: Sequence[int] = (), name: bool = True
    ) -> list[int] | None:
        """Room for so many tokens; vLLM names blocks at once, before they are computed."""
        need = max(0, -(-tokens // BLOCK) - len(request.blocks) - len(local))
        if need > len(self.blocks.free) - sum(block in self.blocks.free for block in local):
            return None
        self.blocks.share(local)
        got = self.blocks.take(need)
        request.blocks = [*request.blocks, *local, *got]
        if name:
            self.blocks.name(request.tokens[:tokens], request.blocks)
        return got

    def _preempt(self, request: Request, drop: bool = False) -> None:
        self.blocks.give(request.blocks)
        request.blocks, request.computed, request.status = [], 0, "preempted"
        request.drafts = request.placeholders = 0
        request.drop_stale = drop or (request.drop_stale and request.stale > 0)
        request.stale = request.in_flight
        self.waiting.insert(0, request)

    # ------------------------------------------------------------ execute

    def execute(self) -> None:
        parts, plan = self.steps.popleft()
        for rank in self.ranks:
            rank.handle_preemptions(plan)
        sampled = [self._forward(part) for part in parts]
        for rank in self.ranks:
            rank.submit_loads(plan)
            rank.submit_stores(plan)
        bad: set[int] = set()
        for rank in self.ranks:
            for request, result in rank.take_finished().items():
                count, worst = self.ended.get(request, (0, result))
                self.ended[request] = count + 1, worst.worst(result)
            bad |= rank.take_failed_blocks()
        self._hear_loads(bad)
        for part, (tokens, rejected) in zip(parts, sampled, strict=True):
            self._output(part, tokens, rejected)

    def _forward(self, part: Planned) -> tuple[list[int], int]:
        """Writes KV as the worker does; (sampled tokens, rejected drafts)."""
        request = part.request
        start = part.start - (request.rejected - part.rejected)
        inputs = list(part.known)
        # Under async scheduling the worker itself knows what was sampled since.
        inputs += request.tokens[start + len(inputs) : start + part.count - part.drafts]
        drafts = [self.choose(2) for _ in range(part.count - len(inputs))]
        for rank in self.ranks:
            before = rank.token(part.blocks, start - 1) if start else b""
            for i, token in enumerate(inputs + drafts):
                before = token_bytes(before, token, self.weights, rank._rank)
                block, at = divmod(start + i, BLOCK)
                rank.write(part.blocks[block], at * TOKEN, before)
        if start + len(inputs) < len(request.tokens) and not part.drafts:
            return [], 0  # a chunk of a prefill
        accepted = self.choose(len(drafts) + 1) if drafts else 0
        return [*drafts[:accepted], self.choose(2)], len(drafts) - accepted

    def _hear_loads(self, bad: set[int]) -> None:
        for request in [r for r in self.waiting if r.status == "loading"]:
            hit = [i for i, b in enumerate(request.blocks) if b in bad]
            if hit and hit[0] * BLOCK < request.computed:
                request.computed = hit[0] * BLOCK
        for name, (count, result) in list(self.ended.items()):
            if count < len(self.ranks):
                continue
            del self.ended[name]
            self.agent.loaded(name, result)
            request = self.requests[name]
            if request.status == "over":
                self.blocks.give(request.blocks)
                del self.requests[name]
                continue
            assert request.status == "loading"
            request.status = "loaded"
            if request.computed == 0:
                self.blocks.give(request.blocks)
                request.blocks = []
            self.blocks.name(request.tokens[: request.computed], request.blocks)

    def _output(self, part: Planned, tokens: list[int], rejected: int) -> None:
        request = part.request
        if request.status == "over":
            return
        request.in_flight -= part.count
        stale = request.stale > 0
        if stale:
            request.stale -= part.count
            if request.drop_stale:
                return
        if not stale:
            request.rejected += rejected
            request.computed -= rejected
            request.placeholders -= min(rejected, request.placeholders)
        if not tokens:
            return
        if (trimmed := len(tokens) - (request.max_tokens - request.outputs)) > 0:
            tokens = tokens[:-trimmed]
            if self.depth == 1:  # vLLM does not, and a session goes on behind wrong KV
                request.computed -= trimmed
        request.tokens += tokens
        request.outputs += len(tokens)
        self._learn(request)
        if not stale:
            request.placeholders -= min(len(tokens), request.placeholders)
        if request.status == "running" and self.depth == 1:
            request.drafts = self.choose(self.drafts + 1) if self.drafts else 0
        if request.outputs < request.max_tokens:
            return
        for queue in (self.waiting, self.running):
            if request in queue:
                queue.remove(request)
        if not request.session:
            self._finish(request)
            return
        request.computed -= request.placeholders
        request.drafts = request.placeholders = 0
        request.drop_stale, request.stale = True, request.in_flight
        if request.inputs:
            self._continue(request, request.inputs.popleft())
            self.waiting.append(request)
        else:
            request.status = "paused"

    def _continue(self, request: Request, tokens: list[int]) -> None:
        """A session's next input: the token sampled last is dropped, as it was not computed."""
        del request.tokens[request.computed :]
        request.tokens += tokens
        request.prompt, request.outputs = len(request.tokens), 0
        request.status = "waiting"
        self._learn(request)

    def _finish(self, request: Request, free: bool = True) -> None:
        request.status = "over"
        self.agent.finished(request.id)
        if free:
            self.blocks.give(request.blocks)
            del self.requests[request.id]

    # ------------------------------------------------------------ what must hold

    def check(self) -> None:
        """Every admitted slot holds exactly the bytes of its key's tokens, on every rank."""
        for rank in self.ranks:
            assert not rank.wrong
        self.agent.table.take_changes()
        slots = self.agent.table.capacity
        keys, places, _ = self.agent.table.slice(0, 16 * slots)
        for i in range(len(keys) // 16):
            tokens = self.right.get(keys[16 * i : 16 * i + 16])
            assert tokens is not None, "stored under a key of tokens that never were"
            for rank in self.ranks:
                kv = oracle(tokens, self.weights, rank._rank)[-CHUNK * TOKEN :]
                assert rank.payload(places[8 * i : 8 * i + 8]) == kv, tokens

    def settle(self) -> None:
        """All requests end, copies and reports too; every counter is at zero, all was answered."""
        for request in list(self.requests.values()):
            if request.status != "over":
                self.abort(request)
        for rank in self.ranks:
            rank.hangs = False
        while self.steps or self.requests or any(rank.busy() for rank in self.ranks):
            if not self.steps:
                self.schedule(8)
            self.execute()
            for rank in self.ranks:
                rank.step()
        self.world.turn()
        self.check()
        assert not self.requests
        assert self.world.at_rest(), self.agent.pending
        assert self.world.granules("reserved") == 0
        assert len(self.blocks.free) == len(self.blocks.uses) - 1
        for rank in self.ranks:
            jobs = range(1, self.agent.stores._next)
            assert rank.answers == Counter(jobs), "a job is answered once"
