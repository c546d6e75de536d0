"""The read path of an agent, told as stories between it, a controller and its movers."""

from __future__ import annotations

import pytest
from lmkv.core.messages import Attach, Limbo, Locate, Peer, Pull, PullResult, Refused
from lmkv.core.steps import SKIPPED, LoadResult

from tests.fake_links import CHUNK, CONTROLLER, PEER_EPOCH, QUERY, World, counters, places

GOOD, GONE, DIGEST = PullResult.GOOD, PullResult.GONE, PullResult.DIGEST
TIMEOUT, PEER_DEAD = PullResult.TIMEOUT, PullResult.PEER_DEAD


def finish(world: World, name: str) -> tuple[dict[str, int], dict[str, int]]:
    """(hits, misses) of a request that ends without a load."""
    world.agent.allocated(name, [], 0)
    ended = world.agent.finished(name)
    assert ended is not None
    counts = ended["lmkv"]
    return counts["hit_tokens"], {c: n for c, n in counts["miss_tokens"].items() if n}


def load(world: World, name: str, tokens: int, blocks: list[int]):
    world.agent.allocated(name, [blocks], tokens)
    plan = world.agent.step([], [])
    assert len(plan.loads) == 1
    return plan.loads[0]


def pulling(world: World, name: str = "a", chunks: int = 2) -> list[int]:
    """A request whose chunks a peer has, and whose Pull is with the mover."""
    prompt = world.prompt(chunks)
    world.begin(name, prompt)
    world.located(chunks)
    assert world.match(name, prompt) is None  # peer's details are asked for
    world.peer_info()
    assert world.match(name, prompt) is None
    return prompt


# ---------------------------------------------------------------- own pool, locate


def test_what_the_own_pool_has_is_not_asked_for() -> None:
    world = World()
    world.hold(0, 2)
    prompt = world.prompt(2)
    world.begin("a", prompt)
    assert world.match("a", prompt) == 8
    assert world.agent.locator.sent == 0
    assert world.agent.table.pins == 2
    made = load(world, "a", 8, [10, 11, 12, 13, 14])
    assert [chunk.blocks for chunk in made.chunks] == [[10, 11], [12, 13]]
    assert [chunk.peer for chunk in made.chunks] == [-1, -1]
    assert [chunk.generation >> 32 for chunk in made.chunks] == [world.agent.epoch & 0xFFFFFFFF] * 2
    world.agent.loaded("a", LoadResult(2))
    assert world.agent.table.pins == 0
    counts = world.agent.finished("a")
    assert counts is not None
    assert counts["lmkv"]["hit_tokens"] == {"hit_vllm": 0, "hit_pool": 8}
    assert world.at_rest()


def test_only_what_the_own_pool_lacks_is_asked_for() -> None:
    world = World()
    world.hold(0, 1)
    world.begin("a", world.prompt(3))
    _, frames = world.at(QUERY).last(Locate)
    assert frames == [world.keys(1, 3)]


def test_a_pool_on_this_host_is_mapped_and_nothing_is_pulled() -> None:
    world = World()
    prompt = world.prompt(2)
    world.begin("a", prompt)
    assert world.match("a", prompt) is None
    world.located(2)
    assert world.match("a", prompt) is None
    world.peer_info(mapped=True)
    assert world.match("a", prompt) == 8
    assert world.agent.pulls.posted == 0
    made = load(world, "a", 8, [1, 2, 3, 4, 5])
    assert [chunk.peer for chunk in made.chunks] == [0, 0]
    assert [chunk.place for chunk in made.chunks] == [places(2)[:8], places(2)[8:]]
    assert [chunk.generation for chunk in made.chunks] == [(7 << 32) + 100, (7 << 32) + 101]
    assert [peer.info.share_socket for peer in made.peers[0]] == ["/peer0"]
    world.agent.loaded("a", LoadResult(2))
    # What came from a mapped pool is not stored a second time.
    assert world.agent.step([("a", 0, 2, [[1, 2, 3, 4]])], []).stores == []
    assert world.agent.finished("a")["lmkv"]["hit_tokens"]["hit_mapped"] == 8  # type: ignore[index]
    assert world.at_rest()


