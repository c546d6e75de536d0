"""Real movers of ranks with other heads: a chunk is put together from what each has of it."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

import numpy as np
import pytest
from lmkv.core.messages import LimboEnded
from mover_instance import Instance, pulled, stop

GOOD, GONE, DIGEST, INCOMPATIBLE, TIMEOUT, PEER_DEAD, MOVER_DOWN = range(7)
pytestmark = pytest.mark.nixl


@contextlib.contextmanager
def one_and_two(run_dir: str, tls: str) -> Iterator[tuple[Instance, list[Instance]]]:
    """An instance of one rank, and one whose two ranks have a head each."""
    settings = {"nixl_tls": tls, "limbo_share": 1.0}
    with (
        Instance("one", run_dir, **settings) as one,
        Instance("two", run_dir, heads=(0, 1), **settings) as first,
        Instance("two", run_dir, rank=1, heads=(1, 1), epoch=first.epoch, **settings) as second,
    ):
        yield one, [first, second]


@pytest.fixture(params=["cma", "tcp"])
def split(request: pytest.FixtureRequest, run_dir: str):
    with one_and_two(run_dir, "tcp,self" if request.param == "tcp" else "") as world:
        yield world


@pytest.fixture
def tcp_split(run_dir: str):
    """Over TCP a holder that is stopped leaves a READ under way."""
    with one_and_two(run_dir, "tcp,self") as world:
        yield world


def test_one_rank_pulls_from_two(split) -> None:
    one, two = split
    for slot in range(8):
        for rank in two:
            rank.write(slot, n=slot, counter=slot + 1)
    chunks, own = [(n, n, n + 1) for n in range(8)], [(15 - n, 40 + n) for n in range(8)]
    one.pull(7, two[0].peer(), chunks, own, others=[two[1].peer()])
    _, results = pulled(one, 7)
    assert results == [GOOD] * 8
    for n in range(8):
        assert one.check(15 - n, n, 40 + n) == GOOD
        assert np.array_equal(one.bytes_of(15 - n), one.payload(n))


def test_two_ranks_pull_from_one(split) -> None:
    one, two = split
    for slot in range(8):
        one.write(slot, n=slot, counter=slot + 1)
    chunks, own = [(n, n, n + 1) for n in range(8)], [(15 - n, 40 + n) for n in range(8)]
    for rank in two:
        rank.pull(7, one.peer(), chunks, own)
    for rank in two:
        _, results = pulled(rank, 7)
        assert results == [GOOD] * 8
        for n in range(8):
            assert rank.check(15 - n, n, 40 + n) == GOOD
            assert np.array_equal(rank.bytes_of(15 - n), rank.payload(n))


def test_what_one_rank_lacks_the_chunk_lacks(split) -> None:
    one, two = split
    two[0].write(0, n=0, counter=1)
    two[1].write(0, n=5, counter=2)
    one.pull(1, two[0].peer(), [(0, 0, 1)], [(0, 1)], others=[two[1].peer()])
    assert pulled(one, 1)[1] == [GONE]
    assert one.check(0, 0, 1) == GONE


def test_peers_that_do_not_have_our_heads_are_refused(split) -> None:
    one, two = split
    for job, peer, others in (
        (1, two[0].peer(), []),
        (2, two[0].peer(), [two[0].peer()]),
        (3, one.peer(heads=[(0, 1 << 31)]), []),  # a lie
        (4, two[0].peer(granule_bytes=4096 - 64), [two[1].peer()]),
        (5, two[0].peer(), [one.peer(rank=1, heads=[(1, 1)])]),  # of another instance
    ):
        one.pull(job, peer, [(0, 0, 1)], [(0, 1)], others=others)
        assert pulled(one, job)[1] == [INCOMPATIBLE], job


def test_a_stopped_rank_s_bytes_land_in_a_slot_that_nobody_has(tcp_split) -> None:
    """One part is there, or gone, at once, the other when its holder wakes up: until then nothing
    of the slots is used again, whatever the first one was."""
    one, two = tcp_split
    for rank in two:
        for slot in range(3):
            rank.write(slot, n=slot, counter=1)
    two[0].write(2, n=7, counter=2)  # reused
    others = [two[1].peer()]
    one.pull(1, two[0].peer(), [(1, 1, 1)], [(1, 1)], others=others)  # connected, both
    assert pulled(one, 1)[1] == [GOOD]
    stop(two[1].supervisor.pid)
    try:
        chunks, own = [(0, 0, 1), (2, 2, 1)], [(0, 2), (2, 2)]
        one.pull(2, two[0].peer(), chunks, own, deadline=0.3, others=others)
        assert pulled(one, 2)[1] == [TIMEOUT, TIMEOUT]
        assert one.check(0, 0, 2) == GONE
    finally:
        os.kill(two[1].supervisor.pid, signal.SIGCONT)
    ended, _ = one.receive()
    assert isinstance(ended, LimboEnded) and ended.job == 2
    assert one.check(0, 0, 2) == GONE  # what landed late is nobody's
    one.pull(3, two[0].peer(), [(0, 0, 1)], [(0, 3)], others=others)
    assert pulled(one, 3)[1] == [GOOD]
    assert one.check(0, 0, 3) == GOOD
