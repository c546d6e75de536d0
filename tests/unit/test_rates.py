"""What is measured of pulls and of prefill, and what is decided by it, on a clock that we move."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lmkv.agent.rates import FORGET, LATENCY, PEERS, UNKNOWN, Rates
from lmkv.core.clock import ManualClock

SLOT, CHUNK = 100, 10


class Story:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.rates = Rates(SLOT, CHUNK, self.clock)

    def pull(self, size: int, seconds: float, brought: int | None = None) -> None:
        """One alone, from "peer"."""
        begin = self.clock()
        self.rates.started("peer", size)
        self.clock.advance(seconds)
        self.rates.ended("peer", size, size if brought is None else brought, begin, seconds)

    def step(self, tokens: int, seconds: float, decodes: int = 0) -> None:
        """A prompt of `tokens` beside `decodes` requests that generate."""
        prompt = request(tokens)
        others = {str(i): request(5, computed=5) for i in range(decodes)}
        scheduled = {"prompt": tokens, **dict.fromkeys(others, 1)}
        self.rates.prefill.scheduled(scheduled, {"prompt": prompt, **others})
        self.clock.advance(seconds)
        prompt.num_computed_tokens += tokens
        self.rates.prefill.output()


def request(tokens: int, computed: int = 0) -> SimpleNamespace:
    """vLLM's, as far as it is read."""
    return SimpleNamespace(
        num_prompt_tokens=tokens, num_computed_tokens=computed, num_in_flight_tokens=0
    )


# ---------------------------------------------------------------- peers


def test_a_rate_is_known_from_the_second_pull_on() -> None:
    story = Story()
    assert story.rates.rate("peer") is None
    story.pull(1000, 2.0)
    assert story.rates.rate("peer") is None
    story.pull(1000, 1.0)
    assert story.rates.rate("peer") == 1000
    story.pull(1000, 4.0)
    assert story.rates.rate("peer") == 500


def test_one_odd_pull_says_nothing_and_the_second_is_believed() -> None:
    story = Story()
    for _ in range(3):
        story.pull(1000, 1.0)
    story.pull(1000, 10.0)
    assert story.rates.rate("peer") == 1000
    story.pull(1000, 10.0)
    assert story.rates.rate("peer") == 100


def test_a_minute_later_a_slow_peer_is_unknown_again() -> None:
    story = Story()
    story.pull(1000, 10.0)
    story.pull(1000, 10.0)
    story.clock.advance(FORGET - 11)
    assert story.rates.rate("peer") == 100
    story.clock.advance(1)  # the first of the two is a minute old
    assert story.rates.rate("peer") is None


def test_less_than_a_slot_and_what_failed_measure_nothing() -> None:
    story = Story()
    for brought in (99, 99, 0, 0):
        story.pull(1000, 5.0, brought)
    assert story.rates.snapshot()["peers"] == {"peer": {"rate": None, "queued": 0}}


def test_a_pull_that_timed_out_counts_what_it_brought() -> None:
    story = Story()
    story.pull(1000, 0.25, 100)
    story.pull(1000, 0.25, 100)
    assert story.rates.rate("peer") == 400


@pytest.mark.parametrize("late", [0.0, 0.5])
def test_pulls_that_share_a_link_are_one_measurement(late: float) -> None:
    story = Story()
    for _ in range(2):
        begin = story.clock()
        story.rates.started("peer", 100)
        story.rates.started("peer", 100)
        story.clock.advance(0.5 + late)  # heard of late: what counts is when they ended
        story.rates.ended("peer", 100, 100, begin, 0.5)
        story.rates.ended("peer", 100, 100, begin, 0.5)
        story.clock.advance(1)
    assert story.rates.rate("peer") == 400  # 200 bytes in 0.5 s


def test_a_link_that_never_rests_is_measured_too() -> None:
    story = Story()
    begin = story.clock()
    story.rates.started("peer", 1000)
    for _ in range(4):  # the next one is posted before this one ends
        story.rates.started("peer", 1000)
        story.clock.advance(1.0)
        story.rates.ended("peer", 1000, 1000, begin, story.clock() - begin)
        begin = story.clock()
    assert story.rates.rate("peer") == 1000
    assert story.rates.snapshot()["peers"]["peer"]["queued"] == 1000


def test_an_estimate_holds_the_queue() -> None:
    story = Story()
    assert story.rates.estimate("peer", 1000) == LATENCY + 1000 / UNKNOWN
    story.pull(1000, 1.0)
    story.pull(1000, 1.0)
    assert story.rates.estimate("peer", 500) == LATENCY + 0.5
    story.rates.started("peer", 3000)
    assert story.rates.estimate("peer", 500) == LATENCY + 3.5
    assert story.rates.estimate("other", 500) == LATENCY + 500 / UNKNOWN


