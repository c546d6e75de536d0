"""The write path of an agent: what a step stores, when others find it, and what must wait."""

from __future__ import annotations

from lmkv.agent.options import Options
from lmkv.agent.stores import confirmed
from lmkv.core.messages import PullResult, StoredOk
from lmkv.core.steps import Store

from tests.fake_links import World

TOKENS = list(range(100))
EXTRA = b"\x03\x02\0\0\0hi"  # an item of extra_i


def step(world: World, name: str, confirmed: int, *, new: tuple[int, ...] = ()) -> list[Store]:
    """A step that has computed `confirmed` tokens of TOKENS; its block n holds tokens 2n, 2n+1."""
    first, last = world.agent.plan(name, TOKENS[:confirmed], confirmed)
    stores = [(name, first, last, [range(50)])] if last > first else []
    return world.agent.step(stores, new).stores


def begun(world: World, name: str = "a", chunks: int = 2, **options: bool) -> None:
    prompt = world.prompt(chunks)
    world.begin(name, prompt, **options)
    world.agent.allocated(name, [], 0)


def test_a_chunk_is_stored_once_when_its_last_token_is_confirmed() -> None:
    world = World()
    begun(world)
    assert step(world, "a", 3) == []
    (store,) = step(world, "a", 5)
    assert (store.key, store.blocks) == (world.keys(0, 1), [0, 1])
    assert step(world, "a", 7) == []
    (second,) = step(world, "a", 8)
    assert (second.key, second.blocks) == (world.keys(1, 2), [2, 3])
    world.stored(store.job)
    world.stored(second.job)
    assert world.agent.table.lookup(world.keys(0, 2)) == 2
    assert world.agent.registration().slots == 2
    begun(world, "b")
    assert step(world, "b", 8) == []  # the pool has it
    world.agent.finished("a")
    world.agent.finished("b")
    assert world.at_rest()


def test_what_another_request_is_storing_is_not_stored_again() -> None:
    world = World()
    begun(world, "a")
    begun(world, "b")
    assert len(step(world, "a", 4)) == 1
    assert step(world, "b", 4) == []


def test_two_requests_of_one_step_store_a_common_chunk_once() -> None:
    world = World()
    begun(world, "a")
    begun(world, "b")
    stores = [(n, *world.agent.plan(n, TOKENS[:4], 4), [range(50)]) for n in "ab"]
    assert len(world.agent.step(stores, []).stores) == 1


def test_a_store_is_found_when_every_rank_has_reported() -> None:
    world = World(ranks=2)
    begun(world)
    (store,) = step(world, "a", 4)
    world.stored(store.job, rank=0)
    world.stored(store.job, rank=0)  # a repetition is no second rank
    assert world.agent.table.lookup(world.keys(0, 1)) == 0
    world.stored(store.job, rank=1)
    assert world.agent.table.lookup(world.keys(0, 1)) == 1


def test_a_report_is_answered_each_time_that_it_comes() -> None:
    world = World()
    begun(world)
    (store,) = step(world, "a", 4)
    for _ in range(2):  # the first answer was lost
        world.stored(store.job)
    answers = world.at("ipc://worker0").of(StoredOk)
    assert [message.job for message, _ in answers] == [store.job] * 2
    assert world.agent.table.lookup(world.keys(0, 1)) == 1


def test_a_rank_that_failed_gives_the_slot_back() -> None:
    world = World(ranks=2)
    begun(world)
    (store,) = step(world, "a", 4)
    world.stored(store.job, rank=0, good=False)
    world.stored(store.job, rank=1)
    assert world.agent.table.lookup(world.keys(0, 1)) == 0
    assert world.granules("reserved") == 0
    world.agent.finished("a")
    assert world.at_rest()


def test_a_step_waits_for_the_job_whose_source_it_overwrites() -> None:
    world = World()
    begun(world, chunks=3)
    (first,) = step(world, "a", 4)
    (second,) = step(world, "a", 8)
    assert world.agent.step([], [3]).wait_for == [second.job]
    assert world.agent.step([], [0, 2]).wait_for == [first.job, second.job]
    assert world.agent.step([], [40]).wait_for == []
    world.stored(first.job)
    assert world.agent.step([], [0]).wait_for == []


def test_a_step_does_not_wait_for_its_own_stores() -> None:
    world = World()
    begun(world)
    plan = world.agent.step([("a", *world.agent.plan("a", TOKENS[:4], 4), [range(50)])], [0, 1])
    assert len(plan.stores) == 1
    assert plan.wait_for == []


def test_a_load_waits_for_the_store_that_still_reads_its_blocks() -> None:
    world = World()
    begun(world)
    (store,) = step(world, "a", 4)
    other = [7] * 9
    world.begin("b", other)
    room = world.agent.table.reserve(world.keys(0, 2, other), world.clock())
    assert room is not None
    world.agent.table.admit(*room)
    world.located(0)
    assert world.match("b", other) == 8
    world.agent.allocated("b", [[20, 21, 1, 23, 24]], 8)
    assert world.agent.step([], []).wait_for == [store.job]


