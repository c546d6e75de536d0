"""What one controller hears of this instance: register -> welcome -> a numbered stream.

The stream carries announcements, retractions, heartbeats with sums, full syncs in slices among
them, and what jobs and pins there are. `pump(changes)` puts what is due into a bounded outbox,
`flush(send)` hands on what the link takes, `hear()` takes what the controller says. What is lost on
the way leaves a gap in the numbers, or sums that differ: the controller asks for a full sync. No
sockets here; the clock is a parameter.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence

from lmkv import _native
from lmkv.agent.refusals import Refuse, ignore
from lmkv.agent.stats import Stats
from lmkv.core import wire
from lmkv.core.geometry import GRANULES_A_SLOT
from lmkv.core.messages import (
    MAX_KEYS,
    PROTOCOL_MAX,
    PROTOCOL_MIN,
    Announce,
    AnyMessage,
    Heartbeat,
    HeartbeatOk,
    Message,
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
from lmkv.core.metrics import AGES, OTHER, SYNC_REASONS

SLICES_A_PUMP = 4
NEWS_BEFORE = 32  # messages that wait: more of them, and news wait too
OUTBOX = 256  # messages that wait for the link, of 112 KiB at most
REGISTER_EVERY = 1.0  # seconds, while nobody answers
SILENCE = 3.0  # seconds after which a controller counts as gone
SMOOTHING = 1 / 8  # the weight of a new round trip
PHASES = 1009
HEARTBEATS = 0.01, 60.0  # seconds between them that a controller may ask for

Frames = list[bytes]
Changes = list[tuple[bool, bytes, bytes, bytes]]  # as SlotTable.take_changes()
# What has changed since a version, each with its own, in their order: only as it stands now.
News = Callable[[int], list[tuple[int, Message]]]


class Stream:
    """`register` makes the registration as of now: ranks and data version change. `news` are told
    to each controller that welcomes this instance from the first one on."""

    def __init__(
        self,
        table: _native.SlotTable,
        register: Callable[[], Register],
        stats: Stats,
        clock: Callable[[], float],
        refuse: Refuse = ignore,
        news: Sequence[News] = (),
    ) -> None:
        self._refuse = refuse
        self._news = news
        self._told_news = [0] * len(news)  # versions
        self._table = table
        self._register = register
        self._stats = stats
        self._clock = clock
        self.outbox: deque[Frames] = deque()
        self._seq = 0
        self._welcome: Welcome | None = None
        self._heard = float("-inf")
        self._next_register = 0.0
        self._next_heartbeat = 0.0
        self._phase = 1.0  # of a heartbeat, until the next one
        self._beat: tuple[int, Frames] | None = None  # the last heartbeat: number, frames
        self._beat_sent: float | None = None  # when it left, until it is answered
        self._told: dict[str, Counter[str]] = {"hit": Counter(), "miss": Counter()}
        self._told_ages = [0] * (len(AGES) + 1), 0.0
        self._told_bytes: Counter[str] = Counter()  # by peer
        self._data_version = -1
        self._controllers: list[str] = []  # as the controller was told
        self._sync: tuple[int, int] | None = None  # number, next granule
        self._deaf = False  # an outbox was dropped: only a full sync is worth anything
        self.said_at = clock()  # when the controller last said anything, refusals too
        self.warming = False
        self.round_trip: float | None = None  # seconds, smoothed
        self.refused = ""

    @property
    def ready(self) -> bool:
        """Whether the controller is there and may be asked."""
        return self._welcome is not None and self._clock() - self._heard < SILENCE

    def lacks(self, frames: Frames | None) -> bool:
        """Whether this message waits, or all that waited was dropped."""
        return self._deaf or any(each is frames for each in self.outbox)

    @property
    def state(self) -> str:
        """One of `core/metrics.py`'s."""
        if self.ready:
            return "warming" if self.warming else "ready"
        return "refused" if self.refused else "silent"

    @property
    def syncing(self) -> bool:
        return self._sync is not None

    @property
    def welcome(self) -> Welcome | None:
        """The one that this stream goes on under; None while there is none."""
        return self._welcome

    def restart(self) -> None:
        """A new epoch, or a controller that is gone: register again."""
        self._welcome, self._sync, self._next_register = None, None, 0.0
        self._beat, self._beat_sent, self.round_trip = None, None, None

    def stood_still(self, seconds: float) -> None:
        """Nobody could be heard in that time, since this process did not run."""
        self._heard += seconds
        self.said_at += seconds
        self._beat, self._beat_sent = None, None  # its round trip says nothing

    def due(self) -> float:
        """Seconds until pump() has something to do of itself."""
        if self._sync is not None and len(self.outbox) < SLICES_A_PUMP:
            return 0.0
        next_one = self._next_heartbeat if self._welcome else self._next_register
        return max(0.0, next_one - self._clock())

    # ------------------------------------------------------------ out

    def pump(self, changes: Changes) -> None:
        """Everything that is due, into the outbox. `changes` are the table's since the last."""
        now = self._clock()
        if self._welcome is not None and now - self._heard > SILENCE:
            self.restart()
        if self._welcome is None:
            self._registration(now)  # changes are in the full sync that follows
            return
        registration = self._register()
        if (registration.data_version, registration.controllers) != (
            self._data_version,
            self._controllers,
        ):
            self._told_ranks(registration)
            epoch, version = registration.epoch, registration.data_version
            ranks = Ranks(epoch, version, registration.ranks, registration.controllers)
            self._put(wire.encode(ranks))
        for announced, *arrays in changes if not self._deaf else ():
            kind = Announce if announced else Retract
            self._put(wire.encode(kind(registration.epoch, self._number()), *arrays))
        self._tell_news()
        self._slices(registration.epoch)
        if now >= self._next_heartbeat:
            self._next_heartbeat = now + self._welcome.heartbeat * self._phase
            self._phase = 1.0
            self._heartbeat(registration)

    def _put(self, frames: Frames) -> None:
        self.outbox.append(frames)
        if len(self.outbox) > OUTBOX:  # the next number that arrives shows the gap
            self.outbox.clear()
            self._deaf, self._sync, self._beat = True, None, None
            self._stats.count("outbox_overflows")

    def _registration(self, now: float) -> None:
        if now < self._next_register:
            return
        self._next_register = now + REGISTER_EVERY
        registration = self._register()
        self._told_ranks(registration)
        self.outbox.clear()
        self.outbox.append(wire.encode(registration))

    def _told_ranks(self, registration: Register) -> None:
        self._data_version = registration.data_version
        self._controllers = registration.controllers

    def _tell_news(self) -> None:
        """They need no number: what was lost with others is told again after their `Resync`."""
        for i, news in enumerate(self._news):
            for version, message in news(self._told_news[i]):
                if len(self.outbox) >= NEWS_BEFORE:
                    return
                self._told_news[i] = version
                self._put(wire.encode(message))

    def _number(self) -> int:
        self._seq += 1
        return self._seq

    def _slices(self, epoch: int) -> None:
        """A sync goes on as the link takes it, so that it never fills the outbox."""
        while self._sync is not None and len(self.outbox) < SLICES_A_PUMP:
            sync, first = self._sync
            end = self._table.usable * GRANULES_A_SLOT
            if first >= end:
                self._sync = None
                self._put(wire.encode(SyncEnd(epoch, self._number(), sync)))
                break
            last = self._table.slice_end(first, end, MAX_KEYS)
            arrays = self._table.slice(first, last)
            self._put(wire.encode(SyncSlice(epoch, self._number(), sync, first, last), *arrays))
            self._sync = sync, last

    def _heartbeat(self, registration: Register) -> None:
        if self._beat is not None and self._beat_sent is None:
            return  # the last one has not even left
        count, sum_first, sum_second = self._table.sums()
        tokens, (ages, age_sum) = self._stats.totals(), self._stats.ages()
        came = self._stats.peer_bytes()
        told, told_sum = self._told_ages
        new = [now - before for now, before in zip(ages, told)]
        frames = wire.encode(
            Heartbeat(
                registration.epoch,
                self._number(),
                count,
                sum_first,
                sum_second,
                hit_tokens=dict(tokens["hit"] - self._told["hit"]),
                miss_tokens=dict(tokens["miss"] - self._told["miss"]),
                pool_granules=self._table.granules(),
                data_version=registration.data_version,
                retired_ages=new if any(new) else [],
                retired_seconds=min(max(0.0, age_sum - told_sum), 1e9),
                peer_bytes=dict(came - self._told_bytes),
            )
        )
        self._told, self._told_ages = tokens, (ages, age_sum)
        self._told_bytes = came
        self._beat, self._beat_sent = (self._seq, frames), None
        self._put(frames)

    def flush(self, send: Callable[[Frames], bool]) -> None:
        """Send as much as `send` takes; the rest waits."""
        while self.outbox and send(self.outbox[0]):
            frames = self.outbox.popleft()
            if self._beat is not None and frames is self._beat[1]:
                self._beat_sent = self._clock()

    # ------------------------------------------------------------ in

    def hear(self, message: AnyMessage, frames: list[bytes]) -> None:
        """Take one message; what must be answered at once is first in the outbox."""
        self.said_at = self._clock()
        if isinstance(message, Refused):
            self._refusal(message)
            return
        self._heard = self._clock()
        if isinstance(message, Welcome):
            if (wrong := unfit(message)) is None:
                self._welcomed(message)
            else:
                self._refuse("message", f"welcome of {message.controller}: {wrong}")
        elif isinstance(message, Resync) and self._welcome is not None:
            # Something was lost, and perhaps the ranks were.
            self._deaf, self._data_version = False, -1
            self._told_news = [0] * len(self._news)
            self._begin_sync(message.sync, message.reason)
        elif isinstance(message, Probe):
            self.outbox.appendleft(wire.encode(ProbeOk(self._register().epoch)))
        elif isinstance(message, HeartbeatOk):
            self._beat_answered(message)
        elif isinstance(message, Touched) and message.epoch == self._register().epoch:
            self._touched(frames)

    def _welcomed(self, message: Welcome) -> None:
        self.warming, self.refused = message.state != "ready", ""
        old = self._welcome
        if old is None:
            self._seq, self._next_heartbeat, self._deaf = 0, 0.0, False
            self._phase = phase(self._register().epoch)
            self._sync, self._told_news = None, [0] * len(self._news)
            if message.sync:
                self._begin_sync(0, "new")
        elif message.sync and not old.sync:
            self._begin_sync(0, "new")
        elif message.epoch == old.epoch:
            return
        # A registration that was repeated is answered repeatedly. Each of them came there before
        # the stream began, so its numbers go on.
        self._welcome = message

    def _begin_sync(self, number: int, reason: str) -> None:
        self._sync = number, 0
        self._stats.count("syncs", reason if reason in SYNC_REASONS else OTHER)

    def _beat_answered(self, message: HeartbeatOk) -> None:
        if self._welcome is not None and message.epoch != self._welcome.epoch:
            self.restart()  # another life of the controller
            return
        self.warming = message.state != "ready"
        if self._beat is not None and self._beat_sent is not None and message.seq == self._beat[0]:
            taken, self._beat, self._beat_sent = self._clock() - self._beat_sent, None, None
            self._stats.observe("heartbeat_seconds", taken)
            if self.round_trip is None:
                self.round_trip = taken
            self.round_trip += (taken - self.round_trip) * SMOOTHING

    def _touched(self, frames: list[bytes]) -> None:
        try:
            wire.counts(frames, wire.KEY_BYTES, wire.PLACE_BYTES, wire.COUNTER_BYTES, 4)
        except wire.WireError as error:  # a hint that is torn is no hint
            self._refuse("message", f"touched: {error}")
            return
        self._table.touch(frames[1], frames[2])

    def _refusal(self, message: Refused) -> None:
        if message.code == "not_registered":
            self.restart()
        elif self._welcome is None:
            self.refused = message.message


def phase(epoch: int) -> float:
    """The part of an interval between the first two heartbeats. Those who register all at once, as
    when a controller starts again, would else beat all at once for ever."""
    return (epoch % PHASES + 1) / PHASES


def unfit(welcome: Welcome) -> str | None:
    """The field of a welcome under which no stream can go on."""
    if not PROTOCOL_MIN <= welcome.protocol <= PROTOCOL_MAX:
        return f"protocol {welcome.protocol}, this is {PROTOCOL_MIN} to {PROTOCOL_MAX}"
    if not HEARTBEATS[0] <= welcome.heartbeat <= HEARTBEATS[1]:
        return f"heartbeat {welcome.heartbeat} s, allowed is {HEARTBEATS[0]} to {HEARTBEATS[1]}"
    return None