def test_peers_that_are_not_seen_again_are_not_kept() -> None:
    story = Story()
    story.rates.started("peer", 1000)
    for i in range(3000):
        story.rates.started(f"peer{i}", 1000)
        story.rates.ended(f"peer{i}", 1000, 0, story.clock(), 0.0)
    assert len(story.rates.snapshot()["peers"]) <= PEERS + 1
    story.rates.ended("peer", 1000, 0, story.clock(), 0.0)


# ---------------------------------------------------------------- prefill


def test_prefill_is_measured_by_steps_that_are_mostly_prefill() -> None:
    story = Story()
    story.step(9, 5.0)  # less than a chunk
    story.step(100, 5.0, decodes=101)  # mostly decodes
    assert story.rates.prefill.rate is None
    story.step(100, 8.0)  # the first one warms up
    story.step(100, 0.5, decodes=100)
    assert story.rates.prefill.rate == 200
    story.step(100, 1.0)
    assert story.rates.prefill.rate == 100


def test_chunks_of_a_long_prompt_are_steps_each() -> None:
    story = Story()
    prompt = request(60)
    for seconds in (1.0, 2.0, 4.0):
        story.rates.prefill.scheduled({"a": 20}, {"a": prompt})
        story.clock.advance(seconds)
        prompt.num_computed_tokens += 20
        story.rates.prefill.output()
    assert story.rates.prefill.rate == 10


def test_steps_scheduled_ahead_are_timed_from_output_to_output() -> None:
    """vLLM's asynchronous scheduling: a step is scheduled while the one before runs."""
    story = Story()
    prompt, prefill = request(60), story.rates.prefill

    def schedule() -> None:
        prefill.scheduled({"a": 20}, {"a": prompt})
        prompt.num_computed_tokens += 20
        prompt.num_in_flight_tokens += 20

    def output(seconds: float) -> None:
        story.clock.advance(seconds)
        prompt.num_in_flight_tokens -= 20
        prefill.output()

    schedule()
    schedule()
    prefill.output()  # of an empty step before: it ends neither
    assert prefill.rate is None
    output(2.0)
    schedule()
    output(2.0)
    output(2.0)
    assert prefill.rate == 10


def test_the_time_between_two_prompts_is_not_prefill() -> None:
    story = Story()
    for _ in range(2):
        story.step(100, 1.0)
        story.clock.advance(100)
    assert story.rates.prefill.rate == 100


def test_a_request_that_ends_in_the_middle_of_its_step_is_not_waited_for() -> None:
    story = Story()
    for _ in range(20):
        story.rates.prefill.scheduled({"a": 20}, {"a": request(20)})
    assert len(story.rates.prefill._steps) == 8
    story.step(100, 1.0)
    story.step(100, 1.0)
    assert story.rates.prefill.rate == 100


# ---------------------------------------------------------------- what is decided


def test_pulled_unless_computing_is_known_to_be_faster() -> None:
    story = Story()
    faster = story.rates.computing_is_faster
    story.pull(1000, 10.0)
    story.pull(1000, 10.0)
    assert not faster("peer", 1000, 100)  # how fast is prefill?
    story.step(100, 1.0)
    story.step(100, 1.0)
    assert not faster("other", 1000, 100)  # how fast is this one?
    assert faster("peer", 1000, 100)  # 10 s against 1 s
    assert faster("peer", 1000, 1000)
    assert not faster(
        "peer", 1000, 1001
    )  # it takes the latency longer than 10 s, computing 10.01 s


@given(
    link=st.floats(1e2, 1e7),
    prefill=st.floats(1, 1e5),
    pulls=st.lists(st.tuples(st.integers(1, 50), st.floats(0, 30)), min_size=1, max_size=30),
)
def test_on_a_steady_link_only_measuring_costs_more_than_computing(
    link: float, prefill: float, pulls: list[tuple[int, float]]
) -> None:
    """Two pulls a minute, at most, are slower than computing what they bring."""
    story = Story()
    story.step(100, 100 / prefill)
    story.step(100, 100 / prefill)
    slower: list[float] = []
    for chunks, pause in pulls:
        size, tokens = chunks * SLOT, chunks * CHUNK
        if story.rates.computing_is_faster("peer", size, tokens):
            assert size / link + LATENCY > tokens / prefill * 0.999
        else:
            begin = story.clock()
            story.pull(size, size / link)
            if size / link > tokens / prefill * 1.001:
                slower.append(begin)
        story.clock.advance(pause)
    for one, _, third in zip(slower, slower[1:], slower[2:]):
        assert third - one >= FORGET
