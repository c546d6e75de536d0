"""What an agent tells vLLM's event stream: every readable chunk, once, and no other."""

from __future__ import annotations

import pytest
from lmkv.agent.kv_events import REMOVED_A_TAKE, STORED_A_TAKE, BlockFacts, KvEvents
from lmkv.core.messages import Announce, PullResult, Retract
from lmkv.core.steps import LoadResult

from tests.fake_links import CHUNK, CONTROLLER, World
from tests.slot_tables import keys, make, place, store

TOKENS = list(range(100))


def facts(request: str, group: int, chunk: int) -> BlockFacts:
    """Two blocks of a chunk, whose hashes are their numbers; every request has the same prompt."""
    blocks = bytes([2 * chunk, 2 * chunk + 1])
    return BlockFacts(group, chunk * CHUNK, 2, blocks, blocks[:1], b"tokens", None)


class Told(World):
    """A world whose events are taken: `take()` is (removed, stored), by chunk."""

    def __init__(self, **more: object) -> None:
        super().__init__(**{"describe": facts, **more})  # type: ignore[arg-type]

    def take(self) -> tuple[list[int], list[int]]:
        self.turn()
        assert self.agent.events is not None
        removed, stored = self.agent.events.take()
        return tuple([f.first_token // CHUNK for f in told] for told in (removed, stored))  # type: ignore[return-value]

    def compute(self, name: str, chunks: int) -> list[int]:
        """A request of so many chunks is computed in one step; the jobs of its stores."""
        self.begin(name, self.prompt(chunks))
        self.agent.allocated(name, [], 0)
        confirmed = chunks * CHUNK
        first, last = self.agent.plan(name, TOKENS[:confirmed], confirmed)
        stores = self.agent.step([(name, first, last, [range(50)])], []).stores
        return [s.job for s in stores]

    def alarms(self) -> int:
        return int(self.agent.stats.take().get("alarms", {}).get("events", 0))


def test_a_chunk_is_told_once_when_it_can_be_read() -> None:
    world = Told()
    first, second = world.compute("a", 2)
    assert world.take() == ([], [])
    world.stored(first)
    assert world.take() == ([], [0])
    world.stored(second, good=False)
    assert world.take() == ([], [])
    assert world.alarms() == 0


def test_the_controllers_and_the_stream_hear_the_same() -> None:
    world = Told()
    (job,) = world.compute("a", 1)
    world.stored(job)
    link = world.at(CONTROLLER)
    assert link.last(Announce)[1][0] == world.keys(0, 1)
    world.agent.table.retire(world.keys(0, 1))
    world.turn()
    assert link.last(Retract)[1][0] == world.keys(0, 1)
    world.agent.table.lookup(world.keys(0, 1))
    assert world.take() == ([], [0]), "and nothing of what came and went"
    assert link.last(Announce)[0].seq > link.last(Retract)[0].seq


def test_what_came_and_went_between_two_takes_is_not_told() -> None:
    world = Told()
    (job,) = world.compute("a", 1)
    world.stored(job)
    world.agent.table.retire(world.keys(0, 1))
    assert world.take() == ([], [])
    world.agent.table.lookup(world.keys(0, 1))  # revived
    assert world.take() == ([], [0])
    world.agent.table.retire(world.keys(0, 1))
    world.turn()
    world.agent.table.lookup(world.keys(0, 1))
    assert world.take() == ([], []), "listeners never heard that it was gone"


def test_a_chunk_that_makes_room_is_removed_and_told_again_when_it_is_back() -> None:
    world = Told(slots=3)
    for job in world.compute("a", 2):
        world.stored(job)
    assert world.take() == ([], [0, 1])
    world.agent.finished("a")
    other = world.agent.table.reserve(keys(7), world.clock())  # and one is retired ahead of need
    assert other is not None
    assert world.take() == ([1], []), "the tail goes first"
    world.agent.table.abort(*other)
    assert world.compute("b", 2) == [], "its bytes were still there"
    assert world.take() == ([], [1])
    assert world.alarms() == 0


def test_a_reset_removes_each_and_the_next_epoch_tells_the_same_hashes_again() -> None:
    world = Told()
    for job in world.compute("a", 3):
        world.stored(job)
    assert world.take() == ([], [0, 1, 2])
    world.agent.finished("a")
    world.agent.reset()
    assert world.agent.must_step(), "an idle engine tells it soon"
    world.turn()
    for job in world.compute("b", 2):
        world.stored(job)
    assert world.take() == ([0, 1, 2], [0, 1])
    assert not world.agent.must_step()


def test_a_pulled_chunk_is_told_by_the_one_that_pulled_it() -> None:
    world = Told(transfer="nixl", pull="always")
    tokens = world.prompt(2)
    world.begin("a", tokens)
    assert world.match("a", tokens) is None
    world.located(2)
    assert world.match("a", tokens) is None
    world.peer_info()
    assert world.match("a", tokens) is None
    world.pulled([PullResult.GOOD, PullResult.DIGEST])
    assert world.match("a", tokens) == CHUNK
    assert world.take() == ([], [0])
    assert world.alarms() == 0


def bring(world: Told, first: int, last: int) -> None:
    """Chunks come by a job."""
    keys, events = world.keys(first, last), world.agent.events
    room = world.agent.table.reserve(keys, world.clock())
    assert room is not None and events is not None
    for i in range(last - first):
        events.brought(keys[16 * i : 16 * i + 16], room[0][8 * i : 8 * i + 8])
    assert world.agent.table.admit(*room) == last - first


def load(world: Told, name: str, chunks: int) -> None:
    tokens = world.prompt(chunks)
    world.begin(name, tokens)
    assert world.match(name, tokens) == chunks * CHUNK
    world.agent.allocated(name, [range(50)], chunks * CHUNK)
    world.agent.loaded(name, LoadResult(chunks))
    world.agent.finished(name)


def test_what_a_job_has_brought_is_told_when_a_request_has_loaded_it() -> None:
    world = Told()
    bring(world, 0, 3)
    assert world.take() == ([], [])
    load(world, "a", 2)
    assert world.take() == ([], [0, 1])
    load(world, "b", 3)
    assert world.take() == ([], [2]), "the others are known"
    world.agent.table.retire(world.keys(2, 3))
    assert world.take() == ([2], [])
    world.agent.table.lookup(world.keys(2, 3))
    assert world.take() == ([], [2])
    assert world.alarms() == 0


def test_what_a_job_has_brought_back_is_told_as_it_was() -> None:
    world = Told()
    bring(world, 0, 1)
    world.turn()
    world.agent.table.retire(world.keys(0, 1), revivable=False)
    assert world.take() == ([], []), "nobody had heard of it"
    (job,) = world.compute("a", 1)
    world.stored(job)
    assert world.take() == ([], [0])
    world.agent.finished("a")
    for listened in (False, True):
        world.agent.table.retire(world.keys(0, 1), revivable=False)
        assert not listened or world.take() == ([0], [])
        bring(world, 0, 1)
        assert world.take() == ([], []), "it was not missed, or is not known any more"
    load(world, "b", 1)
    assert world.take() == ([], [0])
    assert world.alarms() == 0


def test_a_chunk_that_cannot_be_described_is_stored_all_the_same_and_counted() -> None:
    world = Told(describe=lambda *_: None)
    (job,) = world.compute("a", 1)
    world.stored(job)
    assert world.take() == ([], [])
    assert world.agent.table.lookup(world.keys(0, 1)) == 1
    assert world.alarms() == 1
    world.agent.table.retire(world.keys(0, 1))
    assert world.take() == ([], [])

    world = Told(describe=lambda *_: 1 // 0)
    world.stored(*world.compute("a", 1))
    assert world.agent.table.lookup(world.keys(0, 1)) == 1
    assert world.take() == ([], [])


def test_an_idle_engine_steps_for_its_last_stores_and_no_longer() -> None:
    world = Told()
    first, second = world.compute("a", 2)
    world.agent.finished("a")
    assert world.agent.must_step()
    world.stored(first)
    assert world.take() == ([], [0])
    assert world.agent.must_step(), "the other is on its way"
    world.clock.advance(1.1)
    assert not world.agent.must_step(), "but that takes too long"
    world.stored(second)
    assert world.agent.must_step()
    assert world.take() == ([], [1])
    assert not world.agent.must_step()


def test_one_that_shares_no_more_takes_back_what_it_told() -> None:
    world = Told()
    first, second = world.compute("a", 2)
    world.stored(first)
    assert world.take() == ([], [0])
    assert world.agent.events is not None
    for _ in range(2):
        world.agent.events.end()
    world.stored(second)
    assert world.take() == ([0], [])
    world.agent.events.end()
    assert world.take() == ([], [])
    assert not any(world.agent.events.sizes().values())


def test_a_take_is_bounded_and_a_prompts_chunks_are_in_their_order() -> None:
    table, n = make(900), 600
    events = KvEvents(lambda _, __, chunk: BlockFacts(0, chunk, 1, b"h%d" % chunk, b"", b"", None))
    for i in reversed(range(n)):
        at = store(table, i)
        events.reserved("r", 0, i, keys(i), at)
    events.changed(table.take_changes())
    told = []
    while events.pending:
        removed, stored = events.take()
        assert not removed
        assert len(stored) <= STORED_A_TAKE
        told += [f.first_token for f in stored]
    assert told == list(range(n))
    table.begin_epoch()
    events.changed(table.take_changes())
    assert [len(events.take()[0]) for _ in range(3)] == [REMOVED_A_TAKE, n - REMOVED_A_TAKE, 0]


def test_the_same_key_under_other_hashes_is_told_as_two() -> None:
    """One adapter under two names: to lmkv the same bytes, to vLLM two prompts."""
    table, names = make(4), iter([b"one", b"two"])
    events = KvEvents(lambda *_: BlockFacts(0, 0, 1, next(names), b"", b"", None))
    told = []
    for _ in range(2):
        events.reserved("r", 0, 0, keys(1), store(table, 1))
        events.changed(table.take_changes())
        told.append([[f.hashes for f in some] for some in events.take()])
        table.retire(keys(1), revivable=False)
        events.changed(table.take_changes())
    assert told == [[[], [b"one"]], [[b"one"], [b"two"]]]


def test_a_slot_that_is_reserved_again_at_once_speaks_for_nobody_else() -> None:
    table = make(1)
    alarms: list[str] = []
    events = KvEvents(facts, lambda kind, _: alarms.append(kind))
    events.reserved("r", 0, 0, keys(1), store(table, 1))
    changes = table.take_changes()
    table.retire(keys(1))
    events.reserved("s", 0, 1, keys(2), store(table, 2, now=1.0))
    events.changed(changes)
    events.changed(table.take_changes())
    assert [f.first_token for f in events.take()[1]] == [CHUNK]
    assert (alarms, place(0)) == ([], place(0))
    assert events.sizes() == {"slots": 1, "strange": 0, "told": 1, "pending": 0}


def test_without_vllms_events_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (KvEvents, BlockFacts):
        monkeypatch.setattr(kind, "__init__", lambda *_: pytest.fail("something is kept"))
    world = World()
    world.hold(0, 2)
    world.turn()
    assert world.agent.events is None
    assert not world.agent.must_step()
    world.agent.reset()
    assert not world.agent.must_step()
