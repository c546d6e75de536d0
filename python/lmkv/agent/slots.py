"""What other instances' jobs command of this one: `slots` names readable slots, `retire` takes some
out of use. Both are harmless when repeated, and however late they come: `retire` names slots of one
epoch, so that what is stored anew in others is not meant. For the background thread.

    hold(keys) -> what a move has brought here stays, whatever other moves retire -> let_go()
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from lmkv.agent.checks import Slot, slots_of
from lmkv.agent.commands import Failed, Frames, number
from lmkv.agent.jobs import split
from lmkv.core import wire
from lmkv.core.clock import Deadline
from lmkv.core.geometry import GRANULES_A_SLOT
from lmkv.core.messages import MAX_KEYS, Command, Retired, SlotsPage

if TYPE_CHECKING:
    from lmkv.agent.agent import Agent

KEY, PLACE, COUNTER = wire.KEY_BYTES, wire.PLACE_BYTES, wire.COUNTER_BYTES
LIMIT = 1024  # slots of a page, where no number is given
WINDOW = 256 * GRANULES_A_SLOT  # granules that are looked at in one go


class Slots:
    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._held: Counter[bytes] = Counter()  # by key, by moves to here
        self.handlers = {"slots": self.page, "retire": self.retire}

    def page(self, command: Command, frames: Frames, until: Deadline) -> tuple[SlotsPage, Frames]:
        first = number(command, "first", 0, 0, (1 << 32) - 1)
        limit = number(command, "limit", LIMIT, 1, MAX_KEYS)
        who = self._agent.registration() if command.arguments.get("who") == "1" else None
        if frames:
            return SlotsPage(0, who), self._arrays(_keys(frames))
        arrays, following = self._from(first, limit)
        return SlotsPage(following, who), arrays

    def _arrays(self, keys: Iterable[bytes]) -> Frames:
        """Of the slots of those that are readable."""
        found = [(key, *self._agent.table.places(key)) for key in keys]
        found = [slot for slot in found if slot[3]]
        return [b"".join(slot[i] for slot in found) for i in range(3)]  # type: ignore[misc]

    def _from(self, first: int, limit: int) -> tuple[Frames, int]:
        """The slots, and the granule behind them; 0: there is none."""
        table = self._agent.table
        end = table.usable * GRANULES_A_SLOT
        sizes = (KEY, PLACE, COUNTER)
        arrays = [b"", b"", b""]
        while first < end:
            following = min(end, first + WINDOW)
            room = limit - len(arrays[0]) // KEY
            more = table.slice(first, following)
            there = len(more[0]) // KEY
            arrays = [have + new[: room * size] for have, new, size in zip(arrays, more, sizes)]
            if there > room:
                place = more[1][room * PLACE :]
                return arrays, int.from_bytes(place[:4], "little")
            first = following
            if there == room:
                break
        return arrays, first if first < end else 0

    # ------------------------------------------------------------ moves

    def retire(self, command: Command, frames: Frames, until: Deadline) -> tuple[Retired, Frames]:
        """Those that still lie where the asker has pulled them from. What has another slot by now
        (it was compressed, say) is answered with that one: it may ask again."""
        named = _slots(frames)
        if command.arguments.get("epoch") != f"{self._agent.epoch:016x}":
            return Retired(), []  # all that it had then is gone
        same, other, held = list[bytes](), list[bytes](), 0
        for key, *slot in named:
            *now, there = self._agent.table.places(key)
            if self._held[key]:
                held += 1
            elif there and now != slot:
                other.append(key)
            else:
                same.append(key)
        retired = retire(self._agent, same)
        retired.pinned += held
        return retired, self._arrays(other)

    def hold(self, keys: Iterable[bytes]) -> list[Slot]:
        """Those that are readable, pinned. While two instances move a chunk to each other, neither
        gives up the one that the other relies on."""
        held: list[Slot] = []
        for key in keys:
            place, counter, pinned = self._agent.table.pin(key)
            if pinned:
                held.append((key, place, counter))
                self._held[key] += 1
        return held

    def let_go(self, held: Sequence[Slot]) -> None:
        for key, place, counter in reversed(held):  # a prefix ages from its tail
            self._agent.table.unpin(place, counter)
            self._held[key] -= 1
            if not self._held[key]:
                del self._held[key]


def retire(
    agent: Agent, keys: Iterable[bytes], skipped: Callable[[str], None] = lambda word: None
) -> Retired:
    """Found no more, but for pinned ones; one that a load reads goes when the load has ended.
    `skipped` hears for each that stays, or is not there, a word of SKIPPED."""
    table, retired = agent.table, Retired()
    for key in keys:
        if agent.pins.holds(key):
            retired.pinned += 1
            skipped("pinned")
            continue
        size = agent.room(table.places(key)[0])
        if table.retire(key, revivable=False):
            retired.chunks += 1
            retired.bytes += size
        else:
            skipped("absent")
    return retired


def _slots(frames: Sequence[bytes]) -> list[Slot]:
    try:
        wire.counts(frames, KEY, PLACE, COUNTER)
    except wire.WireError as error:
        raise Failed("field", f"slots: {error}", "slots") from None
    return slots_of(*frames)


def _keys(frames: Sequence[bytes]) -> list[bytes]:
    keys = b"".join(frames)
    if len(keys) % KEY or len(keys) > MAX_KEYS * KEY:
        text = f"keys: {len(keys)} bytes, allowed are 16 each for at most {MAX_KEYS}"
        raise Failed("field", text, "keys")
    return split(keys)
