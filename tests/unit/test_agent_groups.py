"""An engine with cache groups: the first sees all, the second 6 tokens (5 and the next one).

Chunks have 4 tokens in two blocks. A hit of 3 chunks needs of the second group the last chunk and
one token of the one before: of its 6 blocks vLLM has only the last three, the others are its null
block.
"""

from __future__ import annotations

import pytest
from lmkv.core.messages import Locate, Located, PeerRef, Pull, Pulled, PullResult, Run
from lmkv.core.steps import SKIPPED, Load, LoadResult, Store

from tests.fake_links import PEER_EPOCH, QUERY, World, counters, places

GOOD, GONE, TIMEOUT = PullResult.GOOD, PullResult.GONE, PullResult.TIMEOUT
FULL, WINDOW = 0, 1


class Groups(World):
    """Locates are answered by group, pulls by group and in the order of their jobs."""

    def __init__(self, **settings: object) -> None:
        super().__init__(windows=(0, 6), **settings)

    def locates(self) -> list[tuple[Locate, bytes]]:
        return [(asked, frames[0]) for asked, frames in self.at(QUERY).of(Locate)]

    def located_in(
        self,
        asked: Locate,
        *runs: tuple[int, int],
        peer: str = "peer",
        others: dict[str, tuple[int, int]] | None = None,
        missing: str = "cold",
        short: int = 9,
    ) -> None:
        """`runs` of its keys are at `peer`, key n in slot n; `others` hold some of them too. Key
        number `short` is compressed."""
        refs, alternates = [PeerRef(peer, PEER_EPOCH, 0)], []
        for i, (other, (first, last)) in enumerate((others or {}).items()):
            refs.append(PeerRef(other, PEER_EPOCH, 0))
            alternates.append(Run(first, last - first, 1 + i, first))
        found = [Run(first, last - first, 0, first) for first, last in runs]
        held = sum(last - first for first, last in runs)
        message = Located(asked.request, 77, held, found, alternates, refs if runs else [], missing)
        where = bytearray(places(10))
        where[8 * short + 4] = 12
        self.at(QUERY).say(message, bytes(where[:72]), counters(9))

    def peer_has(
        self, name: str, full: tuple[int, int], *window: tuple[int, int], mapped: bool = False
    ) -> int | None:
        """A request of 3 chunks arrives, the answers come; what match() says at last."""
        prompt = self.prompt(3)
        self.begin(name, prompt)
        (first, _), (second, _) = self.locates()[-2:]
        self.located_in(first, full)
        self.located_in(second, *window)
        assert self.match(name, prompt) is None
        self.peer_info(mapped=mapped)
        return self.match(name, prompt)

    def pulls_of(self, group: int) -> list[tuple[Pull, list[bytes]]]:
        told = self.at("ipc://mover0").of(Pull)
        return [(pull, frames) for pull, frames in told if pull.fingerprint == 90 + 10 * group]

    def ended(self, pull: Pull, *results: int) -> None:
        self.at("ipc://mover0").say(Pulled(0, pull.job), bytes(results))

    def load(self, name: str, tokens: int) -> Load:
        """With the tables that vLLM would give: block n of group g is 10 + 100g + n."""
        blocks = tokens // 2 + 1
        gone = max(0, tokens - 6 + 1) // 2
        window = [0] * gone + [110 + n for n in range(gone, blocks)]
        self.agent.allocated(name, [[10 + n for n in range(blocks)], window], tokens)
        (load,) = self.agent.step([], []).loads
        return load

    def over(self, name: str) -> tuple[dict[str, int], dict[str, int]]:
        ended = self.agent.finished(name)
        assert ended is not None
        counts = ended["lmkv"]
        return (
            {cause: n for cause, n in counts["hit_tokens"].items() if n},
            {cause: n for cause, n in counts["miss_tokens"].items() if n},
        )


# ---------------------------------------------------------------- what a hit needs


def test_a_hit_needs_of_a_window_its_tail_alone() -> None:
    world = Groups()
    world.hold(0, 3)
    world.hold(1, 3, group=WINDOW)
    prompt = world.prompt(3)
    world.begin("a", prompt)
    assert world.match("a", prompt) == 12
    assert world.agent.locator.sent == 0, "what the own pool has is not asked for"
    load = world.load("a", 12)
    assert [(chunk.group, chunk.blocks) for chunk in load.chunks] == [
        (FULL, [10, 11]),
        (FULL, [12, 13]),
        (FULL, [14, 15]),
        (WINDOW, [SKIPPED, 113]),
        (WINDOW, [114, 115]),
    ]
    assert [chunk.key for chunk in load.chunks[3:]] == [
        world.keys(1, 2, group=WINDOW),
        world.keys(2, 3, group=WINDOW),
    ]
    world.agent.loaded("a", LoadResult(5))
    assert world.over("a") == ({"hit_pool": 12}, {"too_short": 1})
    assert world.at_rest()


