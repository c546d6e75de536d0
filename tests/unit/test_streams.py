"""The set of streams: every controller hears all, and none disturbs another."""

from __future__ import annotations

from lmkv import _native
from lmkv.agent.stats import Stats
from lmkv.agent.streams import Streams
from lmkv.controller.registry import Registry
from lmkv.core import wire
from lmkv.core.clock import ManualClock
from lmkv.core.config import ControllerConfig
from lmkv.core.messages import (
    Announce,
    AnyMessage,
    Heartbeat,
    HeartbeatOk,
    HostIdentity,
    RankInfo,
    Refused,
    Register,
    Touched,
    Welcome,
)

from tests.slot_tables import keys
from tests.stub_instance import LAYOUT, NAMESPACE

A, B, C = "tcp://a:1", "tcp://b:1", "tcp://c:1"


class Instance:
    def __init__(self, *addresses: str) -> None:
        self.clock = ManualClock()
        self.table = _native.SlotTable(8, 8)
        self.table.grow(8)
        self.stats = Stats()
        self.streams = Streams(self.table, self.register, self.stats, self.clock)
        self.streams.follow(addresses)

    def register(self) -> Register:
        ranks = [RankInfo(0, HostIdentity("boot", 1, 2))]
        return Register(1, 1, "default", "us", 5, NAMESPACE, [LAYOUT], 4, ranks)

    def hold(self, *names: int) -> None:
        room = self.table.reserve(keys(*names), self.clock())
        assert room is not None
        self.table.admit(*room)

    def sent(self, address: str) -> list[tuple[AnyMessage, list[bytes]]]:
        out: list[list[bytes]] = []
        self.streams[address].flush(lambda frames: out.append(frames) is None)
        return [wire.decode(frames) for frames in out]

    def kinds(self, address: str) -> list[type]:
        return [type(message) for message, _ in self.sent(address)]

    def welcome(self, address: str, state: str = "ready", trip: float | None = None) -> None:
        """And its first heartbeat is answered after `trip` seconds."""
        stream = self.streams[address]
        stream.hear(Welcome(1, address, 77, 2, state, sync=False), [])
        self.streams.turn()
        beats = [m for m, _ in self.sent(address) if isinstance(m, Heartbeat)]
        if trip is not None:
            self.clock.advance(trip)
            stream.hear(HeartbeatOk(77, beats[-1].seq, state), [])

    def pass_time(self, seconds: float, *answering: str) -> list[str]:
        """Turn by turn; the news meanwhile."""
        said = []
        for _ in range(round(2 * seconds)):
            self.clock.advance(0.5)
            self.streams.woke()
            for address in answering:
                self.streams[address].hear(HeartbeatOk(77, 0), [])
            self.streams.turn()
            said += [sentence for _, sentence in self.streams.news()]
        return said


def test_every_controller_hears_every_change() -> None:
    us = Instance(A, B)
    for address in (A, B):
        us.welcome(address)
        us.sent(address)
    us.hold(1)
    us.streams.turn()
    (a, a_frames), (b, b_frames) = us.sent(A)[-1], us.sent(B)[-1]
    assert isinstance(a, Announce)
    assert isinstance(b, Announce)
    assert a_frames == b_frames == [keys(1), *us.table.places(keys(1))[:2]]


def test_every_heartbeat_tells_the_tokens_since_the_last_one_there() -> None:
    us = Instance(A, B)
    us.welcome(A)
    us.stats.tokens("cold", 4)
    us.clock.advance(1.0)
    us.welcome(B)  # hears of all that was before it came, as A did
    told = [m.miss_tokens for m, _ in us.sent(A) if isinstance(m, Heartbeat)]
    assert told == [{"cold": 4}]
    us.stats.tokens("cold", 3)
    us.clock.advance(1.0)
    us.streams.turn()
    for address in (A, B):
        told = [m.miss_tokens for m, _ in us.sent(address) if isinstance(m, Heartbeat)]
        assert told == [{"cold": 3}]


