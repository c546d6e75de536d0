"""What the movers do with slots for jobs: compress them, and put them into new places.

    number() -> ask(message of it, arrays) -> each rank's answer;  abandon(number, slots) -> limbo

Links of its own, made when a job asks and closed when nothing is open any more. A mover that was
told to write into places may still do so when its job has ended: they stay in limbo until it has
answered, or is another one. For the background thread.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lmkv.agent.commands import Failed
from lmkv.agent.links import Link
from lmkv.agent.relay import POLL
from lmkv.core.clock import Clock, Deadline
from lmkv.core.messages import (
    Compress,
    Compressed,
    Message,
    Refused,
    Rewrite,
    Rewritten,
    Unsupported,
)

if TYPE_CHECKING:
    from lmkv.agent.agent import Agent

DEADLINE = 30.0  # seconds that movers have for one batch, at the lowest priority

Frames = list[bytes]


@dataclass
class _Asked:
    movers: dict[int, str]  # addresses by rank
    answers: dict[int, tuple[Message, Frames]] = field(default_factory=dict)
    limbo: list[tuple[bytes, bytes]] = field(default_factory=list)  # places and counters
    over: bool = False  # nobody waits for it


class Rewrites:
    def __init__(self, agent: Agent, connect: Callable[[str], Link], clock: Clock) -> None:
        self._agent = agent
        self._connect = connect
        self._clock = clock
        self._links: dict[str, Link] = {}  # by address
        self._asked: dict[int, _Asked] = {}
        self._next = 1
        self.taken = False  # by a batch: a mover keeps what it has compressed for one

    @property
    def open(self) -> int:
        """Questions that not all movers have answered."""
        return len(self._asked)

    def number(self) -> int:
        """For the next question."""
        self._next += 1
        return self._next

    def ask(
        self, message: Compress | Rewrite, arrays: Sequence[bytes]
    ) -> Generator[float, None, list[Frames]]:
        """The frames that each rank answers, by rank. Raises Failed. Closed before its end, places
        that it was to write to must be abandoned."""
        number, movers = message.job, self._movers()
        asked = self._asked[number] = _Asked(movers)
        until = Deadline(DEADLINE, self._clock)
        try:
            unsent = list(movers.values())
            while len(asked.answers) < len(movers):
                unsent = [to for to in unsent if not self._link(to).send(message, *arrays)]
                if until.over:
                    text = f"a mover of this instance has not answered in {DEADLINE:g} s"
                    raise Failed("mover_down", text)
                yield POLL
                self.turn()
                if self._movers() != movers:
                    raise Failed("mover_down", "a mover of this instance ended meanwhile")
        finally:
            asked.over = True
            self._settle(number, asked)
        return [self._frames(*asked.answers[rank]) for rank in sorted(movers)]

    def _link(self, address: str) -> Link:
        """A new one sends nothing before it is connected."""
        if address not in self._links:
            self._links[address] = self._connect(address)
        return self._links[address]

    def _movers(self) -> dict[int, str]:
        """Addresses by rank. Raises Failed."""
        movers = self._agent.pulls.movers
        if not self._agent.pulls.ready:
            raise Failed("mover_down", "a rank of this instance has no mover")
        return movers

    def _frames(self, message: Message, frames: Frames) -> Frames:
        if isinstance(message, Refused):
            raise Failed("failed", f"a mover of this instance: {message.message}")
        if isinstance(message, Unsupported):
            raise Failed("failed", f"a mover of this instance knows no {message.name}")
        if isinstance(message, Compressed) and message.error:
            raise Failed("unavailable", message.error)
        return frames

    def abandon(self, number: int, places: bytes, counters: bytes) -> None:
        """Give up reserved slots that this question may still write to."""
        self._agent.table.abort(places, counters, limbo=True)
        asked = self._asked.get(number)
        if asked is None:  # all had answered
            self._agent.table.end_limbo(places, counters)
        else:
            asked.limbo.append((places, counters))

    def turn(self) -> None:
        """Take what the movers have said."""
        for address, link in list(self._links.items()):
            for message, frames in link.receive():
                self._heard(address, message, frames)
        now = self._agent.pulls.movers
        for number, asked in list(self._asked.items()):
            self._settle(number, asked, now)
        if not self._asked:
            self.close()

    def close(self) -> None:
        for link in self._links.values():
            link.close()
        self._links.clear()

    def _heard(self, address: str, message: Message, frames: Frames) -> None:
        if isinstance(message, (Compressed, Rewritten)):
            if message.job in self._asked:
                self._asked[message.job].answers[message.rank] = message, frames
        elif isinstance(message, (Refused, Unsupported)):  # of the last question
            for asked in self._asked.values():
                for rank, at in asked.movers.items():
                    if at == address:
                        asked.answers.setdefault(rank, (message, frames))

    def _settle(self, number: int, asked: _Asked, now: dict[int, str] | None = None) -> None:
        """Forget a question whose movers have all answered, or are others by now."""
        now = self._agent.pulls.movers if now is None else now
        left = [
            rank
            for rank, address in asked.movers.items()
            if rank not in asked.answers and now.get(rank) == address
        ]
        if asked.over and not left:
            del self._asked[number]
            for places, counters in asked.limbo:
                self._agent.table.end_limbo(places, counters)
