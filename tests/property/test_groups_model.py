"""Any windows, any chunks here and at a mapped peer, anything that vLLM has itself: the hit is the
longest that there can be, and its load fills each block that vLLM will look at, once.

The model knows vLLM's rule alone: of a window of w tokens, w - 1 before the next one are looked at,
and blocks wholly before those are the null block. Chunks have 4 tokens in two blocks.
"""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from lmkv.core.messages import Locate, Located, PeerRef, Run
from lmkv.core.steps import SKIPPED, LoadResult

from tests.fake_links import BLOCK, CHUNK, PEER_EPOCH, QUERY, World, counters, places

CHUNKS = 6
# A window of one token needs nothing before it: no model has that.
WINDOW = st.just(0) | st.integers(2, CHUNK * CHUNKS + 3)
WINDOWS = st.lists(WINDOW, min_size=2, max_size=3)
HELD = st.lists(st.sets(st.integers(0, CHUNKS - 1)), min_size=3, max_size=3)


def null_blocks(window: int, tokens: int) -> int:
    return max(0, tokens - window + 1) // BLOCK if window else 0


def answer(world: World, held: list[set[int]]) -> list[set[int]]:
    """As the controller would: of each locate's keys the prefix, or (sparse) all that is held. What
    it told, by group."""
    told: list[set[int]] = [set() for _ in world.specs]
    query = world.at(QUERY)
    keys = [world.keys(0, CHUNKS, group=group) for group in range(len(world.specs))]
    for asked, (frame,) in query.of(Locate):
        group = next(g for g, each in enumerate(keys) if frame[:16] in each)
        first = CHUNKS - len(frame) // 16
        assert frame == keys[group][16 * first :]
        runs = []
        for n in range(len(frame) // 16):
            if first + n in held[group]:
                runs.append(Run(n, 1, 0, first + n))
                told[group].add(first + n)
            elif not asked.sparse:
                break
        refs = [PeerRef("peer", PEER_EPOCH, 0)] if runs else []
        message = Located(asked.request, 77, len(runs), runs, [], refs)
        query.say(message, places(CHUNKS), counters(CHUNKS))
    return told


@given(WINDOWS, HELD, HELD, st.integers(0, CHUNK * CHUNKS // BLOCK))
@settings(max_examples=200, deadline=None)
def test_the_longest_hit_and_every_block_of_it(
    windows: list[int], here: list[set[int]], there: list[set[int]], own_blocks: int
) -> None:
    world = World(windows=tuple(windows), slots=32)
    for group in range(len(windows)):
        for chunk in here[group]:
            world.hold(chunk, chunk + 1, group=group)
    prompt, computed = world.prompt(CHUNKS), own_blocks * BLOCK
    world.begin("a", prompt)
    told = answer(world, there)
    found = world.match("a", prompt, computed)
    if found is None:
        world.peer_info(mapped=True)
        found = world.match("a", prompt, computed)
    assert found is not None

    def looked_at(end: int) -> list[set[int]]:
        """Blocks of each group that a hit up to chunk `end` has to fill."""
        tokens = end * CHUNK
        return [
            set(range(max(own_blocks, null_blocks(window, tokens)), tokens // BLOCK))
            for window in windows
        ]

    def possible(end: int) -> bool:
        per = CHUNK // BLOCK
        return all(
            {block // per for block in blocks} <= here[group] | told[group]
            for group, blocks in enumerate(looked_at(end))
        )

    first = computed // CHUNK
    best = next(end for end in range(CHUNKS, first - 1, -1) if end == first or possible(end))
    assert found == (best * CHUNK - computed if best > first else 0)
    if not found:
        world.agent.allocated("a", [], 0)
    else:
        tables = [
            [0] * (nulls := null_blocks(window, best * CHUNK))
            + [1000 * (group + 1) + n for n in range(nulls, best * CHUNK // BLOCK + 1)]
            for group, window in enumerate(windows)
        ]
        world.agent.allocated("a", tables, found)
        (load,) = world.agent.step([], []).loads
        filled = Counter(b for chunk in load.chunks for b in chunk.blocks if b != SKIPPED)
        expected = [
            1000 * (group + 1) + n for group, blocks in enumerate(looked_at(best)) for n in blocks
        ]
        assert filled == Counter(expected)
        world.agent.loaded("a", LoadResult(len(load.chunks)))
    world.agent.finished("a")
    assert world.at_rest()
