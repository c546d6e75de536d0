"""Pins: chunks that are not retired for room until a time, or until their owner unpins them.

    begin(id) -> add(id, keys) ... -> commit(id) -> release(id), or its time comes

A pin is counted in the slot table, slot by slot; several may hold the same slot. All pins together
take at most a share of the pool. A request's own pin (`want`) takes its chunks as they become
readable. All is the background thread's but `want`. `news()` is what the controllers have not heard
yet.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from lmkv import _native
from lmkv.core.clock import Clock
from lmkv.core.geometry import GRANULES_A_SLOT
from lmkv.core.messages import Message, PinsHeld, PinState

MOST = 4096  # pins
TOLD = 256  # of them, the oldest
WANTS = 256  # requests whose chunks are waited for
WANTED = 600.0  # seconds for which they are
LOOK_EVERY = 0.25  # seconds between two looks whether they are there,
LOOKED = 1 << 13  # keys in each, or a little more
AT_ONCE = 64  # slots that the table is asked about in one call
A_TURN = 16 * AT_ONCE  # slots of pins that have ended which one turn unpins
READABLE = 1  # as the table says it

Slot = tuple[bytes, bytes]  # place, counter


class Full(Exception):
    """It would be more than the pins' share of the pool, or one pin too many."""


@dataclass
class _Pin:
    name: str
    owner: str
    ttl: float  # 0.0: until its owner unpins it
    ends: float = float("inf")
    slots: dict[bytes, Slot] = field(default_factory=dict)  # by key, in the prompt's order
    granules: int = 0
    told: bool = False


@dataclass
class _Want:
    name: str
    ttl: float
    keys: list[bytes]  # that are not pinned yet
    until: float
    epoch: int