def test_beyond_what_vllm_has_itself_only() -> None:
    """vLLM has 6 tokens of its own: of the chunk that they end in, one block is loaded."""
    world = Groups()
    world.hold(0, 3)
    world.hold(1, 3, group=WINDOW)
    prompt = world.prompt(3)
    world.begin("a", prompt)
    assert world.match("a", prompt, computed=6) == 6
    world.agent.allocated("a", [[1, 2, 3, 4, 5, 6, 7], [0, 0, 0, 24, 25, 26, 27]], 6)
    (load,) = world.agent.step([], []).loads
    assert [(chunk.group, chunk.blocks) for chunk in load.chunks] == [
        (FULL, [SKIPPED, 4]),
        (FULL, [5, 6]),
        (WINDOW, [SKIPPED, 24]),
        (WINDOW, [25, 26]),
    ]
    world.agent.loaded("a", LoadResult(4))
    assert world.over("a") == ({"hit_vllm": 6, "hit_pool": 6}, {"too_short": 1})


def test_the_longest_hit_that_every_group_allows() -> None:
    """The window's last chunk is gone: the hit is one chunk shorter, and needs the two before."""
    world = Groups()
    world.hold(0, 3)
    world.hold(0, 2, group=WINDOW)
    prompt = world.prompt(3)
    world.begin("a", prompt)
    (asked, keys), *more = world.locates()
    assert (asked.sparse, keys, more) == (True, world.keys(2, 3, group=WINDOW), [])
    world.located_in(asked)
    assert world.match("a", prompt) == 8
    assert [(c.group, c.key) for c in world.load("a", 8).chunks] == [
        (FULL, world.keys(0, 1)),
        (FULL, world.keys(1, 2)),
        (WINDOW, world.keys(0, 1, group=WINDOW)),
        (WINDOW, world.keys(1, 2, group=WINDOW)),
    ]
    world.agent.loaded("a", LoadResult(4))
    assert world.over("a") == ({"hit_pool": 8}, {"cold": 4, "too_short": 1})
    assert world.at_rest()


def test_windows_without_the_chunks_that_all_layers_need_are_nothing() -> None:
    world = Groups()
    world.hold(1, 3, group=WINDOW)
    prompt = world.prompt(3)
    world.begin("a", prompt)
    for asked, _ in world.locates():
        world.located_in(asked)
    assert world.match("a", prompt) == 0
    world.agent.allocated("a", [], 0)
    assert world.over("a") == ({}, {"cold": 12, "too_short": 1})
    assert world.at_rest()


def test_an_engine_of_windows_alone() -> None:
    world = World(windows=(6,))
    world.hold(1, 3)
    prompt = world.prompt(3)
    world.begin("a", prompt)
    assert world.match("a", prompt) == 12
    world.agent.allocated("a", [[0, 0, 0, 4, 5, 6, 7]], 12)
    (load,) = world.agent.step([], []).loads
    assert [chunk.blocks for chunk in load.chunks] == [[SKIPPED, 4], [5, 6]]


# ---------------------------------------------------------------- locate


def test_each_group_is_located_for_itself_and_windows_with_gaps() -> None:
    world = Groups()
    world.begin("a", world.prompt(3))
    assert [(asked.sparse, keys) for asked, keys in world.locates()] == [
        (False, world.keys(0, 3)),
        (True, world.keys(0, 3, group=WINDOW)),
    ]
    (full, _), (window, _) = world.locates()
    world.located_in(window, (0, 1), (2, 3))  # in another order, and chunk 1 is nowhere
    assert world.match("a", world.prompt(3)) is None
    world.located_in(full, (0, 3))
    assert world.match("a", world.prompt(3)) is None, "the peer's details"
    world.peer_info(mapped=True)
    assert world.match("a", world.prompt(3)) == 4
    world.agent.allocated("a", [], 0)
    assert world.over("a")[1] == {"cold": 12, "too_short": 1}
    assert world.at_rest()


