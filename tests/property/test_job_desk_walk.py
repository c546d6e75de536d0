"""A controller's jobs at random: instances answer, refuse, talk nonsense, leave, die and come back.

Every question is answered once, and in the end, when nobody says any more, nothing is open.
"""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from lmkv.core import wire
from lmkv.core.messages import (
    ENDED,
    OPERATIONS,
    AskJob,
    Command,
    Done,
    Job,
    JobInfo,
    Leave,
    Part,
    Refused,
    Submit,
)
from msgspec.structs import replace

from tests.stub_instance import StubInstance, keys
from tests.unit.test_job_desk import CLIENT, Desk

STEPS = 250


class Walk:
    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.desk = Desk()
        self.names = [f"i{n}" for n in range(self.dice.choice([2, 5, 90]))]
        self.stubs: dict[str, StubInstance] = {}
        self.unanswered: dict[str, list[Command]] = {}
        self.parts: dict[str, dict[str, Part]] = {}  # by instance and id, as that knows them
        self.answers: dict[int, int] = {}  # by question
        self.lives = 0
        for name in self.names:
            self.join(name)

    # ------------------------------------------------------------ instances

    def join(self, name: str) -> None:
        self.lives += 1
        self.stubs[name] = self.desk.instance(name, self.lives, 1, 2)
        self.unanswered[name], self.parts[name] = [], {}

    def comes_back(self) -> None:
        known = self.desk.registry.instances
        gone = [n for n in self.names if n not in known or known[n].number < 0]
        if gone:
            self.join(self.dice.choice(gone))

    def leaves(self) -> None:
        if len(self.stubs) > 1 and self.dice.random() < 0.3:
            stub = self.stubs.pop(self.dice.choice([*self.stubs]))
            if self.dice.random() < 0.5:  # else it is not heard any more
                self.hear(stub, Leave(stub.epoch))

    def answer(self) -> None:
        for _ in range(self.dice.choice([1, 5, 100])):
            busy = [name for name in self.stubs if self.unanswered[name]]
            if not busy:
                return
            name = self.dice.choice(busy)
            command = self.unanswered[name].pop(0)
            said = self.said(name, command)
            self.hear(self.stubs[name], replace(said, request=command.request))

    def said(self, name: str, command: Command) -> Done | Refused:
        """As an instance does, or worse."""
        if self.dice.random() < 0.15:
            return self.dice.choice([Refused("busy", "later"), Done(0, command.id, b"nonsense")])
        job = command.arguments.get("job", command.id)
        part = self.parts[name].get(job)
        if command.operation not in ("cancel", "retry"):
            part = part or Desk.part(self.stubs[name], command)
        elif part is None or (part.state in ENDED) == (command.operation == "cancel"):
            return Refused("ended", "or not known here")
        elif command.operation == "cancel":
            part = replace(part, state="cancelled")
        else:
            part = replace(part, state="queued", chunks=0, attempt=part.attempt + 1)
        self.parts[name][job] = part
        return Done(0, command.id, msgspec.msgpack.encode(part))

    def tells(self) -> None:
        for _ in range(self.dice.choice([1, 20])):
            name = self.dice.choice([*self.stubs])
            for job, part in [*self.parts[name].items()]:
                if part.state not in ENDED and self.dice.random() < 0.5:
                    state = self.dice.choice(["running", "running", "done", "failed"])
                    part = replace(part, state=state, chunks=part.chunks + 1, bytes=part.bytes + 9)
                    self.parts[name][job] = part
                    self.hear(self.stubs[name], Job(self.stubs[name].epoch, part))

    # ------------------------------------------------------------ clients

    def submits(self) -> None:
        operation, more = self.dice.choice(OPERATIONS), dict[str, Any]()
        whole = self.dice.random() < 0.3
        if operation in ("copy", "move") or self.dice.random() < 0.5:
            more["instance"] = self.dice.choice(self.names)
        if operation in ("copy", "move"):
            more["source"] = self.dice.choice(self.names)
        if operation == "pin":
            more["owner"] = "team"
        if self.dice.random() < 0.3:
            more["id"] = self.dice.choice("xyz")
        frames = [] if whole else [keys(1, 2)]
        self.ask(Submit(self.number(), operation, whole=whole, **more), *frames)

    def asks(self) -> None:
        jobs = [*self.desk.table._jobs, "nobody's"]
        action = self.dice.choice(["", "cancel", "retry"])
        self.ask(AskJob(self.number(), self.dice.choice(jobs), action))

    def number(self) -> int:
        number = len(self.answers) + 1
        self.answers[number] = 0
        return number

    # ------------------------------------------------------------ messages, time

    def ask(self, message: Any, *frames: bytes) -> None:
        self.deliver(self.desk.hear(CLIENT, message, *frames))

    def hear(self, stub: StubInstance, message: Any) -> None:
        self.deliver(self.desk.hear(self.desk.connection(stub), message))

    def deliver(self, out: list[Any]) -> None:
        for to, message, frames in out:
            wire.decode(wire.encode(message, *frames))  # it can be sent
            if to == CLIENT and isinstance(message, (JobInfo, Refused)):
                self.answers[message.request] += 1
            for name, stub in self.stubs.items() if isinstance(message, Command) else ():
                if self.desk.connection(stub) == to:
                    self.unanswered[name].append(message)

    def time(self, quarters: int = 8) -> None:
        for _ in range(quarters):
            self.desk.clock.advance(0.25)
            for stub in self.stubs.values():
                self.hear(stub, stub.heartbeat()[0])
            self.deliver(self.desk.registry.tick() + self.desk.commands.tick())


@pytest.mark.parametrize("seed", range(6))
def test_every_question_is_answered_once_and_nothing_stays_open(seed: int) -> None:
    walk = Walk(seed)
    acts = [walk.submits, walk.asks, walk.answer, walk.answer, walk.tells, walk.time]
    for _ in range(STEPS):
        walk.dice.choice([*acts * 2, walk.leaves, walk.comes_back])()
    walk.time(400)  # nobody answers or tells any more
    assert set(walk.answers.values()) == {1}
    desk, table = walk.desk.desk, walk.desk.table
    assert (desk._open, len(desk._waiting), len(walk.desk.commands)) == (0, 0, 0)
    assert (table._open, table._waits) == ({}, {})
    assert sorted(name for _, name in table._ended) == sorted(table._jobs)
    assert table._parts == sum(len(record.parts) for record in table._jobs.values())
