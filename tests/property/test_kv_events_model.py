"""After any sequence the blocks that a listener of vLLM's events believes in are the readable ones.

Keys are chunks of a few prompts in one cache group each; a listener links and unlinks hashes as a
router does, and would notice a block told twice, or removed that it never had.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from lmkv.agent.kv_events import BlockFacts, KvEvents

from tests.slot_tables import keys, make

CAPACITY = 6
SOME = st.lists(st.integers(0, 12), min_size=1, max_size=4, unique=True)


def facts(request: str, group: int, chunk: int) -> BlockFacts:
    return BlockFacts(group, chunk, 2, bytes([2 * chunk, 2 * chunk + 1]), b"", b"", None)


class KvEventsMachine(RuleBasedStateMachine):
    jobs = Bundle("jobs")  # places, counters

    def __init__(self) -> None:
        super().__init__()
        self.table = make(CAPACITY, retired_share=0.3)
        self.alarms: list[str] = []
        self.events = KvEvents(facts, lambda kind, _: self.alarms.append(kind))
        self.believed: set[int] = set()  # hashes
        self.now = 0.0

    @rule(target=jobs, names=SOME, brought=st.booleans())
    def reserve(self, names: list[int], brought: bool) -> tuple[bytes, bytes]:
        there = self.table.contains(keys(*names))
        names = [name for name, state in zip(names, there) if not state]
        self.now += 0.07
        got = self.table.reserve(keys(*names), self.now)
        for i, name in enumerate(names if got is not None else ()):
            place = got[0][8 * i : 8 * i + 8]  # type: ignore[index]
            if brought:
                self.events.brought(keys(name), place)
            else:
                self.events.reserved("r", 0, name, keys(name), place)
        return got or (b"", b"")

    @rule(names=SOME)
    def load(self, names: list[int]) -> None:
        for name in names:
            place, counter, pinned = self.table.pin(keys(name))
            if pinned:
                self.events.met("r", 0, name, keys(name), place)
                self.table.unpin(place, counter)

    @rule(job=consumes(jobs), front=st.booleans())
    def admit(self, job: tuple[bytes, bytes], front: bool) -> None:
        self.table.admit(*job, front=front)
        self.table.abort(*job)

    @rule(job=consumes(jobs))
    def abort(self, job: tuple[bytes, bytes]) -> None:
        self.table.abort(*job)

    @rule(names=SOME)
    def use(self, names: list[int]) -> None:
        self.table.lookup(keys(*names))

    @rule(names=SOME, revivable=st.booleans())
    def retire(self, names: list[int], revivable: bool) -> None:
        self.table.retire(keys(*names), revivable)

    @rule()
    def reset(self) -> None:
        self.table.begin_epoch()

    @rule()
    def turn(self) -> None:
        self.events.changed(self.table.take_changes())

    @rule()
    def take(self) -> None:
        removed, stored = self.events.take()
        for one in removed:
            assert self.believed >= {*one.hashes}
            self.believed -= {*one.hashes}
        for one in stored:
            assert not self.believed & {*one.hashes}
            self.believed |= {*one.hashes}
        assert not self.events.pending

    @invariant()
    def what_is_kept_is_bounded(self) -> None:
        sizes = self.events.sizes()
        assert max(sizes["slots"], sizes["strange"], sizes["told"]) <= CAPACITY
        assert sizes["pending"] <= 2 * CAPACITY
        assert not self.alarms

    def teardown(self) -> None:
        self.turn()
        self.load(list(range(13)))
        self.take()
        there = self.table.contains(keys(*range(13)))
        readable = {2 * n + i for n, state in enumerate(there) if state == 1 for i in (0, 1)}
        assert self.believed == readable


TestKvEvents = KvEventsMachine.TestCase
TestKvEvents.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