def test_where_there_is_no_room_the_head_is_stored() -> None:
    world = World(slots=3)
    begun(world, chunks=5)
    stores = step(world, "a", 20)
    assert [store.key for store in stores] == [world.keys(i, i + 1) for i in range(3)]
    assert world.agent.stores.no_room == 2


def test_generated_tokens_are_stored_too() -> None:
    world = World()
    begun(world, chunks=1)
    assert len(step(world, "a", 5)) == 1
    (store,) = step(world, "a", 8)
    assert store.key == world.keys(1, 2)


def test_what_is_confirmed() -> None:
    assert confirmed(0, 6, known=9, prompt=9) == 6  # a prefill's first piece
    assert confirmed(9, 4, known=10, prompt=9) == 10  # three drafts behind the last known token
    assert confirmed(14, 4, known=10, prompt=9) == 10  # async: drafts in flight count as computed
    assert confirmed(0, 6, known=9, prompt=9, volatile=2) == 6
    assert confirmed(9, 4, known=10, prompt=9, volatile=2) == 9  # never less than of the prompt
    assert confirmed(13, 4, known=14, prompt=9, volatile=2) == 12  # a draft head may come back


def test_a_preempted_request_may_have_more_tokens_than_keys() -> None:
    world = World()
    world.hold(0, 1)
    begun(world, chunks=1)
    step(world, "a", 5)
    assert world.match("a", TOKENS[:13]) == 4  # eight tokens came at once, of accepted drafts
    world.agent.finished("a")
    assert world.at_rest()


def test_a_sessions_next_input_has_keys_of_its_own() -> None:
    world = World()
    begun(world, chunks=1)
    assert len(step(world, "a", 5)) == 1
    step(world, "a", 6)
    cut = [*TOKENS[:5], 90, 91, 92]  # vLLM took token 5 back, and appended three
    assert not world.agent.has_grown("a", 5)
    assert world.agent.has_grown("a", 8)
    world.agent.continued("a", cut, b"", {1: EXTRA})
    chain = world.agent._hasher.chain()
    chain.extend(cut, 0, {1: EXTRA})
    first, last = world.agent.plan("a", cut, 8)
    (store,) = world.agent.step([("a", first, last, [range(50)])], []).stores
    assert store.key == chain.keys(0, 1, 2)
    assert not world.agent.has_grown("a", 8)
    world.agent.continued("a", [*cut, 1, 2, 3, 4], b"", {}, "an image without a name")
    assert step(world, "a", 12) == []


def test_a_chunk_that_cannot_be_planned_costs_neither_loads_nor_waits() -> None:
    world = World()
    begun(world)
    (store,) = step(world, "a", 4)
    world.hold(1, 2)
    plan = world.agent.step([("nobody", 0, 1, [range(50)])], [0])
    assert (plan.stores, plan.wait_for) == ([], [store.job])


def test_a_request_may_opt_out_of_storing() -> None:
    world = World()
    begun(world, skip_store=True)
    assert step(world, "a", 8) == []
    world.agent.begin("b", TOKENS[:9], b"", {}, Options(), opted_out="prompt embeddings")
    assert step(world, "b", 8) == []


def test_a_reset_begins_an_epoch_in_which_old_requests_store_nothing() -> None:
    world = World()
    begun(world)
    (store,) = step(world, "a", 4)
    epoch, before = world.agent.epoch, world.keys(0, 1)
    world.agent.reset()
    assert world.agent.epoch != epoch
    assert world.keys(0, 1) != before  # apart from instances with the old weights
    assert step(world, "a", 8) == []
    world.stored(store.job)
    assert world.agent.table.lookup(before) == 0
    assert world.granules("reserved") == 0  # the slot is not lost
    world.agent.finished("a")
    begun(world, "b")
    (again,) = step(world, "b", 4)
    world.stored(again.job)
    assert world.agent.table.lookup(world.keys(0, 1)) == 1
    world.agent.finished("b")
    assert world.at_rest()


def test_a_reset_may_keep_the_namespace() -> None:
    world = World(on_reset="keep")
    world.hold(0, 1)
    before = world.keys(0, 1)
    world.agent.reset()
    assert world.keys(0, 1) == before
    assert world.agent.table.lookup(before) == 0


def test_a_pull_of_an_ended_epoch_gives_its_slots_back() -> None:
    world = World()
    prompt = world.prompt(1)
    world.begin("a", prompt)
    world.located(1)
    world.match("a", prompt)
    world.peer_info()
    assert world.match("a", prompt) is None
    world.agent.reset()
    assert world.match("a", prompt) == 0
    world.pulled([PullResult.GOOD])
    world.turn()
    assert world.granules("reserved") == 0
    world.agent.finished("a")
    assert world.at_rest()


def test_as_many_slots_are_used_as_every_rank_has() -> None:
    """A pipeline's stages may have slots of other sizes, and so fewer to a segment."""
    world = World(ranks=2, segment_slots=[6, 5])
    assert world.agent.table.usable == 5
