"""What other instances' jobs command of this one: `slots` names readable slots, `retire` takes some
out of use. Both are harmless when repeated. For the background thread."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from lmkv.agent.commands import Failed, Frames, number
from lmkv.agent.jobs import split
from lmkv.core import wire
from lmkv.core.clock import Deadline
from lmkv.core.geometry import GRANULES_A_SLOT
from lmkv.core.messages import MAX_KEYS, Command, Retired, SlotsPage

if TYPE_CHECKING:
    from lmkv.agent.agent import Agent

LIMIT = 1024  # slots of a page, where no number is given
WINDOW = 256 * GRANULES_A_SLOT  # granules that are looked at in one go


class Slots:
    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self.handlers = {"slots": self.page, "retire": self.retire}

    def page(self, command: Command, frames: Frames, until: Deadline) -> tuple[SlotsPage, Frames]:
        first = number(command, "first", 0, 0, (1 << 32) - 1)
        limit = number(command, "limit", LIMIT, 1, MAX_KEYS)
        who = self._agent.registration() if command.arguments.get("who") == "1" else None
        if frames:
            return SlotsPage(0, who), self._named(_keys(frames))
        arrays, following = self._from(first, limit)
        return SlotsPage(following, who), arrays

    def _named(self, keys: Iterable[bytes]) -> Frames:
        found = [(key, *self._agent.table.places(key)) for key in keys]
        found = [slot for slot in found if slot[3]]
        return [b"".join(slot[i] for slot in found) for i in range(3)]  # type: ignore[misc]

    def _from(self, first: int, limit: int) -> tuple[Frames, int]:
        """The slots, and the granule behind them; 0: there is none."""
        table = self._agent.table
        end = table.usable * GRANULES_A_SLOT
        sizes = (wire.KEY_BYTES, wire.PLACE_BYTES, wire.COUNTER_BYTES)
        arrays = [b"", b"", b""]
        while first < end:
            following = min(end, first + WINDOW)
            room = limit - len(arrays[0]) // wire.KEY_BYTES
            more = table.slice(first, following)
            there = len(more[0]) // wire.KEY_BYTES
            arrays = [have + new[: room * size] for have, new, size in zip(arrays, more, sizes)]
            if there > room:
                place = more[1][room * wire.PLACE_BYTES :]
                return arrays, int.from_bytes(place[:4], "little")
            first = following
            if there == room:
                break
        return arrays, first if first < end else 0

    def retire(self, command: Command, frames: Frames, until: Deadline) -> tuple[Retired, Frames]:
        return retire(self._agent, _keys(frames)), []


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


def _keys(frames: Sequence[bytes]) -> list[bytes]:
    keys = b"".join(frames)
    if len(keys) % wire.KEY_BYTES or len(keys) > MAX_KEYS * wire.KEY_BYTES:
        text = f"keys: {len(keys)} bytes, allowed are 16 each for at most {MAX_KEYS}"
        raise Failed("field", text, "keys")
    return split(keys)
