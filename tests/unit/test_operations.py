"""Operations of jobs: real agents and controllers, of which each message is carried by hand."""

from __future__ import annotations

import pytest
from lmkv.agent.options import Options
from lmkv.controller import commands
from lmkv.core.messages import (
    OPEN,
    Command,
    Locate,
    Located,
    Part,
    Peer,
    PeerInfo,
    PeerRef,
    PinState,
    Pull,
    PullResult,
    RankInfo,
    Run,
    SlotsPage,
)

from tests.fake_links import CONTROLLER, PEER_EPOCH, QUERY, THERE, World, counters, places
from tests.job_cluster import CHUNK_BYTES, SLOTS, Cluster


def pins_told(cluster: Cluster) -> list[PinState]:
    """What the controller knows of them."""
    return cluster.controllers[0].pins[-1].pins


def outcome(part: Part) -> tuple[str, int, dict[str, int]]:
    return part.state, part.chunks, part.skipped


# ---------------------------------------------------------------- pin, unpin


def test_pinned_chunks_survive_pressure_and_the_others_do_not():
    cluster = Cluster("a")
    a = cluster["a"]
    a.hold(0, 8)
    part = cluster.do("pin", "a", a.keys(0, 6), ttl="60")
    assert outcome(part) == ("done", 6, {})
    assert part.bytes == 6 * CHUNK_BYTES
    for first in range(100, 160, 5):
        a.hold(first, first + 5)
    assert a.has(0, 8) == [0, 1, 2, 3, 4, 5]
    [pin] = pins_told(cluster)
    assert (pin.id, pin.instance, pin.chunks, pin.bytes) == ("j1", "a", 6, 6 * CHUNK_BYTES)
    assert pin.first == a.keys(0, 1).hex()
    assert 59 < pin.left <= 60


def test_a_pin_ends_with_its_time_and_one_with_an_owner_when_that_unpins():
    cluster = Cluster("a")
    a = cluster["a"]
    a.hold(0, 4)
    cluster.do("pin", "a", a.keys(0, 2), ttl="5")
    cluster.do("pin", "a", a.keys(0, 4), name="j2", owner="team")
    assert [pin.left for pin in pins_told(cluster)][1] == 0.0
    assert a.agent.table.pins == 6
    cluster.run(600)
    assert a.agent.table.pins == 4
    assert [pin.id for pin in pins_told(cluster)] == ["j2"]
    assert outcome(cluster.do("unpin", "a", a.keys(0, 4), name="j3", owner="other"))[1] == 0
    assert outcome(cluster.do("unpin", "a", a.keys(0, 4), name="j4", owner="team"))[1] == 4
    assert pins_told(cluster) == []
    assert a.agent.table.pins == 0


def test_unpin_of_a_prefix_ends_the_pins_within_it_and_whole_ends_all():
    cluster = Cluster("a")
    a = cluster["a"]
    a.hold(0, 6)
    for name, last in (("p1", 2), ("p2", 4), ("p3", 6)):
        cluster.do("pin", "a", a.keys(0, last), name=name, owner="team")
    cluster.do("unpin", "a", a.keys(0, 4))
    assert a.pins == ["p3"]
    cluster.do("unpin", "a", name="j2", whole="1")
    assert a.pins == []
    assert a.agent.pins.granules == 0
    assert a.agent.table.pins == 0


def test_absent_chunks_are_counted_and_a_prefix_that_is_not_here_at_all_fails():
    cluster = Cluster("a")
    a = cluster["a"]
    a.hold(0, 2)
    assert outcome(cluster.do("pin", "a", a.keys(0, 5), ttl="9")) == ("done", 5, {"absent": 3})
    part = cluster.do("pin", "a", a.keys(9, 12), name="j2", ttl="9")
    assert (part.state, part.code) == ("failed", "unknown_prefix")
    assert a.pins == ["j1"]


@pytest.mark.parametrize(("left", "end"), [(1, ("done", 3, {"absent": 2})), (0, ("failed", 0, {}))])
def test_what_goes_while_a_pin_looks_at_it_is_absent(left: int, end: object):
    cluster = Cluster("a")
    a = cluster["a"]
    keys = a.hold(0, 3)
    cluster.take("pin", "a", keys, ttl="9")
    while a.part().state == "queued":
        cluster.tick()
    a.agent.table.retire(a.keys(left, 3), False)
    assert outcome(cluster.ended("a")) == end
    assert len(a.pins) == (left > 0)
    assert list(cluster.at_rest()) == []


