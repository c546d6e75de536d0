"""Writes under pressure: a scripted scheduler does what vLLM's may do, in any order, while copies
and reports are late, hang and fail. What a slot holds is what its key says, byte by byte; no block
is overwritten before it was read; at rest nothing is held (tests/scripted_vllm.py)."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.scripted_vllm import Request, Vllm

# How often each happens, of a hundred or so; "nothing" comes first, as what a story shrinks to.
OFTEN = {
    "nothing": 1,
    "schedule": 24,
    "execute": 24,
    "copy": 14,
    "reports": 8,
    "add": 12,
    "abort": 3,
    "more_input": 4,
    "reset": 1,
    "fail": 2,
    "hang": 2,
    "wait": 1,
}
STEPS = 120
SMALL = st.integers(0, 2**16)
EVENTS = st.tuples(st.sampled_from([name for name, n in OFTEN.items() for _ in range(n)]), SMALL)


class Story:
    """A number decides what an event does."""

    def __init__(self, **sizes: Any) -> None:
        self.random = Random(0)
        self.vllm = Vllm(self.random.randrange, **sizes)

    def happens(self, event: str, number: int) -> None:
        self.random.seed(number)
        getattr(self, event)(self.random.choice)
        self.vllm.check()

    def nothing(self, choose: Callable) -> None:
        pass

    def schedule(self, choose: Callable) -> None:
        if len(self.vllm.steps) < self.vllm.depth:
            self.vllm.schedule(choose([3, 6, 16, 16]))

    def execute(self, choose: Callable) -> None:
        if self.vllm.steps:
            self.vllm.execute()

    def copy(self, choose: Callable) -> None:
        rank = choose(self.vllm.ranks)
        for _ in range(choose([1, 2, 9])):
            rank.step()

    def reports(self, choose: Callable) -> None:
        self.vllm.world.turn()

    def add(self, choose: Callable) -> None:
        """Two kinds of prompts, so that they share their beginnings."""
        if len(self.vllm.requests) < 6:
            self.vllm.add(
                [choose([0, 0, 1])] * choose([2, 5, 9, 9, 9, 13]),
                max_tokens=choose([1, 1, 2, 5, 8]),
                n=choose([1, 1, 1, 3]),
                session=choose([False, False, True]),
                skip_store=choose([False] * 7 + [True]),
            )

    def some(self, choose: Callable, sessions: bool = False) -> list[Request]:
        live = [r for r in self.vllm.requests.values() if r.status != "over"]
        live = [r for r in live if r.session or not sessions]
        return [choose(live)] if live else []

    def abort(self, choose: Callable) -> None:
        for request in self.some(choose):
            self.vllm.abort(request)

    def more_input(self, choose: Callable) -> None:
        for request in self.some(choose, sessions=True):
            self.vllm.more_input(request, [choose([0, 1])] * choose(range(1, 6)))

    def reset(self, choose: Callable) -> None:
        self.vllm.reset(connector_only=choose([True, False]))

    def fail(self, choose: Callable) -> None:
        choose(self.vllm.ranks).fails.add(choose(["gather", "scatter"]))

    def hang(self, choose: Callable) -> None:
        """Copies neither begin nor end while a deadline runs; or do again."""
        choose(self.vllm.ranks).hangs = choose([True, False, False])

    def wait(self, choose: Callable) -> None:
        self.vllm.world.clock.advance(choose([0.2, 11.0]))


@pytest.mark.parametrize("drafts", [0, 3])
@pytest.mark.parametrize("depth", [1, 2], ids=["sync", "async"])
@given(
    ranks=st.sampled_from([1, 2]),
    blocks=st.sampled_from([8, 12, 20]),
    slots=st.sampled_from([2, 8, 16]),
    volatile=st.sampled_from([0, 0, 2]),
    caching=st.sampled_from([False, False, True]),
    on_reset=st.sampled_from(["isolate", "keep"]),
    events=st.lists(EVENTS, min_size=STEPS, max_size=STEPS),
)
@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_no_story_stores_what_was_not_computed(
    drafts: int, depth: int, events: list[tuple[str, int]], **sizes: Any
) -> None:
    story = Story(drafts=drafts, depth=depth, **sizes)
    for event, number in events:
        story.happens(event, number)
    story.random.seed(0)
    story.vllm.settle()
