"""The simulator's parts without sockets: slots, pulls that come too late, routes, options."""

from __future__ import annotations

import math
import struct
from typing import Any

import pytest
from lmkv.core.clock import ManualClock
from lmkv.core.messages import (
    Compress,
    Compressed,
    HostIdentity,
    LimboEnded,
    Pull,
    Pulled,
    PullPeer,
    PullResult,
    RankInfo,
    Rewrite,
    Rewritten,
)
from lmkv.core.steps import Store
from lmkv.sim.report import latency
from lmkv.sim.run import Options, Usage, check
from lmkv.sim.simulation import router
from lmkv.sim.worker import MOVER, SHRUNK, Rates, Worker

from tests.slot_tables import counters, keys, place

CHUNK = 1000  # bytes


class Times:
    """A hub that has times and no sockets."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.jobs: list[tuple[float, Any]] = []

    def after(self, seconds: float, job: Any) -> None:
        self.jobs.append((self.clock() + seconds, job))

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        due = [job for at, job in self.jobs if at <= self.clock()]
        self.jobs = [(at, job) for at, job in self.jobs if at > self.clock()]
        for job in due:
            job()


class Pair:
    """Worker `a` holds, `b` pulls 1,000 bytes a second."""

    def __init__(self) -> None:
        self.hub = Times()
        self.gone = False
        rates = Rates(pull=CHUNK, copy=CHUNK, latency=0.0)
        self.a, self.b = (
            Worker(name, CHUNK, self.hub, rates, lambda: None, self.find)  # type: ignore[arg-type]
            for name in ("a", "b")
        )
        self.link = self.b.link(MOVER)
        assert self.link is not None

    def find(self, name: str, epoch: int) -> Worker | None:
        return None if self.gone or epoch != 7 else self.a

    def store(self, slot: int, counter: int) -> None:
        self.a.store(Store(1, keys(slot), place(slot), counter, []))
        self.hub.advance(1.0)

    def pull(self, *slots: int, deadline: float = 10.0, epoch: int = 7) -> None:
        """Slot n of a, stored under counter 10 + n, into slot 20 + n of b under 30 + n."""
        peer = PullPeer("a", epoch, 0, RankInfo(0, HostIdentity("a", 1, 1)))
        arrays = (
            b"".join(place(s) for s in slots),
            counters(*(10 + s for s in slots)),
            b"".join(place(20 + s) for s in slots),
            counters(*(30 + s for s in slots)),
        )
        self.link.send(Pull(5, peer, deadline, 1), keys(*slots), *arrays)

    def said(self) -> list[Any]:
        told = self.link.receive()
        return [(type(m), list(frames[0]) if frames else []) for m, frames in told]


def test_what_was_announced_is_pulled_and_held() -> None:
    pair = Pair()
    pair.store(1, 11)
    pair.store(2, 12)
    pair.pull(1, 2)
    pair.hub.advance(1.9)
    assert pair.said() == []  # two chunks take two seconds
    pair.hub.advance(0.2)
    assert pair.said() == [(Pulled, [PullResult.GOOD] * 2)]
    assert pair.b.holds == {16 * 21: 31, 16 * 22: 32}


def test_a_slot_that_is_reserved_again_before_the_end_is_gone() -> None:
    pair = Pair()
    pair.store(1, 11)
    pair.store(2, 12)
    pair.pull(1, 2)
    pair.a.store(Store(9, keys(9), place(2), 40, []))
    pair.hub.advance(3.0)
    assert pair.said() == [(Pulled, [PullResult.GOOD, PullResult.GONE])]


def test_a_holder_that_is_gone_or_lives_again_is_dead() -> None:
    pair = Pair()
    pair.store(1, 11)
    pair.pull(1, epoch=8)
    pair.hub.advance(2.0)
    pair.gone = True
    pair.pull(1)
    pair.hub.advance(2.0)
    assert pair.said() == [(Pulled, [PullResult.PEER_DEAD])] * 2


def test_a_pull_past_its_deadline_is_in_limbo_until_it_lands() -> None:
    pair = Pair()
    pair.store(1, 11)
    pair.pull(1, deadline=0.5)
    pair.hub.advance(0.6)
    assert pair.said() == [(Pulled, [PullResult.TIMEOUT])]
    pair.hub.advance(0.6)
    assert pair.said() == [(LimboEnded, [])]
    assert pair.b.holds == {}


def test_pulls_share_the_link() -> None:
    pair = Pair()
    pair.store(1, 11)
    pair.pull(1)
    pair.pull(1)
    pair.hub.advance(1.5)
    assert len(pair.said()) == 1
    pair.hub.advance(1.0)
    assert len(pair.said()) == 1


def test_a_compressed_slot_is_in_a_place_of_its_own_until_something_is_written_over_it() -> None:
    pair = Pair()
    pair.store(1, 11)
    link = pair.a.link(MOVER)
    assert link is not None
    link.send(Compress(1), keys(1, 2), place(1) + place(2), counters(11, 12))
    pair.hub.advance(2.0)
    [(told, [results, sizes])] = link.receive()
    assert isinstance(told, Compressed)
    assert (list(results), list(sizes)) == ([PullResult.GOOD, PullResult.GONE], [SHRUNK] * 2)
    short = struct.pack("<IBBH", 5 * 16 + 8, SHRUNK, 0, 0)  # granules 88 to 99
    link.send(Rewrite(2), keys(1), place(1), counters(11), short, counters(50))
    pair.hub.advance(1.0)
    [(told, [results])] = link.receive()
    assert isinstance(told, Rewritten) and list(results) == [PullResult.GOOD]
    assert pair.a.holds == {16: 11, 88: 50}
    pair.store(7, 13)  # granules 112 to 127: beside it
    assert pair.a.holds == {16: 11, 88: 50, 112: 13}
    pair.store(6, 14)  # granules 96 to 111: over its end
    assert pair.a.holds == {16: 11, 96: 14, 112: 13}


def test_a_compressed_slot_is_pulled_faster() -> None:
    pair = Pair()
    pair.a.holds[0], half = 7, struct.pack("<IBBH", 0, 8, 0, 0)
    peer = PullPeer("a", 7, 0, RankInfo(0, HostIdentity("a", 1, 1)))
    arrays = half, counters(7), struct.pack("<IBBH", 320, 8, 0, 0), counters(30)
    pair.link.send(Pull(5, peer, 10.0, 1), keys(1), *arrays)
    pair.hub.advance(0.6)
    [(told, _)] = pair.link.receive()
    assert isinstance(told, Pulled) and (told.seconds, told.bytes) == (0.5, CHUNK // 2)
    assert pair.b.holds == {320: 30}


def test_routes() -> None:
    turns = router("round_robin", 3, 1)
    assert [turns([1]) for _ in range(4)] == [0, 1, 2, 0]
    chosen = router("prefix", 3, 1)
    assert [chosen(p) for p in ([1, 2], [5], [1, 2, 3], [1, 9], [5, 6])] == [0, 1, 0, 0, 1]
    one, same = router("random", 100, 4), router("random", 100, 4)
    assert [one([1]) for _ in range(9)] == [same([1]) for _ in range(9)]


def test_latencies_are_milliseconds_of_the_ordered_ones() -> None:
    found = latency([i / 1000 for i in range(200, 0, -1)])
    assert (found.count, found.p50, found.p99, found.most) == (200, 101.0, 199.0, 200.0)
    assert latency([]).count == 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"instances": 0}, "--instances 0: allowed is 1 to 10000"),
        ({"seconds": math.nan}, "--seconds nan: allowed is 0.1 to 86400"),
        ({"rate": -1.0}, "--rate -1: allowed is 0.001 to"),
        ({"pull_rate": math.inf}, "--pull-rate inf: allowed is"),
        ({"route": "best"}, "--route 'best': allowed is round_robin, random, prefix"),
        ({"pool_chunks": "1k,,4k"}, "--pool-chunks: '' is no number of chunks such as 4096 or 4k"),
        ({"pool_chunks": "9999999k"}, "--pool-chunks 1.024e+10: allowed is 16 to"),
        ({"controllers": ""}, "--controllers '': allowed is a number to start, or addresses"),
        ({"controllers": "0"}, "--controllers 0: allowed is 1 to 16"),
        ({"controllers": "udp://a:1"}, "--controllers: 'udp://a:1' is not tcp://HOST:PORT"),
    ],
)
def test_an_option_that_cannot_be_is_one_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Usage) as caught:
        check(Options("trace", **options))
    assert str(caught.value).startswith(sentence)