def test_what_was_mapped_once_is_stored_by_who_computes_it() -> None:
    world = World()
    prompt = world.prompt(2)
    world.begin("a", prompt)
    world.located(2)
    assert world.match("a", prompt) is None
    world.peer_info(mapped=True)
    assert world.match("a", prompt) == 8
    load(world, "a", 8, [1, 2, 3, 4, 5])
    world.agent.loaded("a", LoadResult(2))
    world.agent.finished("a")
    world.begin("b", prompt)  # vLLM has kept the first chunk; the peer has gone
    world.located(0)
    assert world.match("b", prompt, computed=4) == 0
    world.agent.allocated("b", [], 0)
    (store,) = world.agent.step([("b", 0, 2, [[1, 2, 3, 4]])], []).stores
    assert store.key == world.keys(1, 2)


def test_a_peer_that_is_forgotten_before_the_load_keeps_its_details_in_it() -> None:
    world = World(ranks=2)
    prompt = world.prompt(1)
    world.begin("a", prompt)
    world.located(1)
    world.match("a", prompt)
    world.peer_info(mapped=True)
    assert world.match("a", prompt) == 4
    world.agent.locator.outdated("peer")  # another request's pull from it was stale
    assert world.match("a", prompt) == 4
    made = load(world, "a", 4, [1, 2, 3])
    assert [peer.info.rank for peer in made.peers[0]] == [0, 1]


def test_details_older_than_the_locate_says_are_waited_for() -> None:
    world = World()
    prompt = world.prompt(1)
    world.begin("a", prompt)
    world.located(1)
    world.match("a", prompt)
    world.peer_info(mapped=True)
    assert world.match("a", prompt) == 4
    finish(world, "a")
    world.begin("b", prompt)
    world.located(1, epoch=PEER_EPOCH + 1)  # the peer has begun another life
    world.clock.advance(0.01)
    assert world.match("b", prompt) is None
    assert world.match("b", prompt) is None
    world.clock.advance(1.1)
    finish(world, "b")


def test_a_locate_without_answer_ends_at_its_deadline() -> None:
    world = World(locate_deadline=0.02)
    prompt = world.prompt(2)
    world.begin("a", prompt)
    world.clock.advance(0.1)  # vLLM does not wait for it yet
    assert world.match("a", prompt) is None
    world.clock.advance(0.019)
    assert world.match("a", prompt) is None
    world.clock.advance(0.002)
    assert world.match("a", prompt) == 0
    assert finish(world, "a")[1] == {"locate_timeout": 8, "too_short": 1}
    world.located(2)  # too late: nobody is confused
    world.agent.locator.drain()
    assert world.at_rest()


def test_without_a_controller_nobody_waits() -> None:
    world = World(controller=False)
    prompt = world.prompt(2)
    world.begin("a", prompt)
    assert world.match("a", prompt) == 0
    assert finish(world, "a")[1] == {"no_controller": 8, "too_short": 1}
    assert world.agent.locator.sent == 0


def test_nobody_has_it() -> None:
    world = World()
    prompt = world.prompt(2)
    world.begin("a", prompt)
    world.located(0)
    assert world.match("a", prompt) == 0
    assert finish(world, "a")[1] == {"cold": 8, "too_short": 1}


def test_a_prompt_below_a_chunk_is_too_short() -> None:
    world = World()
    world.begin("a", [1, 2, 3])
    assert world.match("a", [1, 2, 3]) == 0
    assert finish(world, "a")[1] == {"too_short": 3}


def test_a_request_may_opt_out_of_loading() -> None:
    world = World()
    world.hold(0, 2)
    prompt = world.prompt(2)
    world.begin("a", prompt, skip_load=True)
    assert world.match("a", prompt) == 0
    assert finish(world, "a")[1] == {"opted_out": 8, "too_short": 1}


# ---------------------------------------------------------------- pulls


