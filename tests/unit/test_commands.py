"""Commands: the controller passes each on once and answers each once; the agent does each once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from lmkv.agent import commands as agents
from lmkv.agent.commands import Failed, Frames
from lmkv.controller import commands
from lmkv.controller.commands import Commands
from lmkv.core import wire
from lmkv.core.clock import Deadline, ManualClock
from lmkv.core.messages import (
    COMMAND_BYTES,
    RESULT_BYTES,
    AnyMessage,
    Command,
    Done,
    Leave,
    Message,
    Refused,
    Unsupported,
)
from msgspec.structs import replace

from tests.stub_instance import StubInstance
from tests.unit.test_registry import Story

CLIENT, OTHER_CLIENT = b"client", b"other client"
A = "tcp://a:1"


class Relay(Story):
    """A registry with an instance `a`, and the commands to it."""

    def __init__(self, **settings: object) -> None:
        super().__init__(**settings)
        self.commands = Commands(self.registry)
        self.a = self.join(StubInstance("a", 1))

    def hear(self, connection: bytes, message: AnyMessage, *frames: bytes) -> list[Any]:
        out = self.commands.hear(connection, message, list(frames))
        assert out is not None
        return out

    def ask(self, request: int = 5, client: bytes = CLIENT, **more: Any) -> Command:
        """A command, as the instance hears it."""
        [(to, sent, _)] = self.hear(client, Command("id", "why", "a", request=request, **more))
        assert to == self.connection(self.a)
        assert isinstance(sent, Command)
        return sent

    def refused(self, command: Command, *frames: bytes) -> Refused:
        [(to, refused, _)] = self.hear(CLIENT, command, *frames)
        assert to == CLIENT
        assert isinstance(refused, Refused)
        assert refused.request == command.request
        return refused

    def answer(self, message: Message, *frames: bytes) -> list[Any]:
        return self.hear(self.connection(self.a), message, *frames)

    def pass_time(self, seconds: float) -> list[Any]:
        """A second at a time, with heartbeats."""
        out = []
        for _ in range(round(seconds)):
            self.clock.advance(1.0)
            self.tell(self.a, self.a.heartbeat())
            out += self.registry.tick() + self.commands.tick()
        return out


# ---------------------------------------------------------------- the controller


def test_a_command_and_its_answer() -> None:
    relay = Relay()
    sent = relay.ask(5, arguments={"last": "3"})
    assert (sent.id, sent.operation, sent.arguments) == ("id", "why", {"last": "3"})
    out = relay.answer(Done(sent.request, "id", b"result"), b"bulk")
    assert out == [(CLIENT, Done(5, "id", b"result"), (b"bulk",))]
    assert len(relay.commands) == 0


@pytest.mark.parametrize("answer", [Refused("field", "last = 'x'"), Unsupported("why")])
def test_what_the_instance_does_not_do_is_passed_on(answer: Refused | Unsupported) -> None:
    relay = Relay()
    sent = relay.ask(5)
    assert relay.answer(replace(answer, request=sent.request)) == [
        (CLIENT, replace(answer, request=5), ())
    ]


def test_two_clients_with_one_number() -> None:
    relay = Relay()
    first, second = relay.ask(5), relay.ask(5, OTHER_CLIENT)
    assert first.request != second.request
    assert relay.answer(Done(second.request, "id"))[0][0] == OTHER_CLIENT
    assert relay.answer(Done(first.request, "id"))[0][0] == CLIENT


def test_a_second_answer_is_refused() -> None:
    relay = Relay()
    sent = relay.ask()
    relay.answer(Done(sent.request, "id"))
    [(to, refused, _)] = relay.answer(Done(sent.request, "id"))
    assert to == relay.connection(relay.a)
    assert refused.code == "unasked"
    assert "nobody waits for it" in refused.message


def test_an_answer_after_the_deadline() -> None:
    relay = Relay()
    sent = relay.ask(5, deadline=2.0)
    assert relay.pass_time(1) == []
    [(to, refused, _)] = relay.pass_time(1)
    assert (to, refused.code, refused.request) == (CLIENT, "timeout", 5)
    assert refused.message == "instance 'a' did not answer why in 2 s"
    [(to, refused, _)] = relay.answer(Done(sent.request, "id"))
    assert (to, refused.code) == (relay.connection(relay.a), "unasked")


def test_only_the_instance_that_was_asked_answers() -> None:
    relay = Relay()
    b = relay.join(StubInstance("b", 2))
    sent = relay.ask()
    [(to, refused, _)] = relay.hear(relay.connection(b), Done(sent.request, "id"))
    assert (to, refused.code) == (relay.connection(b), "unasked")
    assert len(relay.commands) == 1
    assert relay.commands.hear(b"stranger", Done(sent.request, "id"), []) is None


def test_who_cannot_be_asked() -> None:
    relay = Relay()
    unknown = relay.refused(Command("id", "why", "z", request=5))
    assert (unknown.code, unknown.field) == ("unknown_instance", "instance")
    relay.clock.advance(3.5)
    relay.registry.tick()  # it was us who stood still
    for _ in range(4):
        relay.clock.advance(1.0)
        relay.registry.tick()
    suspect = relay.refused(Command("id", "why", "a", request=5))
    assert suspect.code == "unavailable"
    assert suspect.message == "instance 'a' is suspect: it was not heard for 4.0 s"
    for _ in range(2):
        relay.clock.advance(1.0)
        relay.registry.tick()
    assert "is dead" in relay.refused(Command("id", "why", "a", request=5)).message


def test_one_that_dies_or_leaves_meanwhile() -> None:
    relay = Relay()
    relay.ask(5, deadline=100.0)
    out = []
    for _ in range(6):
        relay.clock.advance(1.0)
        out += relay.registry.tick() + relay.commands.tick()
    [(to, refused, _)] = out
    assert (to, refused.code, refused.request) == (CLIENT, "unavailable", 5)
    assert refused.message == "instance 'a' died before it answered why"

    relay = Relay()
    relay.ask(5)
    relay.tell(relay.a, (Leave(1), ()))
    [(to, refused, _)] = relay.commands.tick()
    assert (to, refused.code) == (CLIENT, "unavailable")
    assert "left before" in refused.message


def again(relay: Relay) -> bytes:
    """The instance registers over another connection, in the same life; it."""
    new = b"another connection"
    relay.connection = lambda stub: new  # type: ignore[method-assign]
    relay.join(relay.a, sync=False)
    return new


def test_a_command_that_went_to_an_old_connection_goes_on_to_the_new_one() -> None:
    relay = Relay()
    [(_, sent, _)] = relay.hear(CLIENT, Command("id", "why", "a", {"last": "3"}, 5, 4.0), b"bulk")
    assert isinstance(sent, Command)
    assert relay.commands.tick() == []
    relay.clock.advance(1.0)
    new = again(relay)
    [(to, second, frames)] = relay.commands.tick()
    assert (to, frames) == (new, (b"bulk",))
    assert second == replace(sent, deadline=3.0)  # what is left of it
    assert relay.commands.tick() == []
    assert relay.answer(Done(sent.request, "id", b"result")) == [
        (CLIENT, Done(5, "id", b"result"), ())
    ]
    assert len(relay.commands) == 0


def test_one_that_was_dead_meanwhile_is_asked_again_in_the_same_life_only() -> None:
    for epoch in (1, 2):
        relay = Relay()
        sent = relay.ask(5, deadline=100.0)
        for _ in range(6):
            relay.clock.advance(1.0)
            relay.registry.tick()  # commands are looked at once it is there again
        relay.a.epoch = epoch
        relay.a.registration = replace(relay.a.registration, epoch=epoch)
        new = again(relay)
        [(to, said, _)] = relay.commands.tick()
        if epoch == 1:
            assert (to, said) == (new, replace(sent, deadline=94.0))
            assert relay.answer(Done(sent.request, "id"))[0][0] == CLIENT
        else:
            assert (to, said.code) == (CLIENT, "unavailable")
            assert "left before" in said.message
        assert len(relay.commands) == 0


def test_of_frames_that_are_too_many_to_be_kept_one_is_sent_once_only() -> None:
    relay = Relay()
    half = bytes(COMMAND_BYTES - 1000)
    most = commands.KEPT_BYTES // len(half)
    for n in range(most + 1):
        relay.a = relay.join(StubInstance(f"a{n}", n)) if n % commands.EACH == 0 else relay.a
        relay.hear(CLIENT, Command("id", "why", relay.a.name, request=n), half)
    kept = [asked.sent is not None for asked in relay.commands._asked.values()]
    assert kept == [True] * most + [False]


def test_too_many_at_once() -> None:
    relay = Relay()
    numbers = [relay.ask(n).request for n in range(commands.EACH)]
    refused = relay.refused(Command("id", "why", "a", request=99))
    assert (refused.code, refused.field) == ("busy", "instance")
    relay.answer(Done(numbers[0], "id"))
    assert relay.ask(99).request
    for n in range(2, commands.AT_ONCE // commands.EACH + 1):
        relay.a = relay.join(StubInstance(f"a{n}", n))
        for _ in range(commands.EACH):
            relay.hear(CLIENT, Command("id", "why", f"a{n}"))
    relay.join(StubInstance("last", 99))
    refused = relay.refused(Command("id", "why", "last", request=99))
    assert (refused.code, refused.field) == ("busy", "")
    assert len(relay.commands) == commands.AT_ONCE


def test_what_is_too_large() -> None:
    relay = Relay()
    refused = relay.refused(Command("id", "why", "a", request=5), bytes(COMMAND_BYTES))
    assert (refused.code, refused.field) == ("too_large", "arguments")
    sent = relay.ask(5)
    [(to, refused, frames)] = relay.answer(Done(sent.request, "id"), bytes(RESULT_BYTES + 1))
    assert (to, refused.code, refused.request, frames) == (CLIENT, "too_large", 5, ())


# ---------------------------------------------------------------- the agent


class Agent:
    """`count` counts its calls, `wait` waits to be let go, `fail` and `break` do that."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.calls = 0
        self.go, self.woken = threading.Event(), threading.Semaphore(0)
        handlers = {
            "count": self.count, "wait": self.wait, "fail": self.fail, "break": self.breaks,
            "much": lambda *_: (None, [bytes(RESULT_BYTES)]),
        }  # fmt: skip
        self.commands = agents.Commands(handlers, self.woken.release, self.clock)

    def count(self, command: Command, frames: Frames, until: Deadline) -> tuple[Any, Frames]:
        self.calls += 1
        return {"calls": self.calls, "left": until.left()}, frames

    def wait(self, command: Command, frames: Frames, until: Deadline) -> tuple[Any, Frames]:
        assert self.go.wait(20.0)
        return self.count(command, frames, until)

    def fail(self, command: Command, frames: Frames, until: Deadline) -> tuple[Any, Frames]:
        self.calls += 1
        raise Failed("field", f"call {self.calls}", "last")

    def breaks(self, command: Command, frames: Frames, until: Deadline) -> tuple[Any, Frames]:
        raise RuntimeError("a secret")

    def take(self, command: Command, *frames: bytes, address: str = A) -> None:
        self.commands.take(address, command, list(frames))

    def answers(self, address: str = A) -> list[tuple[AnyMessage, Frames]]:
        out: list[Frames] = []
        self.commands.answer(address, lambda frames: out.append(frames) is None)
        return [wire.decode(frames) for frames in out]

    def ask(self, command: Command, *frames: bytes) -> tuple[AnyMessage, Frames]:
        self.take(command, *frames)
        assert self.woken.acquire(timeout=20.0)
        [answer] = self.answers()
        return answer


