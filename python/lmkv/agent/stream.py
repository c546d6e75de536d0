"""What one controller hears of this instance: register -> welcome -> a numbered stream.

The stream carries announcements, retractions, heartbeats with sums, and full syncs in slices among
them; `pump()` gives the frames that are due, `hear()` takes what the controller says. No sockets
here, and the clock is a parameter. The slot table's changes have one listener: this stream.
"""

from __future__ import annotations

from collections.abc import Callable

from lmkv import _native
from lmkv.agent.stats import Stats
from lmkv.core import wire
from lmkv.core.messages import (
    MAX_KEYS,
    Announce,
    AnyMessage,
    Heartbeat,
    HeartbeatOk,
    Probe,
    ProbeOk,
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

GRANULES_A_SLOT = 16
SLICES_A_PUMP = 4
REGISTER_EVERY = 1.0  # seconds, while nobody answers
SILENCE = 3.0  # seconds after which a controller counts as gone

Frames = list[bytes]


class Stream:
    """`register` makes the registration as of now: ranks and data version change."""

    def __init__(
        self,
        table: _native.SlotTable,
        register: Callable[[], Register],
        stats: Stats,
        clock: Callable[[], float],
    ) -> None:
        self._table = table
        self._register = register
        self._stats = stats
        self._clock = clock
        self._seq = 0
        self._welcome: Welcome | None = None
        self._heard = float("-inf")
        self._next_register = 0.0
        self._next_heartbeat = 0.0
        self._data_version = -1
        self._sync: tuple[int, int] | None = None  # number, next granule
        self.refused = ""

    @property
    def ready(self) -> bool:
        """Whether the controller is there and may be asked."""
        return self._welcome is not None and self._clock() - self._heard < SILENCE

    @property
    def welcome(self) -> Welcome | None:
        return self._welcome

    def restart(self) -> None:
        """A new epoch: register again."""
        self._welcome, self._sync, self._next_register = None, None, 0.0

    def due(self) -> float:
        """Seconds until pump() has something to do of itself."""
        now = self._clock()
        if self._sync is not None:
            return 0.0
        return max(0.0, (self._next_heartbeat if self._welcome else self._next_register) - now)

    # ------------------------------------------------------------ out

    def pump(self) -> list[Frames]:
        now = self._clock()
        if self._welcome is not None and now - self._heard > SILENCE:
            self.restart()
        changes = self._table.take_changes()
        if self._welcome is None:
            return self._registration(now)  # changes are in the full sync that follows
        out: list[Frames] = []
        registration = self._register()
        if registration.data_version != self._data_version:
            self._data_version = registration.data_version
            ranks = Ranks(registration.epoch, registration.data_version, registration.ranks)
            out.append(wire.encode(ranks))
        for announced, keys, places, counters in changes:
            kind = Announce if announced else Retract
            message = kind(epoch=registration.epoch, seq=self._number())
            out.append(wire.encode(message, keys, places, counters))
        out += self._slices(registration.epoch)
        if now >= self._next_heartbeat:
            self._next_heartbeat = now + self._welcome.heartbeat
            out.append(wire.encode(self._heartbeat(registration.epoch)))
        return out

    def _registration(self, now: float) -> list[Frames]:
        if now < self._next_register:
            return []
        self._next_register = now + REGISTER_EVERY
        registration = self._register()
        self._data_version = registration.data_version
        return [wire.encode(registration)]

    def _number(self) -> int:
        self._seq += 1
        return self._seq

    def _slices(self, epoch: int) -> list[Frames]:
        out = []
        for _ in range(SLICES_A_PUMP):
            if self._sync is None:
                break
            sync, first = self._sync
            end = self._table.usable * GRANULES_A_SLOT
            if first >= end:
                self._sync = None
                out.append(wire.encode(SyncEnd(epoch, self._number(), sync)))
                break
            last = min(end, first + MAX_KEYS * GRANULES_A_SLOT)
            arrays = self._table.slice(first, last)
            out.append(wire.encode(SyncSlice(epoch, self._number(), sync, first, last), *arrays))
            self._sync = sync, last
        return out

    def _heartbeat(self, epoch: int) -> Heartbeat:
        count, sum_first, sum_second = self._table.sums()
        tokens = self._stats.take("controller")
        return Heartbeat(
            epoch,
            self._number(),
            count,
            sum_first,
            sum_second,
            hit_tokens=tokens.get("hit", {}),
            miss_tokens=tokens.get("miss", {}),
            pool_granules=self._table.granules(),
        )

    # ------------------------------------------------------------ in

    def hear(self, message: AnyMessage, frames: list[bytes]) -> list[Frames]:
        """Take one message; returns what must be answered at once."""
        epoch = self._register().epoch
        if isinstance(message, Refused):
            self._refusal(message)
            return []
        self._heard = self._clock()
        if isinstance(message, Welcome):
            self._seq, self._next_heartbeat, self.refused = 0, 0.0, ""
            self._welcome = message
            self._sync = (0, 0) if message.sync else None
        elif isinstance(message, Resync):
            self._sync = (message.sync, 0)
        elif isinstance(message, Probe):
            return [wire.encode(ProbeOk(epoch))]
        elif isinstance(message, HeartbeatOk):
            if self._welcome is not None and message.epoch != self._welcome.epoch:
                self.restart()  # another life of the controller
        elif isinstance(message, Touched) and message.epoch == epoch:
            self._touched(frames)
        return []

    def _touched(self, frames: list[bytes]) -> None:
        try:
            wire.counts(frames[1:3], wire.PLACE_BYTES, wire.COUNTER_BYTES)
        except wire.WireError:
            return  # a hint that is torn is no hint
        self._table.touch(frames[1], frames[2])

    def _refusal(self, message: Refused) -> None:
        if message.code == "not_registered":
            self.restart()
        elif self._welcome is None:
            self.refused = message.message
