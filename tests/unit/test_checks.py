"""`sync` and `verify`: what a controller does for them, and an instance's slots digested again."""

from __future__ import annotations

import threading
from typing import Any

import msgspec
import pytest
from lmkv import _native
from lmkv.agent.checks import Checks
from lmkv.agent.commands import Failed
from lmkv.core import wire
from lmkv.core.clock import Deadline
from lmkv.core.messages import (
    Check,
    Checked,
    Command,
    Differing,
    Done,
    PullResult,
    Refused,
    Resync,
    SlotsResult,
    SyncResult,
    Unsupported,
    VerifyResult,
)
from msgspec.structs import replace

from tests.stub_instance import keys
from tests.unit.test_commands import CLIENT, Relay

# ---------------------------------------------------------------- what the controller does itself


def told(out: list[Any], kind: type) -> Any:
    """What the client hears in the end."""
    [(to, done, _)] = out
    assert to == CLIENT
    assert isinstance(done, Done), done
    return msgspec.msgpack.decode(done.result, type=kind)


def begun(relay: Relay, operation: str, **arguments: str) -> list[Any]:
    command = Command("id", operation, "a", request=5, arguments=arguments)
    return relay.hear(CLIENT, command)


def lose(relay: Relay) -> None:
    """The directory lacks key 3, has key 2 elsewhere, and key 9 that is not in the table."""
    a, directory = relay.a, relay.registry.placement.directory
    relay.tell(a, *a.store(1, 2))
    a.store(3)
    a.seq -= 1
    number = relay.registry.instances["a"].number
    elsewhere = (900).to_bytes(4, "little") + b"\x10\0\0\0"
    directory.announce(number, keys(2, 9), 2 * elsewhere, bytes(8))


def test_a_sync_tells_what_it_mended() -> None:
    relay = Relay()
    lose(relay)
    relay.clock.advance(1.0)
    [(to, resync, _)] = begun(relay, "sync")
    assert (to, resync.reason) == (relay.connection(relay.a), "asked")
    assert relay.commands.tick() == []
    relay.tell(relay.a, *relay.a.sync(resync.sync))
    relay.clock.advance(0.25)
    result = told(relay.commands.tick(), SyncResult)
    assert result == SyncResult("a", 3, 3, missing=1, moved=1, gone=1, seconds=0.25)
    assert len(relay.commands) == 0


def test_a_sync_of_what_is_right() -> None:
    relay = Relay()
    relay.tell(relay.a, *relay.a.store(1, 2))
    relay.clock.advance(1.0)
    [(_, resync, _)] = begun(relay, "sync")
    first, *rest = relay.a.sync(resync.sync)
    relay.a.seq -= len(rest)
    relay.tell(relay.a, first)
    relay.tell(relay.a, *relay.a.store(3))  # announced while the sync goes on: no drift
    for message, _ in rest:
        message.seq = relay.a.number()  # type: ignore[attr-defined]
    relay.tell(relay.a, *rest)
    result = told(relay.commands.tick(), SyncResult)
    assert result == SyncResult("a", 2, 3)


def test_a_verify_of_what_is_right() -> None:
    relay = Relay()
    relay.tell(relay.a, *relay.a.store(1, 2))
    assert begun(relay, "verify", sample="7") == []
    assert relay.commands.tick() == []  # no heartbeat yet
    relay.tell(relay.a, relay.a.heartbeat())
    [(to, command, _)] = relay.commands.tick()
    assert to == relay.connection(relay.a)
    assert (command.operation, command.arguments) == ("verify", {"sample": "7"})
    assert relay.commands.tick() == []
    slots = SlotsResult(2, 1, [Differing("00" * 16, "digest", 1)])
    result = told(relay.answer(Done(command.request, "id", encode(slots))), VerifyResult)
    assert result == VerifyResult("a", 2, 2, sampled=1, wrong=1, differing=slots.wrong)


def test_a_verify_names_the_keys_that_differ() -> None:
    relay = Relay()
    lose(relay)
    assert begun(relay, "verify") == []
    relay.clock.advance(1.0)
    said = relay.tell(relay.a, relay.a.heartbeat())
    [resync] = [message for message in said if isinstance(message, Resync)]
    assert relay.commands.tick() == []
    relay.tell(relay.a, *relay.a.sync(resync.sync))
    assert relay.commands.tick() == []  # what is gone has not been swept
    assert relay.registry.placement.directory.sweep(1 << 20)
    [(_, command, _)] = relay.commands.tick()
    result = told(relay.answer(Done(command.request, "id", encode(SlotsResult(3)))), VerifyResult)
    assert (result.keys, result.slots) == (3, 3)
    assert (result.missing, result.moved, result.gone) == (1, 1, 1)
    each = [(differing.how, differing.key) for differing in result.differing]
    assert each == [
        ("missing", keys(3).hex()),
        ("moved", keys(2).hex()),
        ("gone", keys(9).hex()),
    ]


def test_a_verify_that_the_instance_does_not_know() -> None:
    relay = Relay()
    for answer, heard in (
        (Unsupported("verify"), Unsupported("verify", 5)),
        (Refused("busy", "x"), Refused("busy", "x", request=5)),
    ):
        begun(relay, "verify")
        relay.tell(relay.a, relay.a.heartbeat())
        [(_, command, _)] = relay.commands.tick()
        assert relay.answer(replace(answer, request=command.request)) == [(CLIENT, heard, ())]
    begun(relay, "verify")
    relay.tell(relay.a, relay.a.heartbeat())
    [(_, command, _)] = relay.commands.tick()
    [(_, refused, _)] = relay.answer(Done(command.request, "id", b"\xc1"))
    assert (refused.code, refused.request) == ("failed", 5)