def command(name: str, number: int = 1, operation: str = "count", **more: Any) -> Command:
    return Command(name, operation, "a", request=number, deadline=9.0, **more)


def result(answer: AnyMessage) -> Any:
    assert isinstance(answer, Done), answer
    return msgspec.msgpack.decode(answer.result)


def test_a_handler_answers() -> None:
    agent = Agent()
    answer, frames = agent.ask(command("x", 7), b"k" * 16)
    assert result(answer) == {"calls": 1, "left": 9.0}
    assert (answer.request, answer.id, frames) == (7, "x", [b"k" * 16])
    assert agent.answers() == []


def test_an_operation_without_a_handler_is_unsupported_by_name() -> None:
    agent = Agent()
    agent.take(command("x", 7, "teleport"))
    assert agent.answers() == [(Unsupported("teleport", 7), [])]


def test_a_repetition_is_answered_as_before() -> None:
    agent = Agent()
    first, frames = agent.ask(command("x", 1), b"bulk")
    agent.take(command("x", 2), b"bulk", address="tcp://b:1")  # another controller, another number
    [(again, same)] = agent.answers("tcp://b:1")
    assert again == replace(first, request=2)
    assert (same, agent.calls) == (frames, 1)


def test_a_repetition_while_it_runs_joins_it() -> None:
    agent = Agent()
    for number in (1, 2):
        agent.take(command("x", number, "wait"))
    agent.go.set()
    assert agent.woken.acquire(timeout=20.0)
    answers = [answer for answer, _ in agent.answers()]
    assert [answer.request for answer in answers] == [1, 2]
    assert [result(answer)["calls"] for answer in answers] == [1, 1]


