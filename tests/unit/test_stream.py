"""What a controller hears of one instance, and when the instance begins again."""

from __future__ import annotations

import pytest
from lmkv import _native
from lmkv.agent.stats import Stats
from lmkv.agent.stream import OUTBOX, PHASES, SLICES_A_PUMP, Frames, Stream
from lmkv.core import wire
from lmkv.core.clock import ManualClock
from lmkv.core.messages import (
    Announce,
    AnyMessage,
    Heartbeat,
    HeartbeatOk,
    HostIdentity,
    Message,
    Probe,
    ProbeOk,
    RankInfo,
    Ranks,
    Refused,
    Register,
    Resync,
    Retract,
    SyncEnd,
    SyncSlice,
    Touched,
    Welcome,
)

from tests.stub_instance import LAYOUT, NAMESPACE

SLOTS = 8


def key(n: int) -> bytes:
    return n.to_bytes(16, "big")


EPOCH = PHASES - 1  # its heartbeats are whole intervals apart from the first one on


class Instance:
    """A slot table, its stream, and a clock."""

    def __init__(self, slots: int = SLOTS) -> None:
        self.clock = ManualClock()
        self.table = _native.SlotTable(slots, slots)
        self.table.grow(slots)
        self.stats = Stats()
        self.epoch, self.version = EPOCH, 0
        self.stream = Stream(self.table, self._register, self.stats, self.clock)

    def _register(self) -> Register:
        ranks = [RankInfo(0, HostIdentity("boot", 1, 2))]
        return Register(
            1, 1, "default", "us", self.epoch, NAMESPACE, [LAYOUT], 4, ranks, self.version
        )

    def hold(self, *names: int) -> None:
        room = self.table.reserve(b"".join(key(n) for n in names), self.clock())
        assert room is not None
        self.table.admit(*room)

    def pump(self) -> list[tuple[AnyMessage, list[bytes]]]:
        self.stream.pump(self.table.take_changes())
        return self.sent()

    def sent(self) -> list[tuple[AnyMessage, list[bytes]]]:
        """What leaves over a link that takes all."""
        out: list[Frames] = []
        self.stream.flush(lambda frames: out.append(frames) is None)
        return [wire.decode(frames) for frames in out]

    def says(self) -> list[Message]:
        return [message for message, _ in self.pump()]

    def kinds(self) -> list[type]:
        return [type(message) for message in self.says()]

    def hear(self, message: Message, *arrays: bytes) -> None:
        self.stream.hear(*wire.decode(wire.encode(message, *arrays)))

    def settled(self) -> Instance:
        """Registered, and its first full sync is over."""
        self.pump()
        self.hear(Welcome(1, "controller", 77, 7551))
        self.pump()
        return self


def test_register_welcome_full_sync_heartbeat() -> None:
    us = Instance()
    us.hold(1, 2)
    (register,) = us.says()
    assert isinstance(register, Register)
    assert register.epoch == EPOCH
    assert not us.stream.ready
    us.hear(Welcome(1, "controller", 77, 7551))
    assert us.stream.ready
    (part, frames), (end, _), (beat, _) = us.pump()
    assert isinstance(part, SyncSlice)
    assert (part.seq, part.sync, part.first, part.last) == (1, 0, 0, 16 * SLOTS)
    assert sorted(frames[0][i : i + 16] for i in (0, 16)) == [key(1), key(2)]
    assert isinstance(end, SyncEnd)
    assert (end.seq, end.sync) == (2, 0)
    assert isinstance(beat, Heartbeat)
    assert (beat.seq, (beat.count, beat.sum_first, beat.sum_second)) == (3, us.table.sums())
    assert us.kinds() == []
    assert us.stream.due() == pytest.approx(1.0)


def test_a_large_pool_is_stated_in_slices_over_several_rounds() -> None:
    us = Instance(slots=5 * 4096 + 1)
    us.pump()
    us.hear(Welcome(1, "controller", 77, 7551))
    first = [m for m in us.says() if isinstance(m, SyncSlice)]
    assert us.stream.due() == 0.0
    rest = us.says()
    slices = first + [m for m in rest if isinstance(m, SyncSlice)]
    assert [s.first for s in slices] == [0, *(s.last for s in slices[:-1])]
    assert slices[-1].last == 16 * (5 * 4096 + 1)
    assert isinstance(rest[-1], SyncEnd)


def test_changes_are_numbered_and_stated_in_order() -> None:
    us = Instance().settled()
    us.hold(1, 2)
    (come, frames), *_ = us.pump()
    assert isinstance(come, Announce)
    assert (come.epoch, come.seq) == (EPOCH, 4)  # after slice, end and heartbeat
    assert sorted((frames[0][:16], frames[0][16:])) == [key(1), key(2)]
    assert us.table.retire(key(1)) == 1
    (gone, frames), *_ = us.pump()
    assert isinstance(gone, Retract)
    assert (gone.seq, frames[0]) == (5, key(1))


