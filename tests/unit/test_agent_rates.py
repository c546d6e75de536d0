"""Pull or recompute, told as stories between an agent, a controller and its movers.

A chunk is 4 tokens and 1 KiB. This engine computes 1,000 tokens a second, so that two chunks take
8 ms; "slow" is a peer whose two chunks take 100 ms.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lmkv.agent.rates import FORGET, LATENCY
from lmkv.core.messages import HeartbeatOk, Locate, Located, Peer, PeerRef, Pull, PullResult, Run

from tests.fake_links import CHUNK, CONTROLLER, PEER_EPOCH, QUERY, World, counters, places

GOOD, GONE, TIMEOUT = PullResult.GOOD, PullResult.GONE, PullResult.TIMEOUT
KIB, PREFILL = 1024, 1000.0


class Story(World):
    """Every request has a prompt of its own."""

    def __init__(self, prefill: float = PREFILL, **more: object) -> None:
        super().__init__(**more)  # type: ignore[arg-type]
        self.prompts: dict[str, list[int]] = {}
        for _ in range(2 if prefill else 0):
            prompt = SimpleNamespace(num_prompt_tokens=1000, num_computed_tokens=0)
            self.agent.rates.prefill.scheduled({"p": 1000}, {"p": prompt})
            self.rest(1000 / prefill)
            prompt.num_computed_tokens = 1000
            self.agent.rates.prefill.output()

    def ask(self, name: str, chunks: int = 2, holder: str = "peer", **others: tuple[int, int]):
        """A request has arrived, `holder` has its chunks, `others` some of them; what vLLM hears
        once the controller has told about who is to be asked first."""
        start = 1000 * (len(self.prompts) + 1)
        self.prompts[name] = list(range(start, start + chunks * CHUNK + 1))
        self.begin(name, self.prompts[name])
        self.located(chunks, holder, others=others)
        return self.again(name)

    def again(self, name: str) -> int | None:
        """Ask as vLLM does; the controller answers what it is asked on the way."""
        state = self.at(CONTROLLER, 1)
        asked = len(state.of(Peer))
        said = self.match(name, self.prompts[name])
        if len(state.of(Peer)) > asked:
            self.peer_info(state.last(Peer)[0].instance)
            said = self.match(name, self.prompts[name])
        return said

    def arrives(self, seconds: float, results: list[int]) -> None:
        """The last Pull ends so much later."""
        self.clock.advance(seconds)
        self.pulled(results, seconds=seconds, bytes=KIB * results.count(GOOD))
        if TIMEOUT in results:
            self.limbo_ended()

    def measured(self, seconds: float, holder: str = "peer") -> None:
        """Two pulls of two chunks from this holder take so long each."""
        for _ in range(2):
            name = f"measured{len(self.prompts)}"
            assert self.ask(name, 2, holder) is None
            assert self.asked()[-1] == holder
            self.arrives(seconds, [GOOD, GOOD])
            assert self.again(name) == 8
            self.end(name)

    def asked(self) -> list[str]:
        """Whom each Pull so far went to."""
        return [pull.peer.instance for pull, _ in self.at("ipc://mover0").of(Pull)]

    def rest(self, seconds: float) -> None:
        """Nothing happens but the controller's heartbeats."""
        self.clock.advance(seconds)
        self.at(CONTROLLER).say(HeartbeatOk(77, 0))
        self.turn()

    def end(self, name: str) -> dict[str, int]:
        """The request ends without a load: its misses."""
        self.agent.allocated(name, [], 0)
        ended = self.agent.finished(name)
        assert ended is not None
        return {c: n for c, n in ended["lmkv"]["miss_tokens"].items() if n}


SLOW, FAST = 0.1, 0.001


def test_a_slow_peer_is_not_asked_again() -> None:
    story = Story()
    story.measured(SLOW)
    assert story.ask("a") == 0
    assert story.end("a") == {"recompute_cheaper": 8, "too_short": 1}
    assert story.asked() == ["peer"] * 2
    assert story.at_rest()


def test_a_fast_peer_is_asked_again() -> None:
    story = Story()
    story.measured(FAST)
    story.measured(FAST)


def test_as_long_as_prefill_is_not_measured_peers_are_asked() -> None:
    story = Story(prefill=0)
    story.measured(SLOW)
    story.measured(SLOW)


def test_a_peer_that_is_not_measured_is_asked() -> None:
    story = Story()
    story.measured(SLOW)
    story.measured(SLOW, holder="unknown")