@pytest.mark.parametrize(
    ("other", "frames"),
    [
        (command("x", 2, "fail"), [b"bulk"]),
        (command("x", 2, arguments={"last": "2"}), [b"bulk"]),
        (command("x", 2), [b"other"]),
        (command("x", 2), []),
    ],
)
def test_another_command_under_the_same_id(other: Command, frames: Frames) -> None:
    agent = Agent()
    agent.ask(command("x"), b"bulk")
    agent.take(other, *frames)
    [(refused, _)] = agent.answers()
    assert isinstance(refused, Refused)
    assert (refused.code, refused.field, refused.request) == ("field", "id", 2)
    assert agent.calls == 1


def test_what_failed_may_be_tried_again() -> None:
    agent = Agent()
    for call in (1, 2):
        answer, _ = agent.ask(command("x", operation="fail"))
        assert answer == Refused("field", f"call {call}", "last", 1)


def test_a_defect_is_told_without_its_insides(caplog: pytest.LogCaptureFixture) -> None:
    answer, _ = Agent().ask(command("x", operation="break"))
    assert isinstance(answer, Refused)
    assert answer.code == "failed"
    assert "secret" not in answer.message
    assert "a secret" in caplog.text


def test_an_answer_that_is_too_large() -> None:
    answer, frames = Agent().ask(command("x", operation="much"))
    assert isinstance(answer, Refused)
    assert (answer.code, frames) == ("too_large", [])