def test_a_wish_for_nixl_pulls_even_on_the_same_host() -> None:
    world = World(ranks=2)
    prompt = world.prompt(2)
    world.begin("a", prompt, transfer="nixl")
    world.located(2)
    assert world.match("a", prompt) is None
    world.peer_info(mapped=True)
    assert world.match("a", prompt) is None
    for rank in (0, 1):
        pull, frames = world.pull(rank)
        assert (pull.peer.info.rank, pull.peer.epoch, pull.fingerprint) == (
            rank,
            PEER_EPOCH,
            90 + rank,
        )
        assert frames[:3] == [world.keys(0, 2), places(2), counters(2)]
        assert (len(frames[3]), len(frames[4])) == (16, 8)
    assert world.granules("reserved") == 2
    world.pulled([GOOD, GOOD], 0, seconds=0.5, bytes=10)
    assert world.match("a", prompt) is None  # the other rank has not answered
    world.pulled([GOOD, GOOD], 1, seconds=0.7, bytes=10)
    assert world.match("a", prompt) == 8
    assert world.agent.table.pins == 2
    made = load(world, "a", 8, [1, 2, 3, 4, 5])
    assert [c.place for c in made.chunks] == [world.pull()[1][3][:8], world.pull()[1][3][8:]]
    world.agent.loaded("a", LoadResult(2))
    assert world.agent.finished("a")["lmkv"]["hit_tokens"]["hit_peer"] == 8  # type: ignore[index]
    taken = world.agent.stats.take()
    assert (taken["pull_seconds"], taken["pull_bytes"]) == ([0.7], 20)
    assert world.at_rest()


@pytest.mark.parametrize(
    ("result", "cause"), [(GONE, "gone"), (DIGEST, "digest"), (PEER_DEAD, "peer_dead")]
)
def test_a_failed_chunk_ends_the_claim_there(result: int, cause: str) -> None:
    world = World()
    prompt = pulling(world)
    world.pulled([GOOD, result])
    assert world.match("a", prompt) == 4
    assert world.granules("readable") + world.granules("pinned") == 1
    assert finish(world, "a")[1] == {cause: 8, "too_short": 1}
    assert world.at_rest()


def test_a_read_that_timed_out_keeps_its_slot_until_it_ends() -> None:
    world = World()
    prompt = pulling(world)
    world.pulled([GOOD, TIMEOUT])
    assert world.match("a", prompt) == 4
    assert world.granules("limbo") == 1
    assert world.agent.pending["pulls"] == 1
    assert finish(world, "a")[1] == {"pull_timeout": 8, "too_short": 1}
    world.limbo_ended()
    world.turn()
    assert world.granules("limbo") == 0
    assert world.at_rest()


def test_a_mover_that_says_nothing_leaves_limbo_and_another_mover_ends_it() -> None:
    world = World(pull_deadline_min=0.25)
    prompt = pulling(world)
    world.clock.advance(0.29)
    assert world.match("a", prompt) is None
    world.clock.advance(0.02)
    assert world.match("a", prompt) == 0
    assert world.granules("limbo") == 2
    assert finish(world, "a")[1] == {"pull_timeout": 8, "too_short": 1}
    world.worker_state(0, "ipc://another")
    world.turn()
    assert world.granules("limbo") == 0
    assert (
        world.at(  # the new one knows whom it serves
            "ipc://another"
        )
        .last(Attach)[0]
        .epoch
        == world.agent.epoch
    )
    assert world.at_rest()


def test_a_mover_is_asked_for_the_end_that_was_lost_with_its_connection() -> None:
    world = World()
    prompt = pulling(world)
    world.pulled([GOOD, TIMEOUT])
    world.match("a", prompt)
    finish(world, "a")
    world.turn()
    asked = world.at("ipc://mover0").of(Limbo)
    assert [message.job for message, _ in asked] == [world.pull()[0].job]
    world.clock.advance(0.9)
    world.turn()
    assert len(world.at("ipc://mover0").of(Limbo)) == 1
    world.clock.advance(0.2)
    world.turn()
    assert len(world.at("ipc://mover0").of(Limbo)) == 2
    world.limbo_ended()
    world.turn()
    assert world.at_rest()