def test_a_pin_beyond_the_share_of_the_pool_pins_nothing_and_names_the_numbers():
    cluster = Cluster("a", pin_share=0.25)
    a = cluster["a"]
    a.hold(0, 8)
    cluster.do("pin", "a", a.keys(0, 3), ttl="9")
    part = cluster.do("pin", "a", a.keys(0, 5), name="j2", ttl="9")
    assert (part.state, part.code) == ("failed", "no_room")
    assert "pin_share = 0.25" in part.reason
    assert "4 of 16 slots; 3 are pinned and 2 more are asked for" in part.reason
    assert a.agent.table.pins == 3
    # What is pinned already takes nothing more.
    assert cluster.do("pin", "a", a.keys(0, 4), name="j3", ttl="9").state == "done"


@pytest.mark.parametrize("more", [{}, {"ttl": "0"}, {"owner": ""}])
def test_a_pin_needs_an_end(more):
    cluster = Cluster("a")
    refused = cluster.refused("pin", "a", cluster["a"].keys(0, 1), **more)
    assert (refused.code, refused.field) == ("field", "ttl")


def test_a_reset_ends_all_pins():
    cluster = Cluster("a")
    a = cluster["a"]
    keys = a.hold(0, 4)
    cluster.do("pin", "a", keys, ttl="60")
    a.agent.reset()
    cluster.run(30)
    assert a.agent.table.pins == 0
    assert pins_told(cluster) == []


# ---------------------------------------------------------------- clear


def test_cleared_chunks_are_retracted_and_pinned_ones_stay():
    cluster = Cluster("a", "b")
    a = cluster["a"]
    a.hold(0, 8)
    cluster.do("pin", "a", a.keys(0, 2), owner="team")
    part = cluster.do("clear", "a", a.keys(0, 10), name="j2")
    assert outcome(part) == ("done", 10, {"pinned": 2, "absent": 2})
    assert part.bytes == 6 * CHUNK_BYTES
    assert a.has(0, 8) == [0, 1]
    cluster.run(5)
    assert len(cluster.controllers[0].registry.placement.directory) == 2


def test_what_was_retired_for_room_does_not_come_back_after_a_clear():
    cluster = Cluster("a")
    a = cluster["a"]
    a.hold(0, SLOTS)
    a.hold(100, 101)  # retires one of the first for room
    gone = min(set(range(SLOTS)) - set(a.has(0, SLOTS)))
    cluster.do("clear", "a", a.keys(gone, gone + 1))
    assert a.agent.table.lookup(a.keys(gone, gone + 1)) == 0


def test_a_whole_instance_is_cleared():
    cluster = Cluster("a")
    a = cluster["a"]
    a.hold(0, 9)
    cluster.run(2)
    part = cluster.do("clear", "a", whole="1")
    assert outcome(part) == ("done", 9, {})
    assert (part.chunks_total, a.has(0, 9)) == (9, [])


# ---------------------------------------------------------------- copy, move


def test_a_prefix_is_copied_from_whoever_has_it_and_announced():
    cluster = Cluster("a", "b", "c")
    cluster["a"].hold(0, 4)
    cluster["b"].hold(4, 6)
    cluster["c"].hold(0, 1)
    cluster.run(3)
    part = cluster.do("copy", "c", cluster["c"].keys(0, 8))
    assert outcome(part) == ("done", 8, {"present": 1, "absent": 2})
    assert (part.bytes, part.chunks_total) == (5 * CHUNK_BYTES, 8)
    assert cluster["c"].has(0, 8) == [0, 1, 2, 3, 4, 5]
    assert cluster["a"].has(0, 8) == [0, 1, 2, 3]
    assert list(cluster.at_rest()) == []
    holders = cluster.controllers[0].registry.placement.holders
    assert set(holders(cluster["c"].keys(4, 5))) == {"b", "c"}