def test_another_holder_is_asked_instead() -> None:
    story = Story()
    story.measured(SLOW)
    assert story.ask("a", 3, other=(0, 3)) is None
    assert story.asked() == ["peer", "peer", "other"]
    story.arrives(FAST, [GOOD] * 3)
    assert story.again("a") == 12
    story.end("a")
    assert story.at_rest()


def test_another_holder_that_is_slow_as_well_is_not_asked() -> None:
    story = Story()
    story.measured(SLOW)
    story.measured(SLOW, holder="other")
    assert story.ask("a", other=(0, 2)) == 0
    assert story.end("a") == {"recompute_cheaper": 8, "too_short": 1}
    assert len(story.asked()) == 4


def test_a_minute_later_it_is_asked_again_and_trusted_when_it_is_fast() -> None:
    story = Story()
    story.measured(SLOW)
    story.rest(FORGET - 1)
    assert story.ask("a") == 0
    story.rest(1)
    story.measured(FAST)
    story.measured(FAST)


def test_a_peer_that_becomes_slow_is_left_after_two_pulls() -> None:
    story = Story()
    story.measured(FAST)
    story.measured(FAST)
    story.measured(SLOW)
    assert story.ask("a") == 0


def test_a_slow_read_that_times_out_is_measured_by_what_it_brought() -> None:
    story = Story(pull_deadline_min=0.25)
    for name, avoided in (("a", 1.0), ("b", 2.0)):
        assert story.ask(name) is None
        story.arrives(0.25, [GOOD, TIMEOUT])
        assert story.again(name) == 4
        story.end(name)
        story.rest(avoided)
    assert story.ask("c") == 0
    assert story.end("c") == {"recompute_cheaper": 8, "too_short": 1}
    assert story.at_rest()


def test_a_pull_of_which_part_was_gone_says_nothing() -> None:
    story = Story()
    for name in "ab":
        assert story.ask(name) is None
        story.arrives(SLOW, [GOOD, GONE])
        assert story.again(name) == 4
    assert story.ask("c") is None


def test_what_waits_in_the_peers_queue_counts() -> None:
    story = Story()
    story.measured(0.002)  # 1 MB/s
    assert story.ask("a", 6) is None
    assert story.ask("b", 2) == 0  # 8 KiB and the latency take longer than 8 ms
    assert story.end("b") == {"recompute_cheaper": 8, "too_short": 1}
    story.arrives(0.006, [GOOD] * 6)
    assert story.again("a") == 24
    assert story.ask("c", 2) is None


def test_always_pulls() -> None:
    story = Story(pull="always")
    story.measured(SLOW)
    story.measured(SLOW)


def test_never_does_not_pull() -> None:
    story = Story(pull="never")
    assert story.ask("a") == 0
    assert story.end("a") == {"recompute_cheaper": 8, "too_short": 1}
    assert story.asked() == []


@pytest.mark.parametrize("pull", ["auto", "always", "never"])
def test_a_mapped_pool_is_always_taken(pull: str) -> None:
    story = Story(pull=pull)
    prompt = story.prompt(2)
    story.begin("a", prompt)
    story.located(2)
    assert story.match("a", prompt) is None
    story.peer_info(mapped=True)
    assert story.match("a", prompt) == 8


def test_what_a_pull_brings_is_also_what_lies_behind_it() -> None:
    """A peer has chunk 0 of 4. It takes 10 ms, computing it 4 ms; but the others need it."""
    story = Story()
    story.measured(0.01)
    prompt = story.prompt(4)
    for name, have_others in (("a", False), ("b", True)):
        if have_others:
            story.hold(1, 4)
        story.begin(name, prompt)
        story.located(1)
        assert (story.match(name, prompt) is None) is have_others
        story.agent.finished(name)


def test_vllms_own_hit_inside_a_chunk_is_not_brought() -> None:
    story = Story()
    story.measured(0.001)  # 0.5 ms a chunk; 5.5 ms with the latency
    prompt = story.prompt(2)
    for name, computed in (("a", 3), ("b", 1)):
        story.begin(name, prompt)
        story.located(2)
        assert (story.match(name, prompt, computed) is None) is (computed == 1)
        story.agent.finished(name)


def test_behind_a_slow_peers_part_nothing_is_pulled() -> None:
    story = Story()
    story.measured(SLOW, holder="slow")
    prompt = story.prompt(3)
    story.begin("a", prompt)
    asked, _ = story.at(QUERY).last(Locate)
    refs = [PeerRef(name, PEER_EPOCH, 0) for name in ("one", "slow", "two")]
    runs = [Run(i, 1, i, i) for i in range(3)]
    story.at(QUERY).say(Located(asked.request, 77, 3, runs, [], refs), places(3), counters(3))
    story.match("a", prompt)
    story.peer_info("one")
    story.peer_info("two")
    assert story.match("a", prompt) is None
    assert story.asked() == ["slow", "slow", "one"]
    story.arrives(FAST, [GOOD])
    assert story.match("a", prompt) == 4
    assert story.end("a") == {"recompute_cheaper": 12, "too_short": 1}


