"""The streams to all controllers: each change of the slot table goes to every one of them.

follow(addresses) -> turn() -> for each stream: flush, hear. A controller that comes or goes does
not disturb the others. `order()` names those that may be asked, the nearest first; the scheduler
thread reads it, all else is the background thread's. `news()` is what people should know.
`listener` hears each change of the table too, whether or not there is a controller.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lmkv import _native
from lmkv.agent.refusals import Refuse, ignore
from lmkv.agent.stats import Stats
from lmkv.agent.stream import Changes, Frames, News, Stream
from lmkv.core import wire
from lmkv.core.messages import Register
from lmkv.core.metrics import CONTROLLER_STATES

QUIET = 5.0  # seconds after which people are told that a controller does not answer
STANDSTILL = 1.25  # between two turns: the process was stopped, or nearly
A_TURN = 1.0  # of it, as much may be between any two


class Streams:
    def __init__(
        self,
        table: _native.SlotTable,
        register: Callable[[], Register],
        stats: Stats,
        clock: Callable[[], float],
        refuse: Refuse = ignore,
        listener: Callable[[Changes], None] | None = None,
        news: Sequence[News] = (),
    ) -> None:
        self._refuse = refuse
        self._news = news
        self._listener = listener
        self._table = table
        self._register = register
        self._stats = stats
        self._clock = clock
        self._streams: dict[str, Stream] = {}  # replaced and never changed: two threads read it
        self._quiet: set[str] = set()
        self._refused: dict[str, str] = {}  # what people were told
        self._turned = clock()

    def __getitem__(self, address: str) -> Stream:
        return self._streams[address]

    @property
    def addresses(self) -> list[str]:
        """Of all controllers now."""
        return list(self._streams)

    def follow(self, addresses: Iterable[str]) -> None:
        """These are the controllers now; who was one before goes on undisturbed."""
        self._streams = {
            address: self._streams.get(address)
            or Stream(
                self._table, self._register, self._stats, self._clock, self._refuse, self._news
            )
            for address in addresses
        }
        self._quiet &= self._streams.keys()

    def restart(self) -> None:
        """A new epoch: register again, everywhere."""
        for stream in self._streams.values():
            stream.restart()

    def turn(self) -> None:
        """One round, after what has arrived was heard: every stream's outbox gets what is due."""
        changes = self._table.take_changes()
        for announced, keys, *_ in changes:
            which = "announced_keys" if announced else "retracted_keys"
            self._stats.count(which, by=len(keys) // wire.KEY_BYTES)
        if ages := self._table.take_ages():
            self._stats.retired(ages)
        for stream in self._streams.values():
            stream.pump(changes)
        if changes and self._listener is not None:
            self._listener(changes)

    def woke(self) -> None:
        """To be called before anything is heard: silence while this process was stopped is nobody's
        fault."""
        gap, self._turned = self._clock() - self._turned, self._clock()
        if gap > STANDSTILL:
            for stream in self._streams.values():
                stream.stood_still(gap - A_TURN)

    def due(self) -> float:
        """Seconds until a turn has something to do of itself."""
        return min((stream.due() for stream in self._streams.values()), default=QUIET)

    def waiting(self) -> dict[str, Frames]:
        """The last message that waits for each controller: see `behind`."""
        streams = self._streams.items()
        return {address: stream.outbox[-1] for address, stream in streams if stream.outbox}

    def behind(self, waiting: Mapping[str, Frames]) -> bool:
        """Whether any of these has not left yet for a controller that is there, or was dropped."""
        return any(
            stream.ready and stream.lacks(waiting.get(address))
            for address, stream in self._streams.items()
        )

    def order(self) -> list[str]:
        """Addresses of those that may be asked: ready before warming, then by round trip, then as
        they were named."""

        def rank(address: str) -> tuple[bool, float]:
            stream = streams[address]
            trip = stream.round_trip
            return stream.warming, float("inf") if trip is None else trip

        streams = self._streams
        return sorted((a for a, stream in streams.items() if stream.ready), key=rank)

    def gauges(self) -> dict[str, Any]:
        """How the streams stand; any thread may ask."""
        streams = list(self._streams.values())
        states = Counter(stream.state for stream in streams)
        return {
            "controllers": {state: states[state] for state in CONTROLLER_STATES},
            "outbox_messages": max((len(stream.outbox) for stream in streams), default=0),
            "open_syncs": sum(stream.syncing for stream in streams),
        }

    def news(self) -> list[tuple[bool, str]]:
        """(whether it is bad, sentence) of each change since the last call."""
        out = []
        for address, stream in self._streams.items():
            silent = self._clock() - stream.said_at > QUIET
            if silent and address not in self._quiet:
                self._quiet.add(address)
                rest = (
                    "the others go on" if self.order() else "nothing new is shared until one does"
                )
                out.append((True, f"the controller at {address} does not answer; {rest}"))
            elif not silent and address in self._quiet:
                self._quiet.discard(address)
                out.append((False, f"the controller at {address} answers again"))
            if stream.refused and stream.refused != self._refused.get(address):
                self._refused[address] = stream.refused
                sentence = f"the controller at {address} refuses this instance: {stream.refused}"
                out.append((True, sentence))
        return out