def test_a_key_that_stands_there_twice_is_one_chunk():
    cluster = Cluster("a", "b")
    keys = cluster["a"].hold(0, 2)
    cluster.run(3)
    assert outcome(cluster.do("copy", "b", keys + keys)) == ("done", 2, {})
    assert outcome(cluster.do("pin", "b", keys + keys, name="j2", ttl="9")) == ("done", 2, {})


@pytest.mark.parametrize("whole", [False, True])
def test_a_copied_chunk_is_not_the_first_to_go(whole):
    cluster = Cluster("a", "b")
    keys = cluster["a"].hold(0, 4)
    cluster["b"].hold(100, 112)
    cluster.run(3)
    if whole:
        cluster.do("copy", "b", source="a", whole="1")
    else:
        cluster.do("copy", "b", keys)
    cluster["b"].hold(200, 206)
    assert cluster["b"].has(0, 4) == [0, 1, 2, 3]


def test_a_named_source_is_asked_itself():
    cluster = Cluster("a", "b", "c")
    cluster["a"].hold(0, 4)
    cluster["b"].hold(0, 2)
    part = cluster.do("copy", "c", cluster["c"].keys(0, 4), source="b")
    assert outcome(part) == ("done", 4, {"absent": 2})
    assert cluster["c"].has(0, 4) == [0, 1]


def test_a_move_leaves_nothing_at_its_source_but_what_is_pinned_there():
    cluster = Cluster("a", "b")
    a, b = cluster["a"], cluster["b"]
    a.hold(0, 6)
    b.hold(0, 1)
    cluster.do("pin", "a", a.keys(5, 6), owner="team")
    part = cluster.do("move", "b", a.keys(0, 6), name="j2", source="a")
    assert outcome(part) == ("done", 6, {"present": 1, "pinned": 1})
    assert a.has(0, 6) == [5]
    assert b.has(0, 6) == [0, 1, 2, 3, 4, 5]
    assert list(cluster.at_rest()) == []


def test_a_move_does_not_give_up_the_source_for_what_is_wrong_here():
    cluster = Cluster("a", "b")
    a, b = cluster["a"], cluster["b"]
    a.hold(0, 2)
    b.hold(0, 2)
    granule = int.from_bytes(b.agent.table.places(b.keys(0, 1))[0][:4], "little")
    b.worker.holds[granule] += 1  # its digests do not hold
    part = cluster.do("move", "b", a.keys(0, 2), source="a")
    assert (part.state, part.code) == ("failed", "digest")
    assert part.reason.startswith("1 chunks that were here did not have their digests")
    assert (a.has(0, 2), b.has(0, 2)) == ([0], [1])
    cluster.ask("retry", "b", name="r1", job="j1")
    assert cluster.ended("b").state == "done"
    assert (a.has(0, 2), b.has(0, 2)) == ([], [0, 1])
    assert list(cluster.at_rest()) == []


def test_a_whole_instance_is_copied_and_moved_and_no_more_than_there_is_room_for():
    cluster = Cluster("a", "b")
    a, b = cluster["a"], cluster["b"]
    a.hold(0, 12)
    cluster.run(3)
    part = cluster.do("copy", "b", source="a", whole="1")
    assert outcome(part) == ("done", 12, {})
    assert b.has(0, 12) == list(range(12))
    cluster.do("clear", "b", name="j2", whole="1")
    b.hold(100, 110)
    cluster.do("pin", "b", b.keys(100, 108), name="j3", owner="team")
    part = cluster.do("move", "b", name="j4", source="a", whole="1")
    assert outcome(part) == ("done", 12, {"limit": 4})
    moved = b.has(0, 12)
    assert len(moved) == 8
    assert a.has(0, 12) == [n for n in range(12) if n not in moved]
    assert list(cluster.at_rest()) == []


