"""Which of a peer's ranks have the heads of ours, and where in their slots those lie.

parts(own, ranks) -> what is to be read, head by head and none twice -> slot_part(layout, part)
says it to the extension. A peer with the same heads is read whole, rank by rank.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

from lmkv import _native
from lmkv.core import geometry
from lmkv.core.geometry import Heads
from lmkv.core.messages import RankInfo


class Part(NamedTuple):
    """What is read of one of the peer's ranks."""

    at: int  # in the list of the peer's ranks
    theirs: Heads  # that this rank has
    read: Heads  # those that are read
    whole: bool  # its slots are like ours


def parts(own: RankInfo, ranks: Sequence[RankInfo], group: int = 0) -> list[Part]:
    """The parts of a slot of rank `own`; [] when the peer does not have all of them.

    A rank that does not say its heads has those of the same rank here. Where several ranks have
    the same heads, ours are spread over them.
    """
    mine = _heads(own, group)
    same_layers = [(at, rank) for at, rank in enumerate(ranks) if rank.stage == own.stage]
    if mine is None or any(_heads(rank, group) is None for _, rank in same_layers):
        return [Part(at, (0, 0), (0, 0), True) for at, r in same_layers if r.rank == own.rank]
    found: list[Part] = []
    head, end = mine[0], sum(mine)
    while head < end:
        having = [(at, h) for at, r in same_layers if (h := _heads(r, group)) and _has(h, head)]
        if not having:
            return []
        reach = max(sum(heads) for _, heads in having)
        having = [(at, heads) for at, heads in having if sum(heads) == reach]
        at, theirs = having[own.rank % len(having)]
        found.append(Part(at, theirs, (head, min(reach, end) - head), theirs == mine))
        head = reach
    return found


def _heads(rank: RankInfo, group: int) -> Heads | None:
    return rank.heads[group] if group < len(rank.heads) else None


def _has(heads: Heads, head: int) -> bool:
    return heads[0] <= head < sum(heads)


@functools.lru_cache(maxsize=256)
def slot_part(layout: str, part: Part) -> _native.SlotPart:
    """The part in slots of the peer's rank and of ours, whose layout this is. ValueError for heads
    that no slot can hold."""
    first, count = geometry.rank_heads(layout)
    ours = geometry.slot_layout(layout)
    theirs = geometry.slot_layout(geometry.with_heads(layout, part.theirs))
    layers = ours.segments // count
    start, heads = part.read
    return _native.SlotPart(ours, theirs, layers, start - part.theirs[0], start - first, heads)