def test_the_deadline_follows_the_measured_rate() -> None:
    story = Story(pull="always", pull_deadline_min=0.25, pull_deadline_max=5.0, slots=40)

    def deadline(name: str, chunks: int) -> float:
        assert story.ask(name, chunks) is None
        return story.pull()[0].deadline

    assert deadline("unknown", 2) == 0.25
    story.arrives(SLOW, [GOOD] * 2)
    story.measured(SLOW)
    assert deadline("a", 1) == 0.25  # four times 50 ms and the latency
    story.arrives(SLOW / 2, [GOOD])
    story.again("a")
    assert deadline("b", 10) == pytest.approx(4 * (LATENCY + 10 * SLOW / 2))
    assert deadline("c", 10) == pytest.approx(4 * (LATENCY + 20 * SLOW / 2))  # b's are before it
    assert deadline("d", 10) == 5.0


def test_queues_end_with_their_pulls() -> None:
    story = Story()
    assert story.ask("a") is None
    queued = lambda: story.agent.rates.snapshot()["peers"]["peer"]["queued"]  # noqa: E731
    assert queued() == 2 * KIB
    story.worker_state(0, "")  # the mover is gone
    story.turn()
    assert queued() == 0
    story.worker_state(0, "ipc://mover0")
    story.turn()
    story.at("ipc://mover0").up = False  # nothing can be sent to the next
    assert story.ask("b") == 0
    assert queued() == 0


def served(
    story: Story, name: str, chunks: int, link: float, prefill: float
) -> tuple[float, float]:
    """A request whose chunks a peer has, over a link of so many bytes a second: how much longer
    waiting and computing the rest took than computing all; the pull's deadline, 0 without one."""
    begin, posted, deadline = story.clock(), len(story.asked()), 0.0
    said = story.ask(name, chunks)
    if len(story.asked()) > posted:
        assert said is None
        deadline = story.pull()[0].deadline
        whole = min(chunks, int(deadline * link / KIB))
        seconds = deadline if whole < chunks else chunks * KIB / link
        story.arrives(seconds, [GOOD] * whole + [TIMEOUT] * (chunks - whole))
        said = story.again(name)
    assert said is not None
    story.end(name)
    assert story.at_rest()
    return story.clock() - begin - said / prefill, deadline


REQUESTS = st.lists(
    st.tuples(
        st.integers(1, 5),  # chunks
        st.floats(0, 8),  # the link brings 10 ** so many bytes a second
        st.floats(0, 40),  # seconds until the next one
    ),
    min_size=1,
    max_size=12,
)


@settings(deadline=None)
@given(prefill=st.floats(10, 1e5), requests=REQUESTS)
def test_nothing_costs_more_than_computing_and_the_deadline(
    prefill: float, requests: list[tuple[int, float, float]]
) -> None:
    """Whatever the link does from one request to the next."""
    story = Story(prefill=prefill, pull_deadline_min=0.25, pull_deadline_max=5.0)
    for i, (chunks, exponent, pause) in enumerate(requests):
        if "peer" not in story.agent.locator.avoided():
            more, deadline = served(story, str(i), chunks, 10**exponent, prefill)
            assert deadline <= 5.0
            assert more <= deadline + 1e-6
        story.rest(pause)


@settings(deadline=None)
@given(prefill=st.floats(10, 1e5), exponent=st.floats(3.7, 8), requests=REQUESTS)
def test_on_a_steady_link_two_pulls_a_minute_cost_more_than_computing(
    prefill: float, exponent: float, requests: list[tuple[int, float, float]]
) -> None:
    """A link that brings at least a chunk within the least deadline."""
    story = Story(prefill=prefill, pull_deadline_min=0.25, pull_deadline_max=5.0)
    longer: list[float] = []
    for i, (chunks, _, pause) in enumerate(requests):
        if "peer" not in story.agent.locator.avoided():
            begin = story.clock()
            more, _ = served(story, str(i), chunks, 10**exponent, prefill)
            longer += [begin] if more > 1e-6 else []
        story.rest(pause)
    for first, third in zip(longer, longer[2:]):
        assert third - first >= FORGET
