"""The registry: who is there, and that what it knows of them is true."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import pytest
from lmkv import _native
from lmkv.controller import views
from lmkv.controller.registry import Registry
from lmkv.core import wire
from lmkv.core.clock import ManualClock
from lmkv.core.config import ControllerConfig
from lmkv.core.messages import (
    Heartbeat,
    HeartbeatOk,
    Leave,
    Left,
    Locate,
    Located,
    Lookup,
    LookupInfo,
    Message,
    Peer,
    PeerInfo,
    Probe,
    ProbeOk,
    Ranks,
    Refused,
    Resync,
    Status,
    StatusInfo,
    Stop,
    Touched,
    Unsupported,
    Welcome,
)
from msgspec.structs import replace

from tests.stub_instance import HOST_B, NAMESPACE, Sent, StubInstance, keys, rank

M = TypeVar("M", bound=Message)


class Story:
    """A registry, and instances whose connection is their name and epoch."""

    def __init__(self, **settings: object) -> None:
        self.clock = ManualClock()
        self.registry = Registry(ControllerConfig(**settings), self.clock)  # type: ignore[arg-type]
        self.sent: list[tuple[bytes, Message, tuple[bytes, ...]]] = []

    @staticmethod
    def connection(stub: StubInstance) -> bytes:
        return f"{stub.name} {stub.epoch}".encode()

    def tell(self, stub: StubInstance, *messages: Sent) -> list[Message]:
        """What the controller says to that."""
        out = []
        for message, arrays in messages:
            out += self.registry.hear(self.connection(stub), message, list(arrays))
        self.sent += out
        return [message for _, message, _ in out]

    def join(self, stub: StubInstance, sync: bool = True) -> StubInstance:
        (welcome,) = self.tell(stub, (stub.registration, ()))
        assert isinstance(welcome, Welcome), welcome
        stub.seq = 0
        if sync:
            assert welcome.sync
            assert self.tell(stub, *stub.sync()) == []
        return stub

    def locate(self, asker: StubInstance, *numbers: int, avoid: Iterable[str] = ()) -> Located:
        asked = Locate(5, "default", asker.name, asker.epoch, list(avoid))
        answer, self.arrays = self.registry.locate(asked, [keys(*numbers)])
        assert isinstance(answer, Located), answer
        return answer

    def wait(self, seconds: float, *beating: StubInstance) -> list[tuple[bytes, Message]]:
        """Time passes; those named send heartbeats."""
        out = []
        for _ in range(round(seconds * 4)):
            self.clock.advance(0.25)
            for stub in beating:
                self.tell(stub, stub.heartbeat())
            out += self.registry.tick()
        return [(connection, message) for connection, message, _ in out]

    def ask(self, message: Message, *arrays: bytes) -> Message:
        out = views.ask(self.registry, b"client", message, list(arrays))  # type: ignore[arg-type]
        if out is None:
            out = self.registry.hear(b"client", message, list(arrays))  # type: ignore[arg-type]
        ((_, answer, _),) = out
        return answer

    def state(self, name: str) -> str:
        status = self.ask(Status())
        assert isinstance(status, StatusInfo)
        return {each.instance: each.state for each in status.instances}[name]


def only(messages: Iterable[Message], kind: type[M]) -> M:
    (found,) = (message for message in messages if isinstance(message, kind))
    return found


def test_what_an_instance_says_it_hit_can_be_told_on() -> None:
    """However much it says, and of however many causes."""
    story = Story()
    a = story.join(StubInstance("a"))
    most = (1 << 64) - 1
    for _ in range(2):
        causes = {f"cause {i}": most for i in range(100)}
        beat = Heartbeat(a.epoch, a.number(), 0, 0, 0, causes, causes, pool_granules=causes)
        story.tell(a, (beat, ()))
        status = only(
            [wire.decode(wire.encode(story.ask(Status(1))))[0]],  # type: ignore[list-item]
            StatusInfo,
        )
        for told in (status, status.instances[0]):
            assert (len(told.hit_tokens), set(told.miss_tokens.values())) == (64, {most})


def test_what_one_announces_another_locates() -> None:
    story = Story()
    a, b = story.join(StubInstance("a")), story.join(StubInstance("b", host=HOST_B))
    assert story.tell(a, *a.store(1, 2, 3)) == []
    found = story.locate(b, 1, 2, 3, 4)
    assert [(r.first, r.n, found.peers[r.peer].instance) for r in found.runs] == [(0, 3, "a")]
    assert story.arrays == a.table.places(keys(1, 2, 3))[:2]
    assert (found.found, found.missing) == (3, "cold")
    story.tell(a, *a.retire(3))
    assert story.locate(b, 1, 2, 3).found == 2
    assert story.locate(a, 1).found == 0  # what it has itself it knows


def test_a_peer_is_named_with_what_a_reader_must_know() -> None:
    story = Story()
    a = story.join(StubInstance("a"))
    here, there = story.join(StubInstance("b")), story.join(StubInstance("c", host=HOST_B))
    story.tell(a, *a.store(1))
    assert story.locate(here, 1).peers[0].same_host
    ref = story.locate(there, 1).peers[0]
    assert (ref.instance, ref.epoch, ref.data_version) == ("a", 7, 0)
    assert not ref.same_host
    assert ref.pullable
    without = rank(metadata=b"")
    story.tell(a, (Ranks(a.epoch, 4, [without]), ()))
    ref = story.locate(there, 1).peers[0]
    assert (ref.data_version, ref.pullable) == (4, False)
    info = story.ask(Peer(9, "a"))
    assert isinstance(info, PeerInfo)
    assert (info.request, info.data_version, info.ranks) == (9, 4, [without])
    refused = story.ask(Peer(9, "nobody"))
    assert isinstance(refused, Refused)
    assert refused.code == "unknown_instance"


def with_ranks(stub: StubInstance, *spans: str) -> StubInstance:
    """It has a rank for each of these spans of heads."""
    stub.registration.layouts = [f"dtype=x\nrank_heads={span}\nsegments=1\n" for span in spans]
    stub.registration.ranks = [replace(rank(), rank=n) for n in range(len(spans))]
    return stub


def test_tensor_parallel_sizes_hold_for_each_other_on_their_host() -> None:
    story = Story()
    one = story.join(with_ranks(StubInstance("one"), "0-7"))
    two = story.join(with_ranks(StubInstance("two"), "0-3", "4-7"))
    half = story.join(with_ranks(StubInstance("half"), "0-3"))
    story.tell(one, *one.store(1))
    found = story.locate(two, 1)
    assert (found.found, found.peers[0].same_host) == (1, True)
    assert story.locate(half, 1).incompatible == "ranks"


def test_an_instance_that_moves_to_another_host_is_known_there() -> None:
    story = Story()
    a, b = story.join(StubInstance("a")), story.join(StubInstance("b"))
    story.tell(a, *a.store(1))
    story.clock.advance(2)
    resync = only(story.tell(a, (Ranks(a.epoch, 1, [rank(HOST_B)]), ())), Resync)
    story.tell(a, *a.sync(resync.sync))
    assert not story.locate(b, 1).peers[0].same_host


def test_a_dropped_announcement_is_found_by_the_next_heartbeat_and_mended() -> None:
    story = Story()
    a, b = story.join(StubInstance("a")), story.join(StubInstance("b"))
    story.tell(a, *a.store(1))
    assert only(story.tell(a, a.heartbeat()), HeartbeatOk).seq == a.seq
    a.store(2)
    a.seq -= 1  # lost without a trace
    story.clock.advance(1)
    said = story.tell(a, a.heartbeat())
    resync = only(said, Resync)
    assert resync.reason == "drift"
    assert resync.sync > 0
    assert story.locate(b, 1, 2).found == 1
    story.tell(a, *a.sync(resync.sync))
    assert story.locate(b, 1, 2).found == 2
    assert [type(m) for m in story.tell(a, a.heartbeat())] == [HeartbeatOk]
    status = story.ask(Status())
    assert isinstance(status, StatusInfo)
    assert (status.drifts, status.resyncs) == (1, 1)


def test_a_gap_is_found_at_once() -> None:
    story = Story()
    a, b = story.join(StubInstance("a")), story.join(StubInstance("b"))
    story.tell(a, *a.store(1, 2))
    story.clock.advance(1)
    a.retire(2)  # its retraction is lost
    resync = only(story.tell(a, *a.store(3)), Resync)
    assert resync.reason == "gap"
    story.tell(a, *a.sync(resync.sync))
    assert story.locate(b, 1, 2).found == 1


def test_a_gap_inside_a_sync_begins_another() -> None:
    story = Story()
    a, b = StubInstance("a"), story.join(StubInstance("b"))
    a.store(1)
    story.join(a, sync=False)
    first, _, end = a.sync(0)
    story.clock.advance(1)
    said = story.tell(a, first, end)  # the second slice is lost
    assert only(said, Resync).reason == "gap"
    assert story.state("a") == "syncing"
    story.tell(a, *a.sync(only(said, Resync).sync))
    assert (story.state("a"), story.locate(b, 1).found) == ("live", 1)


def test_one_who_is_always_wrong_syncs_once_a_heartbeat() -> None:
    story = Story()
    a = story.join(StubInstance("a"))
    story.clock.advance(1)
    wrong = Heartbeat(a.epoch, a.number(), 1, 2, 3), ()
    resync = only(story.tell(a, wrong), Resync)
    story.tell(a, *a.sync(resync.sync))
    said = story.tell(a, (Heartbeat(a.epoch, a.number(), 1, 2, 3), ()))
    assert [type(m) for m in said] == [HeartbeatOk]
    assert any(isinstance(m, Resync) for _, m in story.wait(1))


def test_syncs_take_turns() -> None:
    story = Story(syncs_at_once=1, sync_timeout=3.0)
    a, b, c = (StubInstance(name) for name in "abc")
    asked = [only(story.tell(s, (s.registration, ())), Welcome).sync for s in (a, b, c)]
    assert asked == [True, False, False]
    said = story.tell(a, *a.sync(0))
    assert [(c, m.reason) for c, m, _ in story.sent if isinstance(m, Resync)] == [(b"b 7", "new")]
    assert len(said) == 1
    # b never begins: its turn ends.
    said_later = story.wait(4, a)
    assert next(c for c, m in said_later if isinstance(m, Resync)) == b"c 7"


def test_who_is_not_heard_is_suspect_then_dead() -> None:
    story = Story()
    a, b = story.join(StubInstance("a")), story.join(StubInstance("b"))
    story.tell(a, *a.store(1))
    story.wait(2.75, b)
    assert story.state("a") == "live"
    assert story.locate(b, 1).found == 1
    story.wait(0.25, b)
    assert story.state("a") == "suspect"
    assert story.locate(b, 1).found == 0
    story.tell(a, a.heartbeat())
    assert story.state("a") == "live"
    assert story.locate(b, 1).found == 1
    story.wait(5, b)
    assert story.state("a") == "dead"
    assert story.registry.placement.holders(keys(1)) == []
    assert only(story.tell(a, a.heartbeat()), Refused).code == "not_registered"
    story.join(a)
    assert story.locate(b, 1).found == 1
    story.wait(5, b)
    story.wait(601, b)
    assert "a" not in story.registry.instances


def test_our_own_pause_is_nobodys_silence() -> None:
    story = Story()
    story.join(StubInstance("a"))
    story.wait(1)
    story.clock.advance(60)
    story.registry.tick()
    assert story.state("a") == "live"


def test_who_leaves_is_gone_at_once() -> None:
    story = Story()
    a, b = story.join(StubInstance("a")), story.join(StubInstance("b"))
    story.tell(a, *a.store(1))
    assert only(story.tell(a, (Leave(a.epoch), ())), Left).epoch == 7
    assert story.locate(b, 1).found == 0
    assert "a" not in story.registry.instances


def test_a_stranger_is_told_to_register_once_a_heartbeat() -> None:
    story = Story()
    a = StubInstance("a")
    assert only(story.tell(a, a.heartbeat()), Refused).code == "not_registered"
    assert story.tell(a, a.heartbeat()) == []
    story.clock.advance(1)
    assert only(story.tell(a, a.heartbeat()), Refused).code == "not_registered"
    story.join(a)
    other = Heartbeat(99, a.number(), 0, 0, 0), ()
    assert only(story.tell(a, other), Refused).code == "not_registered"
    refused, _ = story.registry.locate(Locate(5, "default", "a", 99), [keys(1)])
    assert isinstance(refused, Refused)
    assert (refused.code, refused.request) == ("not_registered", 5)


def test_an_incompatible_holder_is_named_and_never_handed_out() -> None:
    story = Story()
    a = story.join(StubInstance("a", layout="head_size=128\nsegments=8\n"))
    b = story.join(StubInstance("b"))
    story.tell(a, *a.store(1))
    found = story.locate(b, 1)
    assert (found.found, found.missing, found.incompatible) == (0, "incompatible", "head_size")
    assert (story.state("a"), story.state("b")) == ("live", "incompatible")
    other = NAMESPACE.replace("one", "two")
    story.join(StubInstance("c", namespace=other))
    status = story.ask(Status())
    assert isinstance(status, StatusInfo)
    assert [each.differs for each in status.instances] == ["", "head_size", "weights"]


def test_refusals_name_what_differs() -> None:
    story = Story()

    def refusal(stub: StubInstance) -> Refused:
        return only(story.tell(stub, (stub.registration, ())), Refused)

    refused = refusal(StubInstance("a", cluster="blue"))
    assert refused.code == "cluster"
    assert "'blue'" in refused.message
    assert "'default'" in refused.message
    refused = refusal(StubInstance("a", protocol=(3, 4)))
    assert refused.code == "protocol"
    assert "3 to 4" in refused.message
    assert "1 to 1" in refused.message
    refused = refusal(StubInstance("a", layout="rubbish"))
    assert (refused.code, refused.field) == ("field", "layouts")
    refused = refusal(StubInstance("a\nb"))  # it would stand in metrics and on pages
    assert (refused.code, refused.field) == ("field", "instance")
    assert "'a\\nb'" in refused.message
    refused, _ = story.registry.locate(Locate(1, "blue", "a", 7), [keys(1)])
    assert isinstance(refused, Refused)
    assert refused.code == "cluster"
    story.join(StubInstance("a", protocol=(1, 9)))


def test_a_second_life_waits_until_the_first_has_missed_two_probes() -> None:
    story = Story()
    old, new = story.join(StubInstance("a", epoch=7)), StubInstance("a", epoch=8)
    said = story.tell(new, (new.registration, ()))
    assert only(said, Refused).code == "instance_alive"
    assert only(said, Probe).epoch == 7
    story.tell(old, (ProbeOk(7), ()))
    story.wait(2)  # it has answered: no further probe, no end
    assert story.state("a") == "live"
    story.tell(new, (new.registration, ()))
    probes = [c for c, m in story.wait(1.75) if isinstance(m, Probe)]
    assert probes == [b"a 7"]
    assert only(story.tell(new, (new.registration, ())), Refused).code == "instance_alive"
    story.wait(0.25)
    story.join(new)
    assert story.registry.instances["a"].epoch == 8
    assert only(story.tell(old, old.heartbeat()), Refused).code == "not_registered"


def test_a_new_epoch_of_the_same_connection_replaces_the_old_at_once() -> None:
    story = Story()
    a, b = story.join(StubInstance("a")), story.join(StubInstance("b"))
    story.tell(a, *a.store(1))
    again = StubInstance("a", epoch=8)
    ((_, welcome, _),) = story.registry.hear(story.connection(a), again.registration, [])
    assert isinstance(welcome, Welcome)
    assert story.locate(b, 1).found == 0
    other = StubInstance("c")
    ((_, refused, _),) = story.registry.hear(story.connection(a), other.registration, [])
    assert isinstance(refused, Refused)
    assert refused.field == "instance"


def test_a_reconnect_keeps_what_is_known_until_the_sync_has_stated_it() -> None:
    story = Story()
    a, b = story.join(StubInstance("a")), story.join(StubInstance("b"))
    story.tell(a, *a.store(1, 2))
    a.retire(2)  # while it was not connected
    story.join(a, sync=False)
    assert story.locate(b, 1, 2).found == 2
    story.tell(a, *a.sync())
    assert story.locate(b, 1, 2).found == 1


def test_holders_hear_what_was_handed_out() -> None:
    story = Story(touched_interval=0.25)
    a, b, c = (story.join(StubInstance(name)) for name in "abc")
    story.tell(a, *a.store(1, 2))
    story.tell(c, *c.store(1))
    for _ in range(3):
        story.locate(b, 1, 2)
    story.clock.advance(0.125)
    assert story.registry.touched() == []
    story.clock.advance(0.125)
    told = {connection: arrays for connection, message, arrays in story.registry.touched()}
    assert told[b"a 7"][0] == keys(1, 2)
    assert len(told[b"a 7"][1]) == 16
    assert len(told[b"a 7"][2]) == 8
    assert story.registry.touched() == []
    story.locate(b, 1, 2, avoid=["a"])
    story.clock.advance(0.25)
    ((connection, message, arrays),) = story.registry.touched()
    assert (connection, arrays[0]) == (b"c 7", keys(1))
    assert isinstance(message, Touched)
    assert message.epoch == 7


def test_a_holder_that_is_avoided_is_not_handed_out() -> None:
    story = Story()
    a, b = story.join(StubInstance("a")), story.join(StubInstance("b"))
    story.tell(a, *a.store(1))
    assert story.locate(b, 1, avoid=["a", "nobody"]).found == 0


def test_warming_ends_when_the_early_ones_are_synced() -> None:
    story = Story()
    story.wait(2.75)
    assert story.registry.state == "warming"
    a = story.join(StubInstance("a"), sync=False)
    story.wait(1, a)
    assert story.registry.state == "warming"
    story.tell(a, *a.sync())
    story.wait(0.25, a)
    assert only(story.tell(a, a.heartbeat()), HeartbeatOk).state == "ready"
    alone = Story()
    alone.wait(3)
    assert alone.registry.state == "ready"
    stuck = Story()
    never = stuck.join(StubInstance("a"), sync=False)
    stuck.wait(9.75, never)
    assert stuck.registry.state == "warming"
    stuck.wait(0.25, never)
    assert stuck.registry.state == "ready"


def test_who_was_cut_off_from_all_warms_again_when_they_come_back() -> None:
    story = Story()
    a, b = story.join(StubInstance("a")), story.join(StubInstance("b"))
    story.wait(3, a, b)
    story.wait(6, b)  # one death is none of that
    assert (story.state("a"), story.registry.state) == ("dead", "ready")
    story.join(a)
    assert story.registry.state == "ready"
    story.wait(6)  # both
    assert story.registry.state == "ready"
    assert only(story.tell(b, (b.registration, ())), Welcome).state == "warming"
    b.seq = 0
    story.wait(1, b)
    story.tell(b, *b.sync())
    assert story.registry.state == "warming"
    story.wait(2, b)
    assert story.registry.state == "ready"


def test_lookup_names_the_holders_of_each_chunk() -> None:
    story = Story()
    a, b = story.join(StubInstance("a")), story.join(StubInstance("b"))
    tokens = list(range(40))
    chain = _native.KeyHasher(NAMESPACE, ["kind=full\n"], 16).chain()
    chain.extend(tokens)
    first, second = (int.from_bytes(chain.keys(0, i, i + 1), "little") for i in (0, 1))
    story.tell(a, *a.store(first, second))
    story.tell(b, *b.store(first))
    info = story.ask(Lookup(3, tokens))
    assert isinstance(info, LookupInfo)
    assert info.holders == [["a", "b"], ["a"]]
    assert info.matched == {"a": 32, "b": 16}
    assert info.tokens == 40
    assert story.ask(Lookup(3), keys(first, second)) == replace(info, tokens=0)
    refused = story.ask(Lookup(3, tokens, like="nobody"))
    assert isinstance(refused, Refused)
    assert refused.code == "unknown_instance"
    story.join(StubInstance("c", namespace="x=1\n"))
    refused = story.ask(Lookup(3, tokens))
    assert isinstance(refused, Refused)
    assert refused.field == "like"
    assert isinstance(story.ask(Lookup(3, tokens, like="a")), LookupInfo)


def test_lookup_goes_by_the_group_that_sees_all_tokens() -> None:
    story, specs = Story(), ["kind=window\n", "kind=full\n"]
    stub = StubInstance("a")
    stub.registration.group_specs = specs
    a = story.join(stub)
    tokens = list(range(40))
    chain = _native.KeyHasher(NAMESPACE, specs, 16).chain()
    chain.extend(tokens)
    story.tell(a, *a.store(*(int.from_bytes(chain.keys(1, i, i + 1), "little") for i in (0, 1))))
    info = story.ask(Lookup(3, tokens))
    assert isinstance(info, LookupInfo)
    assert info.matched == {"a": 32}


def test_a_sparse_locate_goes_on_behind_what_nobody_has() -> None:
    story = Story()
    a, b = story.join(StubInstance("a")), story.join(StubInstance("b"))
    story.tell(a, *a.store(1, 3))
    asked = Locate(1, "default", "b", b.epoch, sparse=True)
    answer, arrays = story.registry.locate(asked, [keys(1, 2, 3)])
    assert isinstance(answer, Located)
    assert [(run.first, run.n) for run in answer.runs] == [(0, 1), (2, 1)]
    assert (answer.found, answer.missing, len(arrays[0])) == (2, "cold", 16)


def test_no_registration_makes_answers_that_cannot_be_sent() -> None:
    story, a = Story(), StubInstance("a")
    for tokens in (1 << 63, (1 << 20) + 1):
        a.registration.chunk_tokens = tokens
        with pytest.raises(wire.WireError, match="chunk_tokens"):
            wire.decode(wire.encode(a.registration))
    a.registration.chunk_tokens = 1 << 20
    wire.decode(wire.encode(a.registration))
    story.join(a)
    story.tell(a, *a.store(1))
    found = views.ask(story.registry, b"client", Lookup(), [keys(1)])
    assert found is not None
    wire.decode(wire.encode(found[0][1]))


def test_only_so_many_instances() -> None:
    story = Story(max_instances=1)
    a, b = story.join(StubInstance("a")), StubInstance("b")
    assert only(story.tell(b, (b.registration, ())), Refused).code == "too_large"
    story.tell(a, (Leave(7), ()))
    story.join(b)


def test_what_is_not_served_is_answered_by_name() -> None:
    answer = Story().ask(Leave(7))
    assert isinstance(answer, Refused)
    answer = Story().ask(Peer(2, "x"))
    assert isinstance(answer, Refused)
    assert answer.request == 2
    answer = Story().ask(Stop())
    assert isinstance(answer, Unsupported)
    assert answer.name == "stop"


def test_wrong_frames_change_nothing() -> None:
    story = Story()
    a, b = story.join(StubInstance("a")), story.join(StubInstance("b"))
    (message, (key, place, counter)) = a.store(1)[0]
    for frames in ([], [key], [key, place, counter[:3]], [key * 2, place, counter]):
        with pytest.raises(ValueError):
            story.registry.hear(story.connection(a), message, frames)
    assert story.locate(b, 1).found == 0


def test_ages_of_retired_slots_add_up() -> None:
    story = Story()
    a, b = story.join(StubInstance("a")), story.join(StubInstance("b"))
    for stub, ages in ((a, [2, 0, 1]), (b, [0, 0, 3] + [0] * 99), (b, [])):
        beat, arrays = stub.heartbeat()
        story.tell(stub, (replace(beat, retired_ages=ages, retired_seconds=10.0), arrays))  # type: ignore[call-overload]
    status = story.ask(Status(1))
    assert isinstance(status, StatusInfo)
    assert status.retired_ages == [2, 0, 4] + [0] * 7
    assert status.retired_seconds == 30.0
    assert {each.instance: each.retired_age for each in status.instances} == {"a": 1.0, "b": 15.0}