class Pins:
    def __init__(
        self,
        table: _native.SlotTable,
        share: float,
        instance: str,
        slot_bytes: int,
        epoch: Callable[[], int],
        clock: Clock,
        refused: Callable[[str], None] = lambda sentence: None,
        lookup: Callable[[bytes], int] | None = None,
    ) -> None:
        """`slot_bytes` are those of a full slot in all ranks; `refused` hears of requests whose
        pins do not fit; `lookup` is the table's, or in its place."""
        self._refused = refused
        self._lookup = lookup or table.lookup
        self._table = table
        self._share = share
        self._instance = instance
        self._slot_bytes = slot_bytes
        self._epoch = epoch
        self._clock = clock
        self._pins: dict[str, _Pin] = {}  # the oldest first
        self._ended: deque[_Pin] = deque()  # whose slots are still to be unpinned
        self._held: Counter[bytes] = Counter()  # pins by key,
        self._slots: Counter[Slot] = Counter()  # and by slot: a key may have had several
        self._next_end = float("inf")  # of a pin, or before
        self.granules = 0  # of the slots that are pinned, each once
        self._asked: deque[_Want] = deque(maxlen=WANTS)
        self._wants: deque[_Want] = deque(maxlen=WANTS)
        self._look_at = 0.0
        self._version = 0

    def __len__(self) -> int:
        return len(self._pins)

    def __contains__(self, name: str) -> bool:
        return name in self._pins

    def holds(self, key: bytes) -> bool:
        return key in self._held

    @property
    def allowed(self) -> int:
        """Granules that pins may take."""
        return int(self._share * self._table.usable * GRANULES_A_SLOT)

    # ------------------------------------------------------------ one pin

    def begin(self, name: str, owner: str, ttl: float) -> None:
        """Raises Full. It counts `ttl` seconds from `commit` on; 0.0: it has none."""
        self.release(name)
        if len(self._pins) >= MOST:
            raise Full(f"{MOST} pins are held here, which is the most")
        self._pins[name] = _Pin(name, owner, ttl)

    def add(self, name: str, keys: Sequence[bytes]) -> int:
        """Pin those that are readable; how many. Raises Full: then none of them is."""
        pin, added = self._pins[name], 0
        fresh = {key: found for key in keys if key not in pin.slots and (found := self.find(key))}
        more = sum(slot[0][4] for slot in fresh.values() if slot not in self._slots)
        if self.granules + more > self.allowed:
            raise Full(self.full(more))
        for key in fresh:
            place, counter, pinned = self._table.pin(key)
            if pinned:
                slot = pin.slots[key] = place, counter
                pin.granules += place[4]
                self.granules += 0 if slot in self._slots else place[4]
                self._held[key] += 1
                self._slots[slot] += 1
                added += 1
        return added

    def full(self, more: int) -> str:
        """That so many granules more are too many."""
        total = self._table.usable * GRANULES_A_SLOT
        return (
            f"pin_share = {self._share:g} of this pool is {self.allowed / GRANULES_A_SLOT:g} "
            f"of {total / GRANULES_A_SLOT:g} slots; {self.granules / GRANULES_A_SLOT:g} are pinned "
            f"and {more / GRANULES_A_SLOT:g} more are asked for"
        )

    def find(self, key: bytes) -> Slot | None:
        """Where it is; what was retired for room is taken back."""
        if not self._lookup(key):
            return None
        place, counter, found = self._table.places(key)
        return (place, counter) if found else None

    def commit(self, name: str) -> None:
        """It is told, and its time begins."""
        pin = self._pins[name]
        pin.ends = self._clock() + pin.ttl if pin.ttl else float("inf")
        self._next_end = min(self._next_end, pin.ends)
        pin.told = True
        self._version += 1

    def release(self, name: str) -> int:
        """Unpin its chunks; how many there are. Those of a long one go in the turns that follow."""
        pin = self._pins.pop(name, None)
        if pin is None:
            return 0
        chunks = len(pin.slots)
        self._version += pin.told
        self._ended.append(pin)
        self._unpin()
        return chunks

    def _unpin(self) -> None:
        left = A_TURN
        while self._ended and left > 0:
            slots = self._ended[0].slots
            # The tail first: a prefix ages from there.
            batch = [slots.popitem() for _ in range(min(AT_ONCE, len(slots)))][::-1]
            self._table.unpin(
                b"".join(place for _, (place, _) in batch),
                b"".join(counter for _, (_, counter) in batch),
            )
            for key, slot in batch:
                self._held[key] -= 1
                if not self._held[key]:
                    del self._held[key]
                self._slots[slot] -= 1
                if not self._slots[slot]:
                    del self._slots[slot]
                    self.granules -= slot[0][4]
            left -= AT_ONCE
            if not slots:
                self._ended.popleft()

    def within(self, keys: Collection[bytes] | None, owner: str) -> list[str]:
        """Pins, of that owner where one is given, all of whose chunks are among these keys; None:
        any are."""
        return [
            pin.name
            for pin in self._pins.values()
            if (not owner or pin.owner == owner)
            and (keys is None or all(key in keys for key in pin.slots))
        ]

    def size(self, name: str) -> tuple[int, int]:
        """(chunks, bytes) that it holds."""
        pin = self._pins[name]
        return len(pin.slots), pin.granules * self._slot_bytes // GRANULES_A_SLOT

    # ------------------------------------------------------------ a request's own

    def want(self, keys: list[bytes], ttl: float) -> None:
        """Pin these for `ttl` seconds when they are readable (any thread). The same chunks again
        are the same pin, whose time begins anew."""
        name = "request-" + hashlib.blake2b(b"".join(keys), digest_size=8).hexdigest()
        self._asked.append(_Want(name, ttl, keys, self._clock() + WANTED, self._epoch()))

    def _look(self, now: float) -> None:
        """For what requests want."""
        while self._asked:
            want = self._asked.popleft()
            others = (each for each in self._wants if each.name != want.name)
            self._wants = deque([*others, want], WANTS)
        looked, again = 0, list[_Want]()
        while looked < LOOKED and self._wants:
            want = self._wants.popleft()
            looked += len(want.keys)
            there = self._table.contains(b"".join(want.keys))
            ready = {key: None for key, state in zip(want.keys, there) if state == READABLE}
            if ready:
                want.keys = self._grant(want, ready)
            if want.keys and now < want.until:
                again.append(want)
        self._wants.extend(again)  # behind those that had no turn

    def _grant(self, want: _Want, ready: Mapping[bytes, None]) -> list[bytes]:
        """The keys that are still waited for: none where there is no room for more pins."""
        try:
            if want.name not in self._pins:
                self.begin(want.name, "", want.ttl)
            self.add(want.name, [*ready])
        except Full as full:
            self._refused(f"pin_ttl_s = {want.ttl:g}: not pinned: {full}")
            if want.name in self._pins and not self._pins[want.name].slots:
                self.release(want.name)
            return []
        self._pins[want.name].ttl = want.ttl
        self.commit(want.name)
        return [key for key in want.keys if key not in ready]

    # ------------------------------------------------------------ turns

    def due(self) -> float:
        """Seconds until a turn has something to do, but for pins whose time ends."""
        if self._ended:
            return 0.0
        return LOOK_EVERY if self._asked or self._wants else float("inf")

    def turn(self) -> None:
        now = self._clock()
        self._unpin()
        if now >= self._next_end:
            for name in [pin.name for pin in self._pins.values() if now >= pin.ends]:
                self.release(name)
            ends = (pin.ends for pin in self._pins.values())
            self._next_end = min(ends, default=float("inf"))
        if (self._asked or self._wants) and now >= self._look_at:
            self._look_at = now + LOOK_EVERY
            self._look(now)

    def reset(self) -> None:
        """A new epoch: nothing that was pinned is readable any more."""
        for name in list(self._pins):
            self.release(name)
        self._wants.clear()
        for _ in range(len(self._asked)):  # some have been asked for in the new epoch already
            want = self._asked.popleft()
            if want.epoch == self._epoch():
                self._asked.append(want)

    def news(self, since: int) -> list[tuple[int, Message]]:
        """All pins as they stand, if any has changed since that version."""
        if since == self._version:
            return []
        now, states = self._clock(), []
        pins = [pin for pin in self._pins.values() if pin.told]
        for pin in pins[:TOLD]:
            chunks, size = self.size(pin.name)
            left = max(0.001, pin.ends - now) if pin.ttl else 0.0
            first = next(iter(pin.slots), b"").hex()
            states.append(PinState(pin.name, self._instance, pin.owner, left, chunks, size, first))
        return [(self._version, PinsHeld(self._epoch(), states, len(pins)))]
