"""Which of a peer's ranks are read for ours: every head once, whatever either side's split."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lmkv.core.geometry import Layout, slot_layout, with_heads
from lmkv.core.messages import HostIdentity, RankInfo
from lmkv.core.parts import Part, parts, slot_part

HERE = HostIdentity("boot", 1, 1)
LAYOUT = Layout(
    chunk_tokens=256,
    dtype="float32",
    page_format="cpu:vec:64",
    group=0,
    layers=["a.0.b", "a.1.b", "a.2.b"],
    head_size=64,
    kv_heads=8,
    first_head=2,
    heads=2,
    segment_bytes=4096,
).text()


def tp(size: int, heads: int = 8, stage: int = 0, stages: int = 1) -> list[RankInfo]:
    """The ranks of an engine of `stages` pipeline stages; more ranks than heads replicate them."""
    per, replicas = max(1, heads // size), max(1, size // heads)
    return [
        RankInfo(s * size + r, HERE, stage=s, heads=[(r // replicas * per, per)])
        for s in range(stages)
        for r in range(size)
    ]


def test_the_same_heads_are_read_whole_from_the_same_rank() -> None:
    for rank in tp(4):
        assert parts(rank, tp(4)) == [Part(rank.rank, rank.heads[0], rank.heads[0], True)]


def test_one_rank_takes_a_share_from_each() -> None:
    (one,) = tp(1)
    assert parts(one, tp(2)) == [
        Part(0, (0, 4), (0, 4), False),
        Part(1, (4, 4), (4, 4), False),
    ]


def test_each_of_two_ranks_takes_its_share_from_one() -> None:
    found = [parts(rank, tp(1)) for rank in tp(2)]
    assert found == [[Part(0, (0, 8), (0, 4), False)], [Part(0, (0, 8), (4, 4), False)]]


def test_stages_read_from_their_own_kind() -> None:
    peer = tp(2, stages=2)
    first, second = tp(1, stages=2)
    assert [part.at for part in parts(first, peer)] == [0, 1]
    assert [part.at for part in parts(second, peer)] == [2, 3]
    assert parts(second, tp(2)) == []


def test_replicas_are_spread_over_the_ranks_that_have_them() -> None:
    """Multi-head latent attention: every rank has all there is."""
    mla = tp(4, heads=1)
    assert [parts(rank, mla)[0].at for rank in mla] == [0, 1, 2, 3]
    assert [parts(rank, tp(2, heads=1))[0].at for rank in mla] == [0, 1, 0, 1]
    assert all(part.whole for rank in mla for part in parts(rank, tp(2, heads=1)))


def test_a_peer_that_lacks_heads_is_not_read() -> None:
    (one,) = tp(1)
    assert parts(one, tp(2)[:1]) == []
    assert parts(one, [RankInfo(0, HERE, heads=[(0, 0)])]) == []
    assert parts(one, []) == []


def test_a_rank_that_says_nothing_is_as_ours() -> None:
    silent = [RankInfo(r, HERE) for r in range(2)]
    assert [part.at for part in parts(tp(2)[1], silent)] == [1]
    assert [part.at for part in parts(silent[0], tp(2))] == [0]
    assert parts(RankInfo(5, HERE), silent) == []


@given(st.integers(1, 12), st.data())
def test_every_head_once_whatever_the_splits(heads: int, data: st.DataObject) -> None:
    def split() -> list[RankInfo]:
        cuts = sorted({0, heads, *data.draw(st.lists(st.integers(0, heads), max_size=4))})
        spans = [(a, b - a) for a, b in itertools.pairwise(cuts)]
        spans += data.draw(st.lists(st.sampled_from(spans), max_size=2))  # replicas
        return [RankInfo(r, HERE, heads=[span]) for r, span in enumerate(spans)]

    theirs = split()
    for own in split():
        read = []
        for part in parts(own, theirs):
            assert theirs[part.at].heads[0] == part.theirs
            read += range(part.read[0], sum(part.read))
            assert part.theirs[0] <= part.read[0] <= sum(part.read) <= sum(part.theirs)
            assert part.whole == (part.theirs == own.heads[0])
        assert read == list(range(own.heads[0][0], sum(own.heads[0])))


def test_a_part_s_slots_have_the_peer_s_layout() -> None:
    part = slot_part(LAYOUT, Part(0, (0, 8), (2, 2), False))
    theirs = slot_layout(with_heads(LAYOUT, (0, 8)))
    assert part.theirs.fingerprint == theirs.fingerprint
    assert (part.theirs.segments, part.theirs.payload_offset) == (24, 4096)


@pytest.mark.parametrize(
    ("theirs", "read", "text"),
    [
        ((0, 1 << 31), (2, 2), "segments: 6442450944 is not in"),
        ((0, 2), (2, 2), "their heads 2 on: 2 of 2"),
        ((2, 4), (2, 4), "our heads 0 on: 4 of 2"),
        ((2, 2), (2, 0), "their heads 0 on: 0 of 2"),
    ],
)
def test_heads_that_no_slot_can_hold_are_named(
    theirs: tuple[int, int], read: tuple[int, int], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        slot_part(LAYOUT, Part(0, theirs, read, False))