def test_one_group_without_an_answer_is_a_miss_at_the_deadline() -> None:
    world = Groups(locate_deadline=0.02)
    prompt = world.prompt(3)
    world.begin("a", prompt)
    (full, _), _ = world.locates()
    world.located_in(full, (0, 3))
    assert world.match("a", prompt) is None
    world.clock.advance(0.021)
    assert world.match("a", prompt) is None  # the peer's details
    world.peer_info(mapped=True)
    assert world.match("a", prompt) == 0
    world.agent.allocated("a", [], 0)
    assert world.over("a")[1] == {"locate_timeout": 12, "too_short": 1}
    assert world.at_rest()


def test_without_a_controller_the_own_pool_serves() -> None:
    world = Groups(controller=False)
    world.hold(0, 3)
    world.hold(0, 2, group=WINDOW)
    prompt = world.prompt(3)
    world.begin("a", prompt)
    assert world.match("a", prompt) == 8
    world.agent.allocated("a", [], 0)
    assert world.over("a")[1] == {"no_controller": 12, "too_short": 1}


def test_incompatible_is_said_with_its_field() -> None:
    world = Groups()
    prompt = world.prompt(3)
    world.begin("a", prompt)
    for asked, _ in world.locates():
        world.located_in(asked, missing="incompatible")
    assert world.match("a", prompt) == 0
    world.agent.allocated("a", [], 0)
    assert world.over("a")[1] == {"incompatible": 12, "too_short": 1}


# ---------------------------------------------------------------- pulls


def test_each_group_is_pulled_in_a_job_of_its_own() -> None:
    world = Groups()
    prompt = world.prompt(3)
    assert world.peer_has("a", (0, 3), (0, 3)) is None
    ((full, frames),) = world.pulls_of(FULL)
    assert frames[0] == world.keys(0, 3)
    ((window, frames),) = world.pulls_of(WINDOW)
    assert frames[0] == world.keys(1, 3, group=WINDOW), "of a window no more than its tail"
    assert frames[1] == places(3)[8:]
    world.ended(window, GOOD, GOOD)
    assert world.match("a", prompt) is None
    world.ended(full, GOOD, GOOD, GOOD)
    assert world.match("a", prompt) == 12
    assert len(world.load("a", 12).chunks) == 5
    world.agent.loaded("a", LoadResult(5))
    assert world.over("a") == ({"hit_peer": 12}, {"too_short": 1})
    assert world.at_rest()


def test_a_compressed_chunk_of_no_use_here_says_nothing_of_the_peers_others() -> None:
    """A pool in a GPU's memory takes no compressed ones; the window's tail is full slots."""
    world = Groups(tier=1)
    world.hold(0, 3)
    prompt = world.prompt(3)
    world.begin("a", prompt)
    ((asked, keys),) = world.locates()
    assert keys == world.keys(0, 3, group=WINDOW)
    world.located_in(asked, (0, 3), short=0)
    assert world.match("a", prompt) is None
    world.peer_info(tier=1)
    assert world.match("a", prompt) is None
    ((pull, frames),) = world.pulls_of(WINDOW)
    assert frames[0] == world.keys(1, 3, group=WINDOW)
    world.ended(pull, GOOD, GOOD)
    assert world.match("a", prompt) == 12


def test_a_window_chunk_that_is_gone_makes_the_hit_shorter() -> None:
    """And what the shorter one needs beside is pulled in another round."""
    world = Groups()
    prompt = world.prompt(3)
    assert world.peer_has("a", (0, 3), (0, 3)) is None
    ((full, _),), ((window, _),) = world.pulls_of(FULL), world.pulls_of(WINDOW)
    world.ended(full, GOOD, GOOD, GOOD)
    world.ended(window, GOOD, GONE)
    assert world.match("a", prompt) is None
    assert len(world.pulls_of(FULL)) == 1, "what came is not pulled again"
    _, (second, frames) = world.pulls_of(WINDOW)
    assert frames[0] == world.keys(0, 1, group=WINDOW)
    world.ended(second, GOOD)
    assert world.match("a", prompt) == 8
    world.load("a", 8)
    world.agent.loaded("a", LoadResult(4))
    assert world.over("a") == ({"hit_peer": 8}, {"gone": 4, "too_short": 1})
    assert world.at_rest()