def test_limbo_that_ends_before_the_other_rank_answers_is_no_limbo() -> None:
    world = World(ranks=2)
    prompt = pulling(world, chunks=1)
    world.pulled([TIMEOUT], 0)
    world.limbo_ended(0)
    assert world.match("a", prompt) is None
    world.pulled([GOOD], 1)
    assert world.match("a", prompt) == 0
    assert world.granules("limbo") == 0
    finish(world, "a")
    assert world.at_rest()


def test_a_mover_that_dies_ends_the_wait() -> None:
    world = World()
    prompt = pulling(world)
    world.worker_state(0, "")
    world.turn()
    assert world.match("a", prompt) == 0
    assert finish(world, "a")[1] == {"mover_down": 8, "too_short": 1}
    assert world.granules("reserved") + world.granules("limbo") == 0
    assert world.at_rest()


def test_a_pool_on_a_gpu_is_pulled_into() -> None:
    world = World(tier=1)
    prompt = pulling(world)
    assert world.pull()[1][3][5::8] == b"\1\1"  # places there
    world.pulled([GOOD, GOOD])
    assert world.match("a", prompt) == 8


def test_parts_of_slots_are_not_pulled_into_a_pool_on_a_gpu() -> None:
    """Its mover cannot. A mapped peer's are scattered from, whatever their heads."""
    world = World(heads=[(0, 8)], tier=1)
    prompt = asking(world, heads=[(4, 4), (0, 4)])
    assert world.match("a", prompt) == 0
    assert not pulls_of(world)
    assert finish(world, "a")[1]["incompatible"] == 4
    prompt = asking(world := World(heads=[(0, 8)], tier=1), mapped=True, heads=[(4, 4), (0, 4)])
    assert world.match("a", prompt) == 4


@pytest.mark.parametrize("transfer", ["auto", "mapped"])
def test_a_peer_of_this_host_that_cannot_be_mapped_is_pulled_from(transfer: str) -> None:
    """One whose GPU's memory is refused by CUDA IPC. Its next life is tried again."""
    world = World(transfer=transfer, tier=1)
    prompt = asking(world, mapped=True, tier=1)
    assert world.match("a", prompt) == 4
    load(world, "a", 4, [1, 2])
    world.agent.loaded("a", LoadResult(0, PullResult.INCOMPATIBLE))
    world.agent.finished("a")
    world.begin("b", prompt)
    world.located(1)
    found = world.match("b", prompt)
    if transfer == "mapped":
        assert found == 0 and not pulls_of(world)  # it is avoided for a while
        return
    assert found is None and len(pulls_of(world)) == 1
    world.pulled([GOOD])
    assert world.match("b", prompt) == 4


def test_two_requests_share_one_pull() -> None:
    world = World()
    prompt = pulling(world, "a")
    world.begin("b", prompt)
    world.located(2)
    assert world.match("b", prompt) is None
    assert len(world.at("ipc://mover0").of(Pull)) == 1
    world.pulled([GOOD, GOOD])
    assert world.match("a", prompt) == 8
    assert world.match("b", prompt) == 8
    assert world.agent.table.pins == 4
    for name in "ab":
        load(world, name, 8, [1, 2, 3, 4, 5])
        world.agent.loaded(name, LoadResult(2))
        assert world.agent.table.pins == (2 if name == "a" else 0)
        hits = world.agent.finished(name)["lmkv"]["hit_tokens"]  # type: ignore[index]
        assert hits["hit_peer"] == 8
    assert world.at_rest()


def test_a_pull_that_nobody_waits_for_ends_in_the_background() -> None:
    world = World()
    pulling(world)
    world.agent.finished("a")
    world.pulled([GOOD, GOOD])
    world.turn()
    assert world.granules("readable") == 2
    assert world.at_rest()


def test_a_peer_that_timed_out_is_avoided_for_a_while() -> None:
    world = World()
    prompt = pulling(world)
    world.pulled([TIMEOUT, TIMEOUT])
    world.match("a", prompt)
    world.begin("b", prompt)
    assert world.at(QUERY).last(Locate)[0].avoid == ["peer"]
    world.clock.advance(1.1)
    world.begin("c", prompt)
    assert world.at(QUERY).last(Locate)[0].avoid == []