@pytest.mark.parametrize("operation", ["copy", "clear"])
def test_the_progress_of_a_whole_instance_is_of_all_that_it_has(operation: str):
    cluster = Cluster("a", "b", slots=300)
    a, b = cluster["a"], cluster["b"]
    a.hold(0, 200)
    cluster.run(3)
    more = {"source": "a"} if operation == "copy" else {}
    cluster.take(operation, "b" if more else "a", whole="1", **more)
    at = b if more else a
    seen = []
    while at.part().state in OPEN:
        seen.append((at.part().chunks, at.part().chunks_total))
        if len(seen) == 2:
            a.hold(200, 220)  # requests go on
        cluster.tick()
    part = at.part()
    assert (part.state, part.chunks_total) == ("done", part.chunks)
    assert len({done for done, _ in seen}) > 3
    assert all(done <= whole >= 200 for done, whole in seen if done)


def test_pages_of_a_source_name_each_slot_once():
    cluster = Cluster("a", "b", slots=1000)
    a = cluster["a"]
    keys = a.hold(0, 700)
    cluster.run(3)
    part = cluster.do("copy", "b", source="a", whole="1")
    assert outcome(part) == ("done", 700, {})
    assert cluster["b"].agent.table.lookup(keys) == 700


def test_the_bandwidth_limit_holds():
    cluster = Cluster("a", "b", slots=200, rate=1e9, job_bytes_per_second=64 * CHUNK_BYTES)
    cluster["a"].hold(0, 192)
    cluster.run(3)
    part = cluster.do("copy", "b", cluster["b"].keys(0, 192))
    assert part.state == "done"
    assert 1.9 < part.seconds < 3.0


def test_where_nobody_has_it_the_job_says_so():
    cluster = Cluster("a", "b")
    part = cluster.do("copy", "b", cluster["b"].keys(0, 3))
    assert (part.state, part.code) == ("failed", "unknown_prefix")
    assert part.skipped == {"absent": 3}
    part = cluster.do("copy", "b", cluster["b"].keys(0, 3), name="j2", source="a")
    assert (part.code, part.reason) == ("unknown_prefix", "instance 'a' has none of these chunks")


def test_an_incompatible_source_is_named_with_its_field():
    cluster = Cluster("a", "b", namespaces={"a": "dtype=other\nmodel=m\n"})
    a, b = cluster["a"], cluster["b"]
    a.hold(0, 2)
    cluster.run(3)
    for name, more in (("j1", {"source": "a"}), ("j2", {})):
        part = cluster.do("copy", "b", b.keys(0, 2), name=name, **more)
        assert (part.state, part.code) == ("failed", "incompatible"), part
        assert "dtype" in part.reason


def test_an_unknown_or_silent_source_and_itself():
    cluster = Cluster("a", "b")
    keys = cluster["b"].keys(0, 1)
    assert cluster.do("copy", "b", keys, source="zz").code == "unknown_instance"
    assert cluster.do("copy", "b", keys, name="j2", source="b").code == "field"
    cluster.gone.add("a")
    cluster.run(450)
    assert cluster.do("copy", "b", keys, name="j3", source="a").code == "unavailable"
    assert cluster.refused("copy", "b", whole="1", name="j4").field == "source"
    assert list(cluster.at_rest()) == []


@pytest.mark.parametrize(("ticks", "end"), [(60, ("done", "")), (2000, ("failed", "busy"))])
def test_a_source_with_too_much_to_answer_is_asked_again_for_a_while(monkeypatch, ticks, end):
    cluster = Cluster("a", "b")
    keys = cluster["a"].hold(0, 2)
    cluster.take("move", "b", keys, source="a")
    monkeypatch.setattr(commands, "EACH", 0)
    cluster.run(ticks)
    monkeypatch.undo()
    part = cluster.ended("b")
    assert (part.state, part.code) == end
    assert list(cluster.at_rest()) == []


def test_a_target_without_mover_or_room_says_so():
    cluster = Cluster("a", "b", pin_share=1.0)
    a, b = cluster["a"], cluster["b"]
    a.hold(0, 2)
    cluster.run(3)
    b.mover("")
    cluster.run(3)
    assert cluster.do("copy", "b", b.keys(0, 2)).code == "mover_down"
    b.mover("sim://mover")
    b.hold(100, 100 + SLOTS)
    cluster.do("pin", "b", b.keys(100, 100 + SLOTS), name="j2", ttl="60")
    part = cluster.do("copy", "b", b.keys(0, 2), name="j3")
    assert (part.code, part.reason) == ("no_room", "all 16 slots of the pool are pinned or taken")
    assert list(cluster.at_rest()) == []