def test_what_one_holder_does_not_bring_is_asked_of_the_alternate() -> None:
    world = Groups()
    prompt = world.prompt(3)
    world.begin("a", prompt)
    (first, _), (second, _) = world.locates()
    world.located_in(first, (0, 3))
    world.located_in(second, (0, 3), others={"other": (2, 3)})
    assert world.match("a", prompt) is None
    world.peer_info()
    assert world.match("a", prompt) is None
    ((full, _),), ((window, _),) = world.pulls_of(FULL), world.pulls_of(WINDOW)
    world.ended(full, GOOD, GOOD, GOOD)
    world.ended(window, GOOD, GONE)
    assert world.match("a", prompt) is None
    world.peer_info("other")
    assert world.match("a", prompt) is None
    _, (again, frames) = world.pulls_of(WINDOW)
    assert (again.peer.instance, frames[0]) == ("other", world.keys(2, 3, group=WINDOW))
    world.ended(again, GONE)
    assert world.match("a", prompt) is None  # a hit of two chunks, of whom one is to come
    *_, (last, frames) = world.pulls_of(WINDOW)
    assert (last.peer.instance, frames[0]) == ("peer", world.keys(0, 1, group=WINDOW))
    world.ended(last, GONE)
    assert world.match("a", prompt) == 0
    world.agent.allocated("a", [], 0)
    assert world.over("a")[1] == {"gone": 12, "too_short": 1}
    assert world.at_rest()


def test_a_peer_that_does_not_answer_is_not_asked_twice() -> None:
    world = Groups()
    prompt = world.prompt(3)
    assert world.peer_has("a", (0, 3), (0, 3)) is None
    for group, n in ((FULL, 3), (WINDOW, 2)):
        ((pull, _),) = world.pulls_of(group)
        world.ended(pull, *[TIMEOUT] * n)
    assert world.match("a", prompt) == 0
    assert world.agent.pulls.posted == 2
    world.agent.allocated("a", [], 0)
    assert world.over("a")[1] == {"pull_timeout": 12, "too_short": 1}


def test_a_window_that_another_request_pulls_is_waited_for() -> None:
    world = Groups()
    assert world.peer_has("a", (0, 3), (0, 3)) is None
    world.begin("b", world.prompt(3))
    for asked, _ in world.locates()[2:]:
        world.located_in(asked, (0, 3))
    assert world.match("b", world.prompt(3)) is None
    assert world.agent.pulls.posted == 2
    for group, n in ((FULL, 3), (WINDOW, 2)):
        ((pull, _),) = world.pulls_of(group)
        world.ended(pull, *[GOOD] * n)
    assert [world.match(name, world.prompt(3)) for name in "ab"] == [12, 12]


