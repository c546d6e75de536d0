"""Who holds which keys: the directory with names instead of numbers.

add() -> announcements and syncs under `instance.number` -> drop(). `locate` never hands out a
holder in `unfit` (suspect) or one that is incompatible, and notes what it handed out: `touched`
tells the holders.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Hashable
from itertools import count

from lmkv._native import Directory
from lmkv.controller.hot import HotPrefixes
from lmkv.controller.instance import Instance, differs, group, hosts
from lmkv.core.clock import Clock, monotonic
from lmkv.core.messages import MAX_KEYS, Located, Run, Touched
from lmkv.core.wire import COUNTER_BYTES, KEY_BYTES, PLACE_BYTES

NativeRun = tuple[int, int, int, int]  # first, n, instance, offset


class Placement:
    def __init__(self, clock: Clock = monotonic) -> None:
        self.directory = Directory()
        self.hot = HotPrefixes(clock)
        self.unfit: set[int] = set()
        self.locates = 0
        self.locate_keys = 0
        self.located_keys = 0  # of these, those that somebody had
        self._by_number: dict[int, Instance] = {}
        self._handed: dict[int, Instance] = {}  # those with something in `handed`
        self._loads = array("d")
        self._groups = _Numbers()
        self._hosts = _Numbers()

    def add(self, instance: Instance) -> bool:
        """Give it a number; False when all are taken."""
        registration = instance.registration
        number_of_group = self._groups.get(instance, group(registration))
        number_of_host = self._hosts.get(instance, hosts(registration.ranks))
        for _ in range(2):
            try:
                instance.number = self.directory.add(number_of_group, number_of_host)
                break
            except ValueError:  # numbers come back when what was dropped has been swept
                while not self.directory.sweep(1 << 20):
                    pass
        else:
            return False
        self._by_number[instance.number] = instance
        return True

    def drop(self, instance: Instance) -> None:
        if instance.number < 0:
            return
        self.directory.drop(instance.number)
        for numbers in (self._groups, self._hosts):
            numbers.drop(instance)
        for table in (self._by_number, self._handed):
            table.pop(instance.number, None)
        self.unfit.discard(instance.number)
        self.weigh(instance, 0.0)
        instance.number = -1
        instance.handed, instance.handed_keys = {}, 0

    def weigh(self, instance: Instance, load: float) -> None:
        """Busy holders are handed out less."""
        if load or instance.number < len(self._loads):
            missing = instance.number + 1 - len(self._loads)
            if missing > 0:
                self._loads.extend([0.0] * missing)
            self._loads[instance.number] = load

    def holders(self, key: bytes) -> list[str]:
        return [self._by_number[number].name for number in self.directory.holders(key)]

    def holders_of_any(self, keys: bytes) -> list[Instance]:
        """Those that have at least one of these, by name."""
        found: set[int] = set()
        for i in range(0, len(keys), KEY_BYTES):
            found.update(self.directory.holders(keys[i : i + KEY_BYTES]))
            if len(found) == len(self._by_number):
                break
        return sorted((self._by_number[number] for number in found), key=lambda each: each.name)

    # ------------------------------------------------------------ locate

    def locate(
        self, asker: Instance, keys: bytes, avoid: Collection[Instance], sparse: bool = False
    ) -> tuple[Located, bytes, bytes]:
        """The answer, without its request and epoch, and its frames."""
        numbers = [*self.unfit, *(other.number for other in avoid)]
        runs, alternates, places, counters, found, other = self.directory.locate(
            keys, asker.number, self._loads or None, numbers, sparse
        )
        self.locates += 1
        self.locate_keys += len(keys) // KEY_BYTES
        self.located_keys += found
        index: dict[int, int] = {}
        answer = Located(
            0,
            0,
            found,
            [Run(f, n, index.setdefault(i, len(index)), o) for f, n, i, o in runs],
            [Run(f, n, index.setdefault(i, len(index)), o) for f, n, i, o in alternates],
        )
        answer.peers = [self._by_number[number].ref(asker) for number in index]
        if other >= 0 and found < len(keys) // KEY_BYTES:
            answer.missing = "incompatible"
            answer.incompatible = differs(asker.registration, self._by_number[other].registration)
        if runs and not sparse:  # a prefix, once a question
            end, registration = runs[-1][0] + runs[-1][1], asker.registration
            key = keys[KEY_BYTES * (end - 1) : KEY_BYTES * end]
            self.hot.note(key, registration.model, end * registration.chunk_tokens)
        self._note(keys, runs, alternates, places, counters)
        return answer, places, counters

    def _note(
        self,
        keys: bytes,
        runs: list[NativeRun],
        alternates: list[NativeRun],
        places: bytes,
        counters: bytes,
    ) -> None:
        others = bytearray(len(keys) // KEY_BYTES * 4)  # u32; an answer knows of one at most
        for first, n, _, _ in alternates:
            others[4 * first : 4 * (first + n) : 4] = b"\1" * n
        for first, n, number, offset in runs:
            holder = self._by_number[number]
            if holder.handed_keys + n > MAX_KEYS:
                continue  # uses are hints, and this many say it already
            run = keys[KEY_BYTES * first : KEY_BYTES * (first + n)]
            if run in holder.handed:
                continue
            holder.handed[run] = (
                places[PLACE_BYTES * offset : PLACE_BYTES * (offset + n)],
                counters[COUNTER_BYTES * offset : COUNTER_BYTES * (offset + n)],
                bytes(others[4 * first : 4 * (first + n)]),
            )
            holder.handed_keys += n
            self._handed[number] = holder

    @property
    def pending(self) -> bool:
        """Whether `touched` has something to tell."""
        return bool(self._handed)

    def touched(self) -> list[tuple[Instance, Touched, tuple[bytes, ...]]]:
        """What was handed out since the last call, by holder."""
        out = []
        for holder in self._handed.values():
            arrays = b"".join(holder.handed), *map(b"".join, zip(*holder.handed.values()))
            out.append((holder, Touched(holder.epoch), arrays))
            holder.handed, holder.handed_keys = {}, 0
        self._handed.clear()
        return out


class _Numbers:
    """Equal values have equal numbers, for as long as someone has them."""

    def __init__(self) -> None:
        self._next = count()
        self._numbers: dict[Hashable, int] = {}
        self._owners: dict[Hashable, set[Instance]] = {}
        self._values: dict[Instance, Hashable] = {}

    def get(self, owner: Instance, value: Hashable) -> int:
        self.drop(owner)
        self._values[owner] = value
        self._owners.setdefault(value, set()).add(owner)
        if value not in self._numbers:
            self._numbers[value] = next(self._next)
        return self._numbers[value]

    def drop(self, owner: Instance) -> None:
        value = self._values.pop(owner, None)
        if value is None:
            return
        self._owners[value].discard(owner)
        if not self._owners[value]:
            del self._owners[value], self._numbers[value]