# ---------------------------------------------------------------- a request's own pin


def test_a_request_pins_its_prompt_as_it_becomes_readable_and_again_renews_it():
    cluster = Cluster("a")
    a = cluster["a"]
    a.hold(0, 1)
    for name in ("r1", "r2"):
        a.agent.begin(name, list(range(13)), b"", {}, Options(pin_ttl=10.0))
        if name == "r1":
            cluster.run(30)
            assert [pin.chunks for pin in pins_told(cluster)] == [1]
            a.hold(1, 3)
        cluster.run(100)
        [pin] = pins_told(cluster)
        assert (pin.chunks, pin.first) == (3, a.keys(0, 1).hex())
        a.agent.finished(name)
    cluster.run(850)  # the first one's time is over, the second one's is not
    assert a.agent.table.pins == 3
    cluster.run(200)
    assert a.agent.table.pins == 0
    assert pins_told(cluster) == []


def test_a_request_that_comes_right_behind_a_reset_has_its_pin():
    cluster = Cluster("a", on_reset="keep")
    a = cluster["a"]
    a.agent.begin("old", list(range(9)), b"", {}, Options(pin_ttl=60.0))
    a.agent.reset()
    a.agent.begin("new", list(range(13)), b"", {}, Options(pin_ttl=60.0))
    cluster.run(30)
    a.hold(0, 3)
    cluster.run(60)
    assert [pin.chunks for pin in pins_told(cluster)] == [3]