def test_no_room_for_one_group_is_no_hit_of_the_others() -> None:
    world = Groups(slots=4)
    assert world.peer_has("a", (0, 3), (0, 3)) is None
    ((full, _),) = world.pulls_of(FULL)
    assert world.pulls_of(WINDOW) == []
    world.ended(full, GOOD, GOOD, GOOD)
    done = None
    while done is None:
        done = world.match("a", world.prompt(3))
        for pull, frames in world.pulls_of(WINDOW):
            world.ended(pull, *[GOOD] * (len(frames[0]) // 16))
    world.agent.allocated("a", [], 0)
    world.over("a")
    assert world.at_rest()


@pytest.mark.parametrize("mapped", [True, False])
def test_pull_never_still_maps(mapped: bool) -> None:
    world = Groups(pull="never")
    assert world.peer_has("a", (0, 3), (1, 3), mapped=mapped) == (12 if mapped else 0)
    assert world.agent.pulls.posted == 0
    world.agent.allocated("a", [], 0)
    assert world.over("a")[1] == {"cold" if mapped else "recompute_cheaper": 12, "too_short": 1}


def test_a_miss_that_waits_for_blocks_costs_no_search_at_each_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = Groups()
    prompt = world.prompt(3)
    world.begin("a", prompt)
    for asked, _ in world.locates():
        world.located_in(asked)
    assert world.match("a", prompt) == 0
    monkeypatch.setattr(world.agent.reader, "_reach", None)
    assert world.match("a", prompt) == 0


# ---------------------------------------------------------------- loads that fail


def test_a_load_that_fails_in_one_chunk_fails_as_a_whole_and_is_not_claimed_again() -> None:
    world = Groups()
    prompt = world.prompt(3)
    assert world.peer_has("a", (0, 3), (1, 3), mapped=True) == 12
    load = world.load("a", 12)
    assert [chunk.peer for chunk in load.chunks] == [0] * 5
    world.agent.loaded("a", LoadResult(4, GONE))
    for _ in range(3):  # vLLM has none of it, and asks again
        assert world.match("a", prompt) == 0
    world.agent.allocated("a", [], 0)
    table = [0, *range(1, 7)]
    stores = world.agent.step([("a", 0, 3, [table, table])], []).stores
    assert len(stores) == 5, "it is computed here, so it is stored here: but the null block's chunk"
    for store in stores:
        world.stored(store.job)
    assert world.over("a") == ({}, {"gone": 12, "too_short": 1})
    assert world.at_rest()


def test_a_load_that_is_aborted_ends_with_its_pins() -> None:
    world = Groups()
    world.hold(0, 3)
    world.hold(1, 3, group=WINDOW)
    world.begin("a", world.prompt(3))
    assert world.match("a", world.prompt(3)) == 12
    world.load("a", 12)
    world.agent.finished("a")
    assert world.agent.pending["pins"] == 5
    world.agent.loaded("a", LoadResult(0, GONE))
    assert world.at_rest()


# ---------------------------------------------------------------- stores


def step(world: World, name: str, first: int, last: int, *tables: list[int]) -> list[Store]:
    return world.agent.step([(name, first, last, tables)], []).stores


def test_a_chunk_is_stored_in_each_group_from_that_groups_blocks() -> None:
    world = Groups()
    world.begin("a", world.prompt(3))
    full, window = [1, 2, 3, 4], [5, 6, 7, 8]
    stores = step(world, "a", 0, 2, full, window)
    assert [(s.group, s.blocks) for s in stores] == [
        (FULL, [1, 2]),
        (FULL, [3, 4]),
        (WINDOW, [5, 6]),
        (WINDOW, [7, 8]),
    ]
    assert [s.key for s in stores[2:]] == [world.keys(n, n + 1, group=WINDOW) for n in (0, 1)]
    # A block is of one group at a time: what reuses it waits for whoever reads it.
    assert world.agent.step([], [6, 4]).wait_for == [stores[1].job, stores[2].job]


def test_what_the_window_has_left_is_not_stored() -> None:
    world = Groups()
    world.begin("a", world.prompt(3))
    stores = step(world, "a", 0, 3, [1, 2, 3, 4, 5, 6], [0, 0, 0, 8, 9, 10])
    assert [(s.group, s.blocks) for s in stores if s.group == WINDOW] == [(WINDOW, [9, 10])]
    assert len(stores) == 4


def test_what_came_from_a_mapped_peer_is_not_stored_in_any_group() -> None:
    world = Groups()
    assert world.peer_has("a", (0, 3), (1, 3), mapped=True) == 12
    world.load("a", 12)
    world.agent.loaded("a", LoadResult(5))
    window = [0, 0, 0, 113, 114, 115]
    assert step(world, "a", 0, 3, [10, 11, 12, 13, 14, 15], window) == []
    assert world.over("a") == ({"hit_mapped": 12}, {"too_short": 1})


def test_a_request_that_only_stores_has_its_groups_too() -> None:
    world = Groups()
    world.begin("a", world.prompt(1), skip_load=True)
    assert world.match("a", world.prompt(1)) == 0
    assert len(step(world, "a", 0, 1, [1, 2], [3, 4])) == 2


# ---------------------------------------------------------------- states


def test_a_state_is_stored_where_a_step_ends_with_its_chunk() -> None:
    world = World(windows=(0, 2), state=1)
    world.begin("a", world.prompt(3))
    tokens, table = world.prompt(3), [0, 0, 0, 14, 15, 16]
    full = [1, 2, 3, 4, 5, 6]

    def stored(confirmed: int) -> list[tuple[int, list[int]]]:
        first, last = world.agent.plan("a", tokens, confirmed)
        return [(s.group, s.blocks) for s in step(world, "a", first, last, full, table)]

    # The step ends at 8 tokens: of the first chunk there is no state any more.
    assert stored(8) == [(0, [1, 2]), (0, [3, 4]), (1, [14])]
    # It ends behind the third chunk: what the block holds is the state after 13 tokens.
    assert stored(13) == [(0, [5, 6])]


def test_of_states_a_hit_needs_the_one_at_its_end() -> None:
    world = World(windows=(0, 2), state=1)
    world.hold(0, 3)
    world.hold(1, 2, group=1)
    prompt = world.prompt(3)
    world.begin("a", prompt)
    world.clock.advance(1)
    assert world.match("a", prompt) is None
    world.clock.advance(1)
    assert world.match("a", prompt) == 8
    world.agent.allocated("a", [[1, 2, 3, 4, 5], [0, 0, 0, 14, 15]], 8)
    (load,) = world.agent.step([], []).loads
    assert [(chunk.group, chunk.blocks) for chunk in load.chunks] == [
        (0, [1, 2]),
        (0, [3, 4]),
        (1, [14]),
    ]


def test_a_registration_has_the_layouts_of_all_groups_rank_by_rank() -> None:
    world = Groups(ranks=2)
    assert world.agent.registration().layouts == ["group=0", "group=1"] * 2
    assert world.agent.registration().group_specs == ["full attention", "group 1"]