def test_a_link_that_is_full_gets_it_later() -> None:
    agent = Agent()
    agent.take(command("x"))
    assert agent.woken.acquire(timeout=20.0)
    agent.commands.answer(A, lambda frames: False)
    assert len(agent.answers()) == 1


def test_a_controller_that_went_hears_nothing() -> None:
    agent = Agent()
    agent.take(command("x", operation="wait"))
    agent.commands.forget(A)
    agent.go.set()
    assert agent.woken.acquire(timeout=20.0)
    assert agent.answers() == []


def test_more_than_wait_are_refused() -> None:
    agent = Agent()
    most = agents.WAITING + agents.THREADS
    for number in range(most + 1):
        agent.take(command(str(number), number, "wait"))
    # The threads take theirs when they like: one more than both hold is too many for sure.
    agent.take(command("more", 99, "wait"))
    refused = [answer for answer, _ in agent.answers()]
    assert all(isinstance(answer, Refused) and answer.code == "busy" for answer in refused)
    assert refused[-1].request == 99  # type: ignore[union-attr]
    agent.go.set()


def test_a_deadline_that_passes_in_the_queue() -> None:
    agent = Agent()
    for number in range(agents.THREADS):
        agent.take(command(f"held {number}", number, "wait"))
    until(agent.commands._queue.empty)
    agent.take(command("late", 9))
    agent.clock.advance(9.0)
    agent.go.set()
    for _ in range(agents.THREADS + 1):
        assert agent.woken.acquire(timeout=20.0)
    late = [answer for answer, _ in agent.answers() if answer.request == 9]  # type: ignore[union-attr]
    assert [type(answer) for answer in late] == [Refused]
    assert late[0].code == "timeout"  # type: ignore[union-attr]


def until(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("waited in vain")


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents, "REMEMBERED", 2)
    monkeypatch.setattr(agents, "REMEMBERED_BYTES", 1000)
    agent = Agent()
    for name in ("x", "y", "z"):
        agent.ask(command(name))
    assert list(agent.commands._known) == ["y", "z"]
    agent.ask(command("large"), bytes(990))
    assert list(agent.commands._known) == []