def test_a_heartbeat_each_second_with_sums_and_counts() -> None:
    us = Instance().settled()
    us.hold(1)
    us.stats.tokens("hit_pool", 8)
    us.stats.tokens("cold", 4)
    us.clock.advance(0.9)
    assert us.kinds() == [Announce]
    us.clock.advance(0.1)
    (beat,) = us.says()
    assert isinstance(beat, Heartbeat)
    assert (beat.count, beat.sum_first, beat.sum_second) == us.table.sums()
    assert beat.count == 1
    assert (beat.hit_tokens, beat.miss_tokens) == ({"hit_pool": 8}, {"cold": 4})
    us.clock.advance(1.0)
    (beat,) = us.says()
    assert isinstance(beat, Heartbeat)
    assert (beat.hit_tokens, beat.miss_tokens) == ({}, {})


def test_resync_begins_a_sync_under_its_number() -> None:
    us = Instance().settled()
    us.hear(Resync(9, "gap"))
    ranks, part, end = us.says()
    assert isinstance(ranks, Ranks)  # they may be what was lost
    assert isinstance(part, SyncSlice)
    assert isinstance(end, SyncEnd)
    assert (part.sync, end.sync) == (9, 9)


def test_a_resync_in_the_middle_of_a_sync_starts_it_over() -> None:
    us = Instance(slots=5 * 4096)
    us.pump()
    us.hear(Welcome(1, "controller", 77, 7551))
    us.pump()
    us.hear(Resync(3, "gap"))
    _, part, *_ = us.says()
    assert isinstance(part, SyncSlice)
    assert (part.sync, part.first) == (3, 0)


def test_registers_each_second_until_answered() -> None:
    us = Instance()
    assert us.kinds() == [Register]
    us.clock.advance(0.9)
    assert us.kinds() == []
    us.clock.advance(0.1)
    assert us.kinds() == [Register]


def test_a_controller_that_is_silent_for_three_seconds_is_gone() -> None:
    us = Instance().settled()
    us.clock.advance(2.9)
    assert us.kinds() == [Heartbeat]
    assert us.stream.ready
    us.clock.advance(0.2)
    assert not us.stream.ready
    assert us.kinds() == [Register]


def test_another_life_of_the_controller_is_told_everything() -> None:
    us = Instance().settled()
    us.hear(HeartbeatOk(77, 3))
    assert us.kinds() == []
    us.hear(HeartbeatOk(78, 3))
    assert us.kinds() == [Register]
    us.hear(Welcome(1, "controller", 78, 7551))
    assert us.kinds() == [SyncSlice, SyncEnd, Heartbeat]


def test_a_refusal_is_kept_for_the_operator_until_a_welcome() -> None:
    us = Instance()
    us.pump()
    us.hear(Refused("cluster", "cluster 'a': this controller serves 'b'", "cluster"))
    assert us.stream.refused == "cluster 'a': this controller serves 'b'"
    assert not us.stream.ready
    us.settled()
    assert us.stream.refused == ""


def test_who_is_told_that_it_has_not_registered_does() -> None:
    us = Instance().settled()
    us.hear(Refused("not_registered", "register first"))
    assert us.kinds() == [Register]


def test_changes_while_nobody_listens_are_in_the_next_full_sync() -> None:
    us = Instance()
    us.hold(1, 2)
    us.pump()
    us.table.retire(key(1))
    us.pump()
    us.hear(Welcome(1, "controller", 77, 7551))
    (part, frames), *others = us.pump()
    assert isinstance(part, SyncSlice)
    assert frames[0] == key(2)
    assert [type(m) for m, _ in others] == [SyncEnd, Heartbeat]


def test_new_ranks_are_told_once_and_unnumbered() -> None:
    us = Instance().settled()
    us.version = 1
    (ranks,) = us.says()
    assert isinstance(ranks, Ranks)
    assert ranks.data_version == 1
    us.hold(1)
    (announce,) = us.says()
    assert isinstance(announce, Announce)
    assert announce.seq == 4


def test_a_probe_is_answered_at_once_with_the_own_epoch() -> None:
    us = Instance()
    us.hear(Probe(EPOCH))
    assert us.sent() == [(ProbeOk(EPOCH), [])]


def test_what_peers_have_used_is_kept_longest() -> None:
    us = Instance().settled()
    for n in range(1, SLOTS):  # one slot is always kept retired
        us.hold(n)
    places, counters, _ = us.table.places(key(1))
    us.hear(Touched(EPOCH), key(1), places, b"torn")  # no matter
    us.hear(Touched(EPOCH), b"", places, counters * 2)
    us.hear(Touched(EPOCH), key(1), places, counters, b"\0\0\0\0")
    us.clock.advance(1.0)
    us.hold(SLOTS)
    assert us.table.contains(key(1) + key(2)) == b"\x01\x00"


