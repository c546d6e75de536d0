"""Commands to instances: start() -> the instance's answer, or a sentence in its place.

A command goes on under a number of its own on the connection that the instance has, and whoever
asked hears exactly one answer: `then(answer, frames)` says what must be sent. That is the
instance's (`Done`, `Refused`, `Unsupported`), or a `Refused` of this controller:
`unknown_instance`, `unavailable` (suspect, dead, or gone since), `busy`, `too_large`, `timeout`.
A command is kept until it is answered, and goes on once more where its instance, in the same life,
has registered over another connection meanwhile: what was sent over the old one may be lost, and
a repetition is harmless. An answer that nobody waits for is refused (`unasked`). What the
controller does itself, alone or first, is a `Work`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from lmkv.controller.checks import Answer, Sync, Verify, Work
from lmkv.controller.instance import Instance
from lmkv.controller.registry import Out, Registry
from lmkv.core import wire
from lmkv.core.messages import (
    COMMAND_BYTES,
    RESULT_BYTES,
    AnyMessage,
    Command,
    Done,
    Message,
    Refused,
    Unsupported,
)

AT_ONCE = 256  # commands that are not answered
EACH = 16  # of one instance
DEADLINE, LONGEST = 30.0, 600.0  # seconds: where none is given, and at most
KEPT_BYTES = 64 << 20  # of all frames of commands; what is beyond them is sent once only

WORKS: dict[str, type[Work]] = {"sync": Sync, "verify": Verify}

Then = Callable[[Answer, list[bytes]], list[Out]]


@dataclass
class Asked:
    instance: Instance
    operation: str
    deadline: float  # seconds
    until: float
    then: Then
    work: Work | None = None
    sent: tuple[Command, list[bytes]] | None = None  # over `connection`
    connection: bytes = b""


class Commands:
    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._asked: dict[int, Asked] = {}
        self._number = 0

    def __len__(self) -> int:
        """Those that are not answered."""
        return len(self._asked)

    def hear(self, connection: bytes, message: AnyMessage, frames: list[bytes]) -> list[Out] | None:
        """None: it is neither a command nor an instance's answer to one."""
        if isinstance(message, Command):
            return self.start(message, frames, relay(connection, message.request))
        if isinstance(message, (Done, Refused, Unsupported)):
            instance = self._registry.instance_at(connection)
            return None if instance is None else self._answered(instance, message, frames)
        return None

    def start(self, command: Command, frames: list[bytes], then: Then) -> list[Out]:
        """`then` hears the answer, perhaps at once."""
        refused = self._unfit(command)
        if refused is not None:
            return then(refused, [])
        size = sum(map(len, wire.encode(command, *frames)))
        if size > COMMAND_BYTES:
            text = f"arguments: a command of {size} bytes, at most {COMMAND_BYTES} are allowed"
            return then(Refused("too_large", text, "arguments"), [])
        instance = self._registry.instances[command.instance]
        deadline = min(command.deadline or DEADLINE, LONGEST)
        until = self._registry.clock() + deadline
        self._number += 1
        asked = Asked(instance, command.operation, deadline, until, then)
        self._asked[self._number] = asked
        if command.operation in WORKS:
            asked.work = WORKS[command.operation](self._registry, instance, command)
            return asked.work.begin()
        return self._pass_on(self._number, command, frames)

    def _pass_on(self, number: int, command: Command, frames: list[bytes]) -> list[Out]:
        asked = self._asked[number]
        asked.connection, asked.sent = asked.instance.connection, None
        if sum(map(_size, self._asked.values())) + sum(map(len, frames)) <= KEPT_BYTES:
            asked.sent = command, frames
        left = max(0.0, asked.until - self._registry.clock())
        sent = msgspec.structs.replace(command, request=number, deadline=left)
        return [(asked.connection, sent, tuple(frames))]

    def _unfit(self, command: Command) -> Refused | None:
        name = command.instance
        instance = self._registry.instances.get(name)
        if instance is None:
            text = f"instance {name!r} is not known here"
            return Refused("unknown_instance", text, "instance")
        if instance.state != "live":
            silence = self._registry.clock() - instance.heard
            text = f"instance {name!r} is {instance.state}: it was not heard for {silence:.1f} s"
            return Refused("unavailable", text, "instance")
        works = [a for a in self._asked.values() if a.work is not None and a.instance is instance]
        if any(asked.operation == command.operation for asked in works):
            text = f"instance {name!r}: another {command.operation} of it runs: try again later"
            return Refused("busy", text, "instance")
        if len(self._asked) >= AT_ONCE:
            text = f"{AT_ONCE} commands are not answered yet, which is the most: try again later"
            return Refused("busy", text)
        if Counter(asked.instance.name for asked in self._asked.values())[name] >= EACH:
            text = f"instance {name!r} has {EACH} commands to answer, which is the most: "
            return Refused("busy", text + "try again later", "instance")
        return None

    def _answered(self, instance: Instance, answer: Answer, frames: list[bytes]) -> list[Out]:
        asked = self._asked.get(answer.request)
        if asked is None or asked.instance is not instance:
            if isinstance(answer, Done):
                text = f"done {answer.id!r}: nobody waits for it; it was answered, or came too late"
                refused = Refused("unasked", text, request=answer.request)
                return [(instance.connection, refused, ())]
            return []
        size = sum(map(len, frames)) + len(getattr(answer, "result", b""))
        if size > RESULT_BYTES:
            text = f"instance {instance.name!r} answered {asked.operation} with {size} bytes, "
            said, frames = Refused("too_large", text + f"at most {RESULT_BYTES} are passed on"), []
            return self._end(answer.request, said, frames)
        return self._end(answer.request, answer, frames)

    def tick(self) -> list[Out]:
        """To be called a few times a heartbeat: who waits for one that is gone, or too long."""
        now, out = self._registry.clock(), []
        for number, asked in list(self._asked.items()):
            name, refused = asked.instance.name, None
            there = self._registry.instances.get(name)
            if there is not None and there.epoch == asked.instance.epoch and asked.work is None:
                asked.instance = there  # which had been dead to this controller, perhaps
            if there is not asked.instance:
                text = f"instance {name!r} left before it answered {asked.operation}"
                refused = Refused("unavailable", text, "instance")
            elif asked.instance.state == "dead":
                text = f"instance {name!r} died before it answered {asked.operation}"
                refused = Refused("unavailable", text, "instance")
            elif now >= asked.until:
                text = f"instance {name!r} did not answer {asked.operation} "
                refused = Refused("timeout", text + f"in {asked.deadline:g} s", "instance")
            if refused is not None:
                out += self._end(number, refused, [])
            elif asked.sent is not None and asked.connection != asked.instance.connection:
                out += self._pass_on(number, *asked.sent)
            elif asked.work is not None:
                out += self._go_on(number, asked.work)
        return out

    def _go_on(self, number: int, work: Work) -> list[Out]:
        found = work.poll()
        if isinstance(found, Command):
            return self._pass_on(number, found, [])
        return [] if found is None else self._end(number, found, [])

    def _end(self, number: int, answer: Answer, frames: list[bytes]) -> list[Out]:
        asked = self._asked.pop(number)
        if asked.work is not None:
            answer = asked.work.end(answer)
        return asked.then(answer, frames)


def _size(asked: Asked) -> int:
    return sum(map(len, asked.sent[1])) if asked.sent is not None else 0


def relay(connection: bytes, request: int) -> Then:
    """Whoever is at `connection` hears the answer to its `request`."""

    def then(answer: Answer, frames: list[bytes]) -> list[Out]:
        message: Message = msgspec.structs.replace(answer, request=request)
        return [(connection, message, tuple(frames))]

    return then