def test_the_nearest_ready_one_is_first_and_warming_ones_are_last() -> None:
    us = Instance(A, B, C)
    assert us.streams.order() == []
    us.welcome(B)
    us.welcome(C)
    assert us.streams.order() == [B, C]  # as they were named
    us.welcome(A, "warming", trip=0.001)
    assert us.streams.order() == [B, C, A]
    us.clock.advance(1.0)
    us.streams.turn()
    for address, trip in ((C, 0.002), (B, 0.003)):
        (beat,) = [m for m, _ in us.sent(address) if isinstance(m, Heartbeat)]
        us.clock.advance(trip)
        us.streams[address].hear(HeartbeatOk(77, beat.seq), [])
    assert us.streams.order() == [C, B, A]
    us.streams[A].hear(HeartbeatOk(77, 0), [])
    assert us.streams.order() == [A, C, B]
    us.clock.advance(2.9)
    us.streams[B].hear(HeartbeatOk(77, 0), [])
    us.clock.advance(0.2)
    assert us.streams.order() == [B]


def test_one_that_goes_or_comes_does_not_disturb_the_others() -> None:
    us = Instance(A, B)
    us.welcome(A)
    us.welcome(B)
    stream = us.streams[A]
    us.streams.follow([C, A])
    assert us.streams[A] is stream
    us.hold(1)
    us.streams.turn()
    assert us.kinds(A) == [Announce]
    assert us.kinds(C) == [Register]
    us.streams.follow([B, A])
    us.streams.turn()
    assert us.kinds(B) == [Register]  # what it missed is in its full sync


def test_both_registries_end_with_the_same_and_without_a_drift() -> None:
    us = Instance(A, B)
    registries = {address: Registry(ControllerConfig(), us.clock) for address in (A, B)}
    for n in range(20):
        us.hold(n)
        us.streams.turn()
        for address, registry in registries.items():
            for message, frames in us.sent(address):
                for _, answer, arrays in registry.hear(b"us", message, frames):
                    us.streams[address].hear(answer, list(arrays))
        us.clock.advance(0.5)
    for registry in registries.values():
        number = registry.instances["us"].number
        assert registry.placement.directory.sums(number) == us.table.sums()
        assert (registry.drifts, registry.resyncs) == (0, 0)


def test_uses_that_any_controller_tells_count() -> None:
    us = Instance(A, B)
    us.welcome(A)
    us.welcome(B)
    for n in range(1, 8):  # one slot is always kept retired
        us.hold(n)
    us.streams.turn()
    for address, n in ((A, 1), (B, 2)):
        places, counters, _ = us.table.places(keys(n))
        us.streams[address].hear(Touched(5), [keys(n), places, counters, bytes(4)])
    us.clock.advance(1.0)
    us.hold(8)
    assert us.table.contains(keys(1, 2, 3)) == b"\x01\x01\x00"


def test_silence_is_told_once_and_so_is_its_end() -> None:
    us = Instance(A)
    assert us.pass_time(4.9) == []
    silent = f"the controller at {A} does not answer; nothing new is shared until one does"
    assert us.pass_time(60.0) == [silent]
    us.welcome(A)
    assert us.pass_time(60.0, A) == [f"the controller at {A} answers again"]
    assert us.pass_time(60.0) == [silent]


def test_silence_of_one_of_two_is_no_alarm() -> None:
    us = Instance(A, B)
    us.welcome(B)
    assert us.pass_time(60.0, B) == [f"the controller at {A} does not answer; the others go on"]


def test_a_refusal_is_an_answer_and_is_told_once() -> None:
    us = Instance(A)
    said = []
    for _ in range(10):
        us.streams[A].hear(Refused("cluster", "cluster 'a': this is 'b'"), [])
        said += us.pass_time(1.0)
    assert said == [f"the controller at {A} refuses this instance: cluster 'a': this is 'b'"]


def test_a_process_that_stood_still_judges_nobody() -> None:
    us = Instance(A)
    us.welcome(A)
    us.pass_time(2.0, A)
    us.sent(A)
    us.clock.advance(10.0)
    us.streams.woke()
    us.streams.turn()
    assert us.streams.news() == []
    assert us.kinds(A) == [Heartbeat]  # not a registration
    assert us.streams.order() == [A]


def test_a_process_that_hardly_runs_still_sees_who_is_silent() -> None:
    us = Instance(A)
    us.welcome(A)
    for _ in range(8):
        us.clock.advance(1.5)
        us.streams.woke()
        us.streams.turn()
    assert us.streams.order() == []
