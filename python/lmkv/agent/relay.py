"""Commands of this instance's jobs to other instances, by way of a controller.

`answer = yield from relay.ask(...)` sends the command to the nearest controller that is ready, and
to another one when that does not answer, and again where somebody is busy; what is asked is
harmless when repeated. Links are made for the first question and closed when no job runs (`rest`).
For the background thread.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator, Mapping, Sequence

from lmkv.agent.commands import Failed, Frames
from lmkv.agent.links import Link
from lmkv.core.clock import Clock, Deadline
from lmkv.core.messages import Command, Done, Refused, Unsupported

EACH = 3.0  # seconds that a controller has before another one is asked
LATER = 0.2  # seconds until somebody who is busy is asked again
ALL = 15.0  # seconds in all
POLL = 0.02  # seconds between two looks; the turn comes earlier when something is heard

Answer = Done | Refused | Unsupported


class Relay:
    def __init__(
        self,
        connect: Callable[[str], Link],
        order: Callable[[], Sequence[str]],
        clock: Clock,
    ) -> None:
        """`order()` names the controllers that may be asked, the nearest first."""
        self._connect = connect
        self._order = order
        self._clock = clock
        self._links: dict[str, Link] = {}
        self._number = 0
        self._answers: dict[int, tuple[Answer, Frames] | None] = {}  # of those that are awaited

    def ask(
        self,
        instance: str,
        operation: str,
        arguments: Mapping[str, str] | None = None,
        frames: Sequence[bytes] = (),
    ) -> Generator[float, None, tuple[bytes, Frames]]:
        """The result and the frames behind it. Raises Failed."""
        self._number += 1
        number, until = self._number, Deadline(ALL, self._clock)
        name = f"{operation}-{secrets.token_hex(8)}"
        self._answers[number] = None
        asked: list[str] = []  # the last one at the end
        turn = Deadline(0.0, self._clock)
        busy: tuple[str, str] | None = None  # code and sentence of the last one that is
        try:
            while (answer := self._answers[number]) is None or (busy := _busy(answer)):
                if answer is not None:
                    self._answers[number], turn = None, Deadline(LATER, self._clock)
                if until.over:
                    raise Failed(*(busy or _silence(instance, operation, asked)))
                if turn.over or asked[-1] not in self._order():
                    command = Command(
                        name, operation, instance, dict(arguments or {}), number, until.left()
                    )
                    if self._send(asked, command, frames):
                        turn = Deadline(EACH, self._clock)
                yield POLL
                self._drain()
        finally:
            del self._answers[number]
        said, behind = answer
        if isinstance(said, Refused):
            raise Failed(said.code, said.message, said.field)
        if isinstance(said, Unsupported):
            text = f"instance {instance!r} has no operation {operation!r}: it is of another release"
            raise Failed("unsupported", text)
        return said.result, behind

    def _send(self, asked: list[str], command: Command, frames: Sequence[bytes]) -> bool:
        """To the one that was asked least, of those the nearest."""
        for address in sorted(self._order(), key=asked.count):
            if address not in self._links:
                self._links[address] = self._connect(address)
            if self._links[address].send(command, *frames):
                asked.append(address)
                return True
        return False

    def _drain(self) -> None:
        for link in self._links.values():
            for message, frames in link.receive():
                if isinstance(message, Answer) and message.request in self._answers:
                    self._answers[message.request] = message, frames

    def awaited(self) -> list[Link]:
        """Those over which an answer may come."""
        return list(self._links.values()) if self._answers else []

    def rest(self) -> None:
        """No job runs: nothing is awaited."""
        for link in self._links.values():
            link.close()
        self._links.clear()


def _busy(answer: tuple[Answer, Frames]) -> tuple[str, str] | None:
    said, _ = answer
    if isinstance(said, Refused) and said.code == "busy":
        return said.code, said.message
    return None


def _silence(instance: str, operation: str, asked: Sequence[str]) -> tuple[str, str]:
    if not asked:
        return "no_controller", f"no controller was there in {ALL:g} s to pass on {operation}"
    return "timeout", f"instance {instance!r} did not answer {operation} in {ALL:g} s"