@pytest.mark.parametrize("operation", ["sync", "verify"])
def test_one_of_a_kind_at_once(operation: str) -> None:
    relay = Relay()
    begun(relay, operation)
    refused = relay.refused(Command("other", operation, "a", request=6))
    assert refused.code == "busy"
    assert f"another {operation} of it runs" in refused.message


def test_a_sync_that_never_ends() -> None:
    relay = Relay()
    begun(relay, "sync")
    heard = relay.pass_time(31)
    [refused] = [message for to, message, _ in heard if to == CLIENT]
    assert (refused.code, refused.request) == ("timeout", 5)
    assert len(relay.commands) == 0


# ---------------------------------------------------------------- an instance's slots


class Ranks:
    """Two ranks whose slots are good unless `bad` has (rank, key): result."""

    def __init__(self, *stored: int) -> None:
        self.table = _native.SlotTable(64, 64)
        self.table.grow(64)
        if stored:
            self.table.admit(*self.table.reserve(keys(*stored), 0.0))  # type: ignore[misc]
        self.table.take_changes()
        self.bad: dict[tuple[int, bytes], int] = {}
        self.silent: set[int] = set()
        self.asked = 0
        self.epoch = 7
        self.checks = Checks(self.table, 2, lambda: self.epoch, self.turn)

    def turn(self) -> None:
        """One of the background thread: another one, as the asker waits."""
        threading.Thread(target=self.checks.send, args=([self],)).start()

    def send(self, check: Check, names: bytes, places: bytes, counters: bytes) -> None:
        self.asked += len(names) // 16
        for rank in {0, 1} - self.silent:
            each = [names[i : i + 16] for i in range(0, len(names), 16)]
            results = bytes(self.bad.get((rank, key), PullResult.GOOD) for key in each)
            self.checks.heard(Checked(rank, check.job), [results])

    def verify(self, deadline: float = 20.0, **arguments: str) -> SlotsResult:
        command = Command("id", "verify", "a", arguments=arguments)
        return self.checks.verify(command, [], Deadline(deadline))[0]


def test_slots_that_are_good() -> None:
    assert Ranks(1, 2, 3).verify() == SlotsResult(3, 3)
    assert Ranks().verify() == SlotsResult(0, 0)


def test_a_slot_that_is_wrong_is_named_with_its_rank() -> None:
    ranks = Ranks(1, 2, 3)
    ranks.bad[1, keys(2)] = PullResult.DIGEST
    ranks.bad[0, keys(3)] = PullResult.GONE
    found = {(each.key, each.how, each.rank) for each in ranks.verify().wrong}
    assert found == {(keys(2).hex(), "digest", 1), (keys(3).hex(), "header", 0)}


def test_a_slot_that_was_given_away_meanwhile_is_not_wrong() -> None:
    ranks = Ranks(1)
    ranks.bad[0, keys(1)] = PullResult.GONE
    send = ranks.send

    def retire(*arrays: Any) -> None:
        ranks.table.retire(keys(1))
        send(*arrays)

    ranks.send = retire  # type: ignore[method-assign]
    assert ranks.verify() == SlotsResult(1, 1)


def test_slots_of_an_epoch_that_ended_meanwhile_are_not_wrong() -> None:
    stored = range(1, 65)
    ranks = Ranks(*stored)
    send = ranks.send

    def begin_again(*arrays: Any) -> None:
        """In the first batch; the same keys have the same places and counters again."""
        if not ranks.asked:
            ranks.bad = dict.fromkeys(((0, keys(each)) for each in stored), PullResult.GONE)
            before = ranks.table.places(keys(*stored))[:2]
            ranks.table.begin_epoch()
            ranks.table.admit(*ranks.table.reserve(keys(*stored), 0.0))  # type: ignore[misc]
            assert ranks.table.places(keys(*stored))[:2] == before
            ranks.epoch += 1
        send(*arrays)

    ranks.send = begin_again  # type: ignore[method-assign]
    assert ranks.verify() == SlotsResult(64, 32)


def test_a_sample() -> None:
    ranks = Ranks(*range(1, 50))
    assert ranks.verify(sample="5") == SlotsResult(49, 5)
    assert ranks.asked == 5
    assert ranks.verify(sample="40") == SlotsResult(49, 40)  # two batches
    assert ranks.verify(sample="0") == SlotsResult(49, 0)


@pytest.mark.parametrize("sample", ["-1", "x", "", "1048577", "9" * 5000])
def test_a_bad_sample(sample: str) -> None:
    with pytest.raises(Failed, match="allowed is a number from 0 to 1048576"):
        Ranks(1).verify(sample=sample)


def test_a_rank_that_is_silent() -> None:
    ranks = Ranks(1)
    ranks.silent.add(1)
    with pytest.raises(Failed, match="rank 1 did not digest") as caught:
        ranks.verify(deadline=0.6)
    assert caught.value.code == "timeout"


def test_results_that_do_not_fit_are_none() -> None:
    ranks = Ranks(1)
    ranks.checks._job, ranks.checks._size = 4, 2
    with pytest.raises(wire.WireError, match="1 results, expected 2"):
        ranks.checks.heard(Checked(0, 4), [b"\0"])
    ranks.checks.heard(Checked(0, 3), [b"\0"])  # an earlier job's
    assert ranks.checks._results == {}


def encode(result: msgspec.Struct) -> bytes:
    return msgspec.msgpack.encode(result)