def test_what_the_link_does_not_take_waits_in_order() -> None:
    us = Instance().settled()
    us.hold(1)
    us.stream.pump(us.table.take_changes())
    us.stream.flush(lambda frames: False)
    us.hold(2)
    assert us.kinds() == [Announce, Announce]
    assert [m.seq for m in us.says() if isinstance(m, Announce)] == []


def test_a_full_outbox_is_dropped_and_only_a_full_sync_speaks_again() -> None:
    us = Instance().settled()
    us.clock.advance(1.0)  # a heartbeat is among them
    for _ in range(OUTBOX // 2 + 1):  # an announcement and a retraction each
        us.hold(1)
        us.stream.pump(us.table.take_changes())
        us.table.retire(key(1))
        us.stream.pump(us.table.take_changes())
    assert us.sent() == []
    us.hold(2)
    us.clock.advance(1.0)
    (beat,) = us.says()
    assert isinstance(beat, Heartbeat)
    assert beat.seq == OUTBOX + 5  # after three of the settling, and 257 that were dropped
    assert us.stats.take()["outbox_overflows"] == 1
    us.hear(Resync(9, "gap"))
    assert us.kinds() == [Ranks, SyncSlice, SyncEnd]
    us.hold(3)
    assert us.kinds() == [Announce]


def test_a_full_sync_never_fills_the_outbox() -> None:
    us = Instance(slots=9 * 4096)
    us.pump()
    us.hear(Welcome(1, "controller", 77, 7551))
    for _ in range(10):
        us.stream.pump([])
    assert len(us.stream.outbox) <= SLICES_A_PUMP + 2  # the ranks, a heartbeat
    assert us.stream.due() > 0  # it waits for the link
    told = us.kinds() + us.kinds() + us.kinds()
    assert (told.count(SyncSlice), told[-1]) == (9, SyncEnd)


def test_a_registration_waits_once_for_a_link() -> None:
    us = Instance()
    for _ in range(5):
        us.stream.pump([])
        us.clock.advance(1.0)
    assert [type(m) for m, _ in us.sent()] == [Register]


def test_a_repeated_welcome_does_not_begin_the_numbers_again() -> None:
    us = Instance()
    us.pump()
    us.clock.advance(1.0)
    us.pump()  # the first answer takes its time
    us.hear(Welcome(1, "controller", 77, 7551, sync=False))
    us.hold(1)
    us.pump()
    us.hear(Welcome(1, "controller", 77, 7551))
    part, *_ = us.says()
    assert isinstance(part, SyncSlice)  # the second one wants a sync
    assert (part.seq, part.sync) == (3, 0)  # after announcement and heartbeat
    us.hear(Welcome(1, "controller", 77, 7551))
    assert us.kinds() == []


def test_a_round_trip_is_smoothed_and_a_standstill_is_none() -> None:
    us = Instance().settled()
    assert us.stream.round_trip is None
    for seq, trip, smoothed in ((3, 0.008, 0.008), (4, 0.016, 0.009)):
        us.clock.advance(trip)
        us.hear(HeartbeatOk(77, seq))
        assert us.stream.round_trip == pytest.approx(smoothed)
        us.clock.advance(1.0 - trip)
        us.pump()
    us.clock.advance(10.0)
    us.stream.stood_still(10.0)
    us.hear(HeartbeatOk(77, 5))
    assert us.stream.round_trip == pytest.approx(0.009)


def test_those_who_are_welcomed_at_once_do_not_beat_at_once_for_ever() -> None:
    many = [Instance() for _ in range(4)]
    for i, us in enumerate(many):
        us.epoch = EPOCH + (i + 1) * PHASES // 4
        us.settled()  # the first one
    beats: list[list[int]] = [[] for _ in many]
    for eighth in range(17):
        for us, of_this in zip(many, beats, strict=True):
            if Heartbeat in us.kinds():
                of_this.append(eighth)
            us.hear(HeartbeatOk(77, 0))
            us.clock.advance(1 / 8)
    assert beats == [[2, 10], [4, 12], [6, 14], [8, 16]]


def test_heartbeats_tell_ages_of_retired_slots_once() -> None:
    us = Instance()
    us.pump()
    us.hear(Welcome(1, "c", 77, 2, sync=False))
    us.stats.retired([0.5, 20.0])

    def told() -> tuple[list[int], float]:
        us.clock.advance(1.0)
        [beat] = [message for message in us.says() if isinstance(message, Heartbeat)]
        us.hear(HeartbeatOk(77, beat.seq))
        return beat.retired_ages, beat.retired_seconds

    ages, seconds = told()
    assert (ages[0], ages[3], sum(ages), seconds) == (1, 1, 2, 20.5)
    assert told() == ([], 0.0)
    us.stats.retired([3.0])
    assert told()[1] == 3.0