def test_a_request_whose_pin_does_not_fit_runs_on_and_is_told_of_once(caplog):
    cluster = Cluster("a", pin_share=0.1, min_tokens=1)
    a = cluster["a"]
    a.hold(0, 3)
    for name in ("r1", "r2"):
        a.agent.begin(name, list(range(13)), b"", {}, Options(pin_ttl=10.0))
        cluster.run(30)
        assert a.agent.match(name, 0, 13) == 12
        a.agent.allocated(name, [], 0)
        a.agent.finished(name)
    assert a.pins == []
    assert sum("pin_share = 0.1" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("value", [0, -1, "60", True, float("nan"), float("inf"), [], {}])
def test_what_is_no_time_is_one_sentence(value):
    options = Options.of({"lmkv": {"pin_ttl_s": value, "skip_load": True}})
    assert (options.pin_ttl, options.skip_load) == (0.0, True)
    assert options.wrong.startswith("pin_ttl_s = ")
    assert "\n" not in options.wrong


def test_a_time_is_taken_as_it_is():
    assert Options.of({"lmkv": {"pin_ttl_s": 90}}) == Options(pin_ttl=90.0)
    assert Options.of({"lmkv": {"pin_ttl_s": None}}) == Options()


# ---------------------------------------------------------------- what sources may say


@pytest.mark.parametrize(
    ("answer", "frames", "code"),
    [
        (SlotsPage(), [b"", b"", b""], "incompatible"),
        (SlotsPage(), [b"k" * 16, b"", b""], "failed"),
        (SlotsPage(), [b"short", b"", b""], "failed"),
        (SlotsPage(), [], "failed"),
        ([1, 2], [b"", b"", b""], "failed"),
        ("words", [], "failed"),
    ],
)
def test_a_source_that_answers_nonsense_fails_the_job(answer, frames, code):
    cluster = Cluster("a", "b")
    cluster["a"].agent.commands._prompt["slots"] = lambda *_: (answer, frames)
    part = cluster.do("copy", "b", cluster["b"].keys(0, 2), source="a")
    assert (part.state, part.code) == ("failed", code)
    assert "'a'" in part.reason
    assert list(cluster.at_rest()) == []


def test_a_source_of_a_release_without_it_is_named():
    cluster = Cluster("a", "b")
    del cluster["a"].agent.commands._prompt["slots"]
    part = cluster.do("copy", "b", cluster["b"].keys(0, 2), source="a")
    assert (part.state, part.code) == ("failed", "unsupported")


def test_slots_and_retire_refuse_what_are_no_keys():
    cluster = Cluster("a")
    assert cluster.refused("slots", "a", b"k" * 17).field == "keys"
    assert cluster.refused("slots", "a", b"k" * 16 * 4097).field == "keys"
    for frames in ((b"k" * 16,), (b"k" * 16, b"p" * 8, b"c"), (b"", b"p" * 8, b"c" * 4)):
        assert cluster.refused("retire", "a", *frames).field == "slots"
    assert cluster.refused("slots", "a", limit="0").field == "limit"
    assert cluster.refused("slots", "a", first="-1").field == "first"


def test_a_chunk_is_tried_as_of_each_cache_group():
    world = World(windows=(0, 8))
    keys = world.keys(0, 2, group=1)
    command = Command("j1", "copy", "us", request=7, deadline=9.0)
    world.at(CONTROLLER).say(command, keys)
    for _ in range(2):
        world.turn()
    *_, query = [link for link in world.links if link.address == QUERY]
    *_, state = [link for link in world.links if link.address == CONTROLLER]
    asked, frames = query.last(Locate)
    assert (asked.sparse, frames) == (True, [keys])
    ref = PeerRef("peer", PEER_EPOCH, 0)
    query.say(Located(asked.request, 77, 2, [Run(0, 2, 0, 0)], [], [ref]), places(2), counters(2))
    world.turn()
    ranks = [RankInfo(0, THERE, nixl_metadata=b"metadata")]
    state.say(PeerInfo(state.last(Peer)[0].request, "peer", PEER_EPOCH, 0, ranks))
    for results in ([PullResult.INCOMPATIBLE] * 2, [PullResult.GOOD] * 2):
        world.turn()
        world.turn()
        world.pulled(results)
    assert [pull.fingerprint for pull, _ in world.at("ipc://mover0").of(Pull)] == [90, 100]
    for _ in range(4):
        world.turn()
    assert world.agent.table.lookup(keys) == 2
    [(_, job)] = world.agent.jobs.news(0)
    assert (job.part.state, job.part.chunks, job.part.skipped) == ("done", 2, {})
    world.turn()
    assert query.closed and state.closed
    assert world.at_rest()


def test_a_reset_by_the_other_thread_just_before_a_pull_is_met():
    cluster = Cluster("a", "b")
    keys = cluster["a"].hold(0, 2)
    cluster.run(3)
    agent = cluster["b"].agent
    lock = agent.reader.lock

    class Resetting:
        """As it looks to whoever had to wait for the lock."""

        def __enter__(self) -> None:
            agent.reader.lock = lock
            agent.reset()
            lock.acquire()

        def __exit__(self, *_: object) -> None:
            lock.release()

    cluster.take("copy", "b", keys)
    while agent.fetches._finding == 0:
        cluster.tick()
    while agent.fetches._finding:
        agent.reader.lock = Resetting()  # type: ignore[assignment]
        agent.jobs.turn()
        for controller in cluster.controllers:
            controller.tick()
    assert agent.pulls.posted == 0
    assert cluster.ended("b").code == "reset"
    assert list(cluster.at_rest()) == []


def test_more_than_one_batch_of_what_is_here_is_digested_again():
    cluster = Cluster("a", "b", slots=100)
    keys = cluster["a"].hold(0, 80)
    cluster["b"].hold(0, 80)
    cluster.run(3)
    part = cluster.do("move", "b", keys, source="a")
    assert outcome(part) == ("done", 80, {"present": 80})
    assert cluster["a"].has(0, 80) == []
    assert list(cluster.at_rest()) == []


def test_a_source_gives_nothing_up_before_its_chunks_are_announced_at_the_new_place():
    cluster = Cluster("a", "b")
    a, b = cluster["a"], cluster["b"]
    keys = a.hold(0, 2)
    cluster.run(3)
    cluster.take("move", "b", keys, source="a")
    while not b.agent.pulls.posted:
        cluster.tick()
    state = b.agent._controllers._links[cluster.controllers[0].address]
    state.up = False  # type: ignore[attr-defined]
    cluster.run(100)
    assert (a.has(0, 2), b.has(0, 2)) == ([0, 1], [0, 1])
    state.up = True  # type: ignore[attr-defined]
    assert cluster.ended("b").state == "done"
    assert (a.has(0, 2), b.has(0, 2)) == ([], [0, 1])
