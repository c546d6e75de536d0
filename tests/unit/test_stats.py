"""What an agent counts: each once, by cause and by peer, and how it stands once a second."""

from __future__ import annotations

from lmkv.agent.stats import KEPT, Stats
from lmkv.core.messages import (
    Heartbeat,
    HeartbeatOk,
    Locate,
    Located,
    PeerRef,
    PullResult,
    Resync,
    Run,
)
from lmkv.core.metrics import BY_KEY, GAUGE
from lmkv.core.steps import LoadResult

from tests.fake_links import CONTROLLER, PEER_EPOCH, QUERY, World, counters, places
from tests.unit.test_agent_read import finish, load, pulling

GOOD, DIGEST = PullResult.GOOD, PullResult.DIGEST


def test_each_count_is_taken_once_and_tokens_have_totals_too() -> None:
    stats = Stats()
    stats.tokens("hit_peer", 8, "p")
    stats.tokens("hit_peer", 4, "q")
    stats.tokens("cold", 2)
    stats.tokens("cold", 0)
    assert stats.take() == {
        "hit_tokens": {"hit_peer": 12},
        "peer_hit_tokens": {"p": {"hit_peer": 8}, "q": {"hit_peer": 4}},
        "miss_tokens": {"cold": 2},
    }
    assert stats.take() == {}
    assert stats.totals() == {"hit": {"hit_peer": 12}, "miss": {"cold": 2}}


def test_a_pull_counts_by_peer_and_has_a_rate() -> None:
    stats = Stats()
    stats.pull("p", 0.5, 100)
    stats.pull("p", 0.0, 0)  # by a mover whose clock stood still
    assert stats.take() == {
        "pull_seconds": [0.5, 0.0],
        "pull_bytes_per_second": [200.0],
        "pull_bytes": 100,
        "peer_pull_bytes": {"p": 100},
        "peer_pull_seconds": {"p": 0.5},
    }


def test_a_night_without_steps_fills_no_memory() -> None:
    stats = Stats()
    for n in range(10 * KEPT):
        stats.observe("heartbeat_seconds", n)
    assert stats.take() == {"heartbeat_seconds": list(range(9 * KEPT, 10 * KEPT))}


# ------------------------------------------------------------------ in an agent


def test_hits_of_a_mapped_peer_are_its_own() -> None:
    world = World()
    world.hold(0, 1)
    prompt = world.prompt(3)
    world.begin("a", prompt)
    world.located(2, "peer")
    assert world.match("a", prompt) is None
    world.peer_info(mapped=True)
    assert world.match("a", prompt, computed=2) == 10  # vLLM has half of the first chunk
    load(world, "a", 10, list(range(9)))
    assert world.agent.hit_tokens("a") == {"hit_pool": 2, "hit_mapped": 8}
    assert world.agent.hit_tokens("nobody") == {}
    world.agent.loaded("a", LoadResult(3))
    taken = world.agent.stats.take()
    assert taken["hit_tokens"] == {"hit_vllm": 2, "hit_pool": 2, "hit_mapped": 8}
    assert taken["peer_hit_tokens"] == {"peer": {"hit_mapped": 8}}
    assert "peer_miss_tokens" not in taken


def test_what_a_peer_did_not_bring_is_its_miss() -> None:
    world = World()
    prompt = pulling(world, chunks=3)
    world.pulled([GOOD, DIGEST, GOOD], seconds=0.25, bytes=2048)
    assert world.match("a", prompt) == 4
    load(world, "a", 4, list(range(9)))
    assert world.agent.hit_tokens("a") == {"hit_peer": 4}
    world.agent.loaded("a", LoadResult(1))
    taken = world.agent.stats.take()
    assert taken["peer_hit_tokens"] == {"peer": {"hit_peer": 4}}
    assert taken["peer_miss_tokens"] == {"peer": {"digest": 8}}
    assert taken["pulled_chunks"] == {"good": 2, "digest": 1}
    assert taken["pull_bytes_per_second"] == [8192.0]


def test_what_nobody_has_is_nobodys_miss() -> None:
    world = World()
    prompt = world.prompt(2)
    world.begin("a", prompt)
    world.located(0)
    assert world.match("a", prompt) == 0
    finish(world, "a")
    assert "peer_miss_tokens" not in world.agent.stats.take()


def test_by_peer_with_several_cache_groups_too() -> None:
    world = World(windows=(0, 6))
    for group in (0, 1):
        world.hold(0, 1, group)
    prompt = world.prompt(2)
    world.begin("a", prompt)
    query, refs = world.at(QUERY), [PeerRef("peer", PEER_EPOCH, 0)]
    for asked, _ in query.of(Locate)[-2:]:
        answer = Located(asked.request, 77, 1, [Run(0, 1, 0, 0)], [], refs)
        query.say(answer, places(1), counters(1))
    assert world.match("a", prompt) is None
    world.peer_info(mapped=True)
    assert world.match("a", prompt) == 8
    world.agent.allocated("a", [[1, 2, 3, 4, 5], [1, 2, 3, 4, 5]], 8)
    assert world.agent.hit_tokens("a") == {"hit_pool": 4, "hit_mapped": 4}
    [made] = world.agent.step([], []).loads
    world.agent.loaded("a", LoadResult(len(made.chunks)))
    assert world.agent.stats.take()["peer_hit_tokens"] == {"peer": {"hit_mapped": 4}}


def test_how_it_stands_is_told_once_a_second() -> None:
    world = World()
    world.hold(0, 2)
    world.agent.take_stats()
    assert "pool_granules" not in world.agent.take_stats()
    world.clock.advance(1)
    told = world.agent.take_stats()
    assert told["pool_granules"]["readable"] == 32
    assert told["instance_info"] == {"us": 1}
    assert told["controllers"] == {"ready": 1, "warming": 0, "silent": 0, "refused": 0}
    assert (told["open_pulls"], told["avoided_peers"], told["open_syncs"]) == (0, 0, 0)
    assert {key for key in told if BY_KEY[key].kind == GAUGE} == {
        metric.key for metric in BY_KEY.values() if metric.kind == GAUGE
    }
    world.clock.advance(60)
    assert world.agent.take_stats()["controllers"]["silent"] == 1


def test_the_stream_is_counted() -> None:
    world = World()
    world.agent.take_stats()
    world.hold(0, 2)
    world.turn()
    world.agent.table.retire(world.keys(0, 1))
    world.turn()
    state = world.at(CONTROLLER)
    state.say(Resync(5, "gap"))
    state.say(Resync(6, "what a later release says"))
    world.clock.advance(1)
    world.turn()
    world.clock.advance(0.125)
    state.say(HeartbeatOk(77, state.last(Heartbeat)[0].seq))
    world.turn()
    taken = world.agent.stats.take()
    assert (taken["announced_keys"], taken["retracted_keys"]) == (2, 1)
    assert taken["syncs"] == {"gap": 1, "other": 1}
    assert taken["heartbeat_seconds"] == [0.125]


def test_ages_of_retired_slots_are_told_once_and_summed() -> None:
    stats = Stats()
    stats.retired([0.5, 1.0, 7.0, 1e6])
    counts, seconds = stats.ages()
    assert (counts[0], counts[2], counts[-1], sum(counts)) == (2, 1, 1, 4)
    assert seconds == 1e6 + 8.5
    assert stats.take() == {"retired_age_seconds": [0.5, 1.0, 7.0, 1e6]}
    assert stats.ages() == (counts, seconds)