def test_details_are_asked_for_once() -> None:
    world = World()
    pulling(world, "a")
    world.begin("b", world.prompt(3))
    world.located(3)
    world.match("b", world.prompt(3))
    assert len(world.at(CONTROLLER, 1).of(Peer)) == 1


# ---------------------------------------------------------------- alternates


def hits(world: World, name: str, tokens: int) -> dict[str, int]:
    """Of a request whose `tokens` are loaded, by cause."""
    load(world, name, tokens, list(range(2 * tokens // CHUNK + 1)))
    world.agent.loaded(name, LoadResult(tokens // CHUNK))
    ended = world.agent.finished(name)
    assert ended is not None
    return {c: n for c, n in ended["lmkv"]["hit_tokens"].items() if n}


def pulls_of(world: World) -> list[tuple[str, list[bytes]]]:
    """(peer, keys) of each Pull so far."""
    return [(p.peer.instance, frames[0]) for p, frames in world.at("ipc://mover0").of(Pull)]


def pulling_with_others(world: World, chunks: int, **others: tuple[int, int]) -> list[int]:
    """As `pulling`, where other holders have some of the chunks too."""
    prompt = world.prompt(chunks)
    world.begin("a", prompt)
    world.located(chunks, others=others)
    assert world.match("a", prompt) is None
    world.peer_info()
    assert world.match("a", prompt) is None
    return prompt


@pytest.mark.parametrize("result", [GONE, DIGEST, PEER_DEAD, TIMEOUT])
def test_what_a_peer_did_not_bring_is_pulled_from_another_holder(result: int) -> None:
    world = World()
    prompt = pulling_with_others(world, 3, other=(0, 3))
    world.pulled([GOOD, result, result])
    assert world.match("a", prompt) is None  # the other's details are asked for
    world.peer_info("other")
    assert world.match("a", prompt) is None
    assert pulls_of(world) == [("peer", world.keys(0, 3)), ("other", world.keys(1, 3))]
    world.pulled([GOOD, GOOD])
    assert world.match("a", prompt) == 12
    assert hits(world, "a", 12) == {"hit_peer": 12}


def test_an_alternate_is_taken_once() -> None:
    world = World()
    prompt = pulling_with_others(world, 2, other=(0, 2))
    world.pulled([GONE, GONE])
    world.match("a", prompt)
    world.peer_info("other")
    assert world.match("a", prompt) is None
    world.pulled([DIGEST, DIGEST])
    assert world.match("a", prompt) == 0
    assert len(pulls_of(world)) == 2
    assert finish(world, "a")[1] == {"digest": 8, "too_short": 1}
    assert world.at_rest()


def test_a_peer_that_failed_is_not_asked_again_for_what_only_it_has() -> None:
    world = World()
    prompt = pulling_with_others(world, 3, other=(0, 1))
    world.pulled([PEER_DEAD] * 3)
    world.match("a", prompt)
    world.peer_info("other")
    assert world.match("a", prompt) is None
    assert pulls_of(world)[1:] == [("other", world.keys(0, 1))]
    world.pulled([GOOD])
    assert world.match("a", prompt) == 4
    assert finish(world, "a")[1] == {"peer_dead": 12, "too_short": 1}


def test_a_peer_that_has_left_is_not_waited_for() -> None:
    world = World()
    prompt = world.prompt(2)
    world.begin("a", prompt)
    world.located(2)
    assert world.match("a", prompt) is None
    link = world.at(CONTROLLER, 1)
    asked, _ = link.last(Peer)
    link.say(Refused("unknown_instance", "it has left", request=asked.request))
    assert world.match("a", prompt) == 0
    assert finish(world, "a")[1] == {"peer_dead": 8, "too_short": 1}


def test_who_was_located_before_a_peer_failed_does_not_ask_it() -> None:
    world = World()
    first, second = world.prompt(2), [9, *world.prompt(2, 0)]
    for name, prompt in (("a", first), ("b", second)):
        world.begin(name, prompt)
        world.located(2)
        assert world.match(name, prompt) is None
    world.peer_info()
    assert world.match("a", first) is None
    world.pulled([TIMEOUT, TIMEOUT])
    assert world.match("a", first) == 0
    assert world.match("b", second) == 0
    assert len(pulls_of(world)) == 1
    assert finish(world, "b")[1] == {"peer_dead": 8, "too_short": 1}


def test_an_own_mover_that_is_silent_is_not_the_peers_fault() -> None:
    world = World(pull_deadline_min=0.25)
    prompt = pulling(world)
    world.clock.advance(0.31)
    assert world.match("a", prompt) == 0
    assert world.agent.locator.avoided() == []


def test_a_pull_that_was_joined_and_failed_leaves_the_own_source() -> None:
    world = World()
    prompt = pulling(world, "a")
    world.begin("b", prompt)
    world.located(2, peer="healthy")
    assert world.match("b", prompt) is None
    world.peer_info("healthy")
    assert world.match("b", prompt) is None
    world.pulled([PEER_DEAD, PEER_DEAD])
    assert world.match("b", prompt) is None
    assert [peer for peer, _ in pulls_of(world)] == ["peer", "healthy"]
    world.pulled([GOOD, GOOD])
    assert world.match("b", prompt) == 8
    assert hits(world, "b", 8) == {"hit_peer": 8}


def test_a_holder_without_details_is_left_for_one_that_is_mapped() -> None:
    world = World()
    prompt = world.prompt(2)
    world.begin("a", prompt)
    world.located(2, others={"other": (0, 2)})
    assert world.match("a", prompt) is None
    world.clock.advance(1.01)  # connect_deadline
    assert world.match("a", prompt) is None
    world.peer_info("other", mapped=True)
    assert world.match("a", prompt) == 8
    assert pulls_of(world) == []
    assert hits(world, "a", 8) == {"hit_mapped": 8}


# ---------------------------------------------------------------- loads


def test_a_hit_of_vllm_that_ends_inside_a_chunk_is_not_written_again() -> None:
    world = World()
    world.hold(0, 2)
    prompt = world.prompt(2)
    world.begin("a", prompt)
    assert world.match("a", prompt, computed=2) == 6
    made = load(world, "a", 6, [10, 11, 12, 13, 14])
    assert [chunk.blocks for chunk in made.chunks] == [[SKIPPED, 11], [12, 13]]
    world.agent.loaded("a", LoadResult(2))
    hits = world.agent.finished("a")["lmkv"]["hit_tokens"]  # type: ignore[index]
    assert hits == {"hit_vllm": 2, "hit_pool": 6}


def test_a_load_that_fails_counts_what_came_and_the_cause_of_the_rest() -> None:
    world = World()
    world.hold(0, 3)
    prompt = world.prompt(3)
    world.begin("a", prompt)
    assert world.match("a", prompt) == 12
    load(world, "a", 12, [1, 2, 3, 4, 5, 6, 7])
    world.agent.loaded("a", LoadResult(1, DIGEST))
    counts = world.agent.finished("a")["lmkv"]  # type: ignore[index]
    assert counts["hit_tokens"] == {"hit_vllm": 0, "hit_pool": 4}
    assert counts["miss_tokens"] == {"digest": 8, "too_short": 1}
    assert world.at_rest()


@pytest.mark.parametrize("result", [DIGEST, GONE])
def test_a_slot_whose_bytes_are_wrong_is_not_handed_out_again(result: int) -> None:
    """Nor one that is no slot any more, though it was pinned."""
    world = World()
    world.hold(0, 2)
    prompt = world.prompt(2)
    world.begin("a", prompt)
    world.match("a", prompt)
    load(world, "a", 8, [1, 2, 3, 4, 5])
    world.agent.loaded("a", LoadResult(1, result))
    assert world.agent.table.contains(world.keys(0, 2)) == b"\x01\x00"


def test_a_slot_whose_digest_is_wrong_is_retired_while_another_request_loads_it() -> None:
    world = World()
    world.hold(0, 2)
    prompt = world.prompt(2)
    for name in ("a", "b"):
        world.begin(name, prompt)
        assert world.match(name, prompt) == 8
        load(world, name, 8, [1, 2, 3, 4, 5])
    world.agent.loaded("a", LoadResult(1, DIGEST))
    assert world.agent.table.contains(world.keys(0, 2)) == b"\x01\x00"
    assert world.granules("pinned") == 2
    room = world.agent.table.reserve(world.keys(0, 2)[16:], 0.0)
    assert room is not None
    assert world.agent.table.admit(*room) == 1, "computed by a, and stored again"
    world.agent.loaded("b", LoadResult(1, DIGEST))
    assert world.agent.table.contains(world.keys(0, 2)) == b"\x01\x01", "the new one is good"
    assert world.agent.table.pins == 0
    assert world.granules("retired") == 1


def test_pins_of_an_aborted_request_last_as_long_as_its_load() -> None:
    world = World()
    world.hold(0, 2)
    prompt = world.prompt(2)
    world.begin("a", prompt)
    world.match("a", prompt)
    load(world, "a", 8, [1, 2, 3, 4, 5])
    world.agent.finished("a")
    assert world.agent.table.pins == 2
    assert world.agent.pending["requests"] == 1
    world.agent.loaded("a", LoadResult(2))
    assert world.at_rest()


def test_a_claim_below_the_least_holds_no_pins_while_the_request_runs() -> None:
    world = World(min_tokens=100)
    world.hold(0, 2)
    prompt = world.prompt(2)
    world.begin("a", prompt)
    assert world.match("a", prompt) == 0
    world.agent.allocated("a", [[1, 2, 3, 4, 5]], 0)
    assert world.agent.table.pins == 0
    counts = world.agent.finished("a")["lmkv"]  # type: ignore[index]
    assert counts["miss_tokens"]["recompute_cheaper"] == 8
    assert world.at_rest()


# ---------------------------------------------------------------- ranks with other heads


def asking(world: World, chunks: int = 1, **info: object) -> list[int]:
    """A request whose chunks a peer has that is as `info` says."""
    prompt = world.prompt(chunks)
    world.begin("a", prompt)
    world.located(chunks)
    assert world.match("a", prompt) is None
    world.peer_info(**info)  # type: ignore[arg-type]
    return prompt


def test_one_rank_pulls_from_both_of_a_peer_s() -> None:
    world = World(heads=[(0, 8)])
    prompt = asking(world, heads=[(4, 4), (0, 4)])
    assert world.match("a", prompt) is None
    pull, _ = world.pull()
    assert [peer.info.rank for peer in (pull.peer, *pull.others)] == [1, 0]  # head by head
    assert pull.fingerprint == 90
    world.pulled([GOOD], bytes=4096)
    assert world.match("a", prompt) == 4


def test_each_rank_pulls_its_heads_from_a_peer_s_only_one() -> None:
    world = World(ranks=2, heads=[(0, 4), (4, 4)])
    prompt = asking(world, heads=[(0, 8)])
    assert world.match("a", prompt) is None
    for rank in range(2):
        pull, _ = world.pull(rank)
        assert (pull.peer.info.rank, pull.others, pull.fingerprint) == (0, [], 90 + rank)
    world.pulled([GOOD], 0)
    assert world.match("a", prompt) is None
    world.pulled([GOOD], 1)
    assert world.match("a", prompt) == 4


@pytest.mark.parametrize("mapped", [True, False])
def test_a_peer_that_lacks_some_of_our_heads_is_not_read(mapped: bool) -> None:
    world = World(heads=[(0, 8)])
    prompt = asking(world, mapped=mapped, heads=[(0, 4)])
    assert world.match("a", prompt) == 0
    assert world.agent.pulls.posted == 0
    assert finish(world, "a")[1]["incompatible"] == 4


def test_a_mapped_peer_s_ranks_all_go_into_the_load() -> None:
    world = World(heads=[(0, 8)])
    prompt = asking(world, mapped=True, heads=[(0, 4), (4, 4)])
    assert world.match("a", prompt) == 4
    made = load(world, "a", 4, [1, 2, 3])
    assert [peer.info.heads for peer in made.peers[0]] == [[(0, 4)], [(4, 4)]]
