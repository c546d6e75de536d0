"""Writes under pressure: a scripted scheduler does what vLLM's may do, in any order, while copies and
reports are late, hang and fail. What a slot holds is what its key says, byte by byte; no block is
overwritten before it was read; at rest nothing is held (tests/scripted_vllm.py)."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.scripted_vllm import Request, Vllm


class WritesMachine(RuleBasedStateMachine):
    vllm: Vllm | None = None
    data: st.DataObject

    def choose(self, n: int) -> int:
        return self.data.draw(st.integers(0, n - 1)) if n > 1 else 0

    def some(self, data: st.DataObject, sessions: bool = False) -> Request | None:
        assert self.vllm is not None
        live = [r for r in self.vllm.requests.values() if r.status != "over"]
        live = [r for r in live if r.session or not sessions]
        return data.draw(st.sampled_from(live)) if live else None

    @initialize(
        drafts=st.sampled_from([0, 0, 3]),
        depth=st.sampled_from([1, 2]),
        ranks=st.sampled_from([1, 2]),
        blocks=st.sampled_from([8, 12, 20]),
        slots=st.sampled_from([2, 6, 16]),
        volatile=st.sampled_from([0, 0, 2]),
    )
    def begin(self, **sizes: int) -> None:
        self.vllm = Vllm(self.choose, **sizes)

    @rule(
        kind=st.integers(0, 1),
        length=st.integers(1, 13),
        max_tokens=st.integers(1, 8),
        n=st.sampled_from([1, 1, 1, 3]),
        session=st.booleans(),
        skip_store=st.sampled_from([False, False, False, True]),
    )
    def add(self, kind: int, length: int, max_tokens: int, **more: int) -> None:
        assert self.vllm is not None
        if len(self.vllm.requests) < 6:
            self.vllm.add([kind] * length, max_tokens, **more)

    @precondition(lambda self: self.vllm and len(self.vllm.steps) < self.vllm.depth)
    @rule(budget=st.sampled_from([1, 3, 6, 16]), data=st.data())
    def schedule(self, budget: int, data: st.DataObject) -> None:
        assert self.vllm is not None
        self.data = data
        self.vllm.schedule(budget)

    @precondition(lambda self: self.vllm and self.vllm.steps)
    @rule(data=st.data())
    def execute(self, data: st.DataObject) -> None:
        assert self.vllm is not None
        self.data = data
        self.vllm.execute()

    @rule(data=st.data(), times=st.sampled_from([1, 2, 8]))
    def steps_run(self, data: st.DataObject, times: int) -> None:
        """Long stories need many steps."""
        assert self.vllm is not None
        self.data = data
        for _ in range(times):
            while len(self.vllm.steps) < self.vllm.depth:
                self.vllm.schedule(16)
            self.vllm.execute()

    @rule(rank=st.integers(0, 1), times=st.sampled_from([1, 2, 9]))
    def copy(self, rank: int, times: int) -> None:
        assert self.vllm is not None
        for _ in range(times):
            self.vllm.ranks[rank % len(self.vllm.ranks)].step()

    @rule()
    def reports_arrive(self) -> None:
        assert self.vllm is not None
        self.vllm.world.turn()

    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        assert self.vllm is not None
        if (request := self.some(data)) is not None:
            self.vllm.abort(request)

    @rule(data=st.data(), kind=st.integers(0, 1), length=st.integers(1, 5))
    def more_input(self, data: st.DataObject, kind: int, length: int) -> None:
        assert self.vllm is not None
        if (request := self.some(data, sessions=True)) is not None:
            self.vllm.more_input(request, [kind] * length)

    @rule(connector_only=st.booleans())
    def reset(self, connector_only: bool) -> None:
        assert self.vllm is not None
        self.vllm.reset(connector_only)

    @rule(rank=st.integers(0, 1), what=st.sampled_from(["gather", "scatter"]))
    def fail(self, rank: int, what: str) -> None:
        assert self.vllm is not None
        self.vllm.ranks[rank % len(self.vllm.ranks)].fails.add(what)

    @rule(rank=st.integers(0, 1), hangs=st.booleans())
    def hang(self, rank: int, hangs: bool) -> None:
        assert self.vllm is not None
        self.vllm.ranks[rank % len(self.vllm.ranks)].hangs = hangs

    @rule(seconds=st.sampled_from([0.2, 11.0]))
    def wait(self, seconds: float) -> None:
        assert self.vllm is not None
        self.vllm.world.clock.advance(seconds)

    @invariant()
    def slots_are_right(self) -> None:
        if self.vllm is not None:
            self.vllm.check()

    def teardown(self) -> None:
        if self.vllm is not None:
            self.vllm.choose = lambda n: 0
            self.vllm.settle()


TestWrites = WritesMachine.TestCase
TestWrites.settings = settings(
    max_examples=150,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
