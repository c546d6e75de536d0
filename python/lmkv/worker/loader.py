"""A load's chunks, found where they lie and scattered: in the own pool, or at mapped peers.

A chunk at a peer is read from as many of its ranks as have this rank's heads; it is there when all
of them gave theirs. Chunks count up to the first that failed.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lmkv import _native
from lmkv.core import parts
from lmkv.core.geometry import DEVICE
from lmkv.core.messages import PullPeer, PullResult, RankInfo
from lmkv.core.steps import Load, LoadChunk, LoadResult
from lmkv.worker.copiers import Copiers, Pool, Slot, short_room
from lmkv.worker.copies import Once
from lmkv.worker.mapped import MapError, MappedPeers
from lmkv.worker.page_layout import PageLayout

log = logging.getLogger("lmkv.worker")

MAP_RESULTS = {
    "incompatible": PullResult.INCOMPATIBLE,
    "peer_dead": PullResult.PEER_DEAD,
    "no_room": PullResult.MOVER_DOWN,  # our own address space: the peer is not to blame
}


# cache group, the part of peers' slots, whether they are in a GPU's memory, and are compressed
_Kind = tuple[int, "_native.SlotPart | None", bool, bool]


class _NotFound(Exception):
    """A chunk cannot be read."""

    def __init__(self, result: int) -> None:
        super().__init__(result)
        self.result = result  # PullResult


@dataclass(frozen=True)
class _Read:
    """One scatter of chunk number `chunk` of the load: its slot, or a part of it."""

    chunk: int
    slot: Slot


class Loader:
    """`info` is the worker's own rank. One load at a time."""

    def __init__(
        self,
        pool: Pool,
        mapped: MappedPeers,
        pages: Sequence[PageLayout],
        info: RankInfo,
        copiers: Copiers,
        once: Once,
    ) -> None:
        self._pool = pool
        self._mapped = mapped
        self._pages = pages
        self._info = info
        self._copiers = copiers
        self._once = once
        self._lives: dict[str, int] = {}  # epochs of the peers that were mapped

    def load(self, load: Load, after: Any = None) -> LoadResult:
        """Ends with the first chunk that fails; the blocks of those behind it hold rubbish."""
        with contextlib.ExitStack() as maps:
            batches, good, result = self._find(load, maps)
            for (group, part, _, _), reads in batches:
                if reads[0].chunk >= good:
                    continue
                for read, status in zip(reads, self._scatter(group, part, reads, after)):
                    if status != PullResult.GOOD and read.chunk < good:
                        good, result = read.chunk, status
        moved = sum(self._pages[chunk.group].slot.payload_bytes for chunk in load.chunks[:good])
        return LoadResult(good, result, bytes=moved)

    def _scatter(
        self, group: int, part: _native.SlotPart | None, reads: Sequence[_Read], after: Any
    ) -> Sequence[int]:
        """PullResults."""
        try:
            return self._copiers.scatter(group, [read.slot for read in reads], part, after)
        except Exception as error:  # what was scattered before is there all the same
            self._once.exception("chunks cannot be loaded", error)
            return [PullResult.MOVER_DOWN] * len(reads)

    def _find(
        self, load: Load, maps: contextlib.ExitStack
    ) -> tuple[list[tuple[_Kind, list[_Read]]], int, int]:
        """(batches of scatters that are alike, chunks that were found, PullResult of the next)."""
        batches: list[tuple[_Kind, list[_Read]]] = []
        open_batches: dict[_Kind, list[_Read]] = {}
        for number, chunk in enumerate(load.chunks):
            try:
                found = list(self._places(load, chunk, maps))
            except _NotFound as error:
                return batches, number, error.result
            except Exception as error:
                self._once.exception("a chunk cannot be found", error)
                return batches, number, PullResult.MOVER_DOWN
            for part, pool, address in found:
                room = short_room(chunk.place, pool)
                kind = chunk.group, part, pool.tier == DEVICE, room > 0
                most = self._copiers.short_at_once if room else self._copiers.at_once
                slot = Slot(address, chunk.key, chunk.generation, chunk.blocks, kind[2], room)
                batch = open_batches.get(kind)
                if batch is None or len(batch) == most:
                    batch = open_batches[kind] = []
                    batches.append((kind, batch))
                batch.append(_Read(number, slot))
        return batches, len(load.chunks), PullResult.GOOD

    def _places(
        self, load: Load, chunk: LoadChunk, maps: contextlib.ExitStack
    ) -> Iterator[tuple[_native.SlotPart | None, Pool, int]]:
        """(part, pool, address of a slot) of all that a chunk is read from. _NotFound, else."""
        if chunk.peer < 0:
            yield None, self._pool, self._address(self._pool, chunk, None)
            return
        ranks = load.peers[chunk.peer]
        found = parts.parts(self._info, [peer.info for peer in ranks], chunk.group)
        if not found:
            raise _NotFound(PullResult.INCOMPATIBLE)
        for part in found:
            heads = self._heads(ranks[part.at], part, chunk.group)
            pool = self._map(ranks[part.at], heads, maps)
            yield heads, pool, self._address(pool, chunk, heads)

    def _heads(self, peer: PullPeer, part: parts.Part, group: int) -> _native.SlotPart | None:
        try:
            return None if part.whole else parts.slot_part(self._pages[group].layout, part)
        except ValueError as error:
            log.warning("lmkv: rank %d of %s: %s", peer.info.rank, peer.instance, error)
            raise _NotFound(PullResult.INCOMPATIBLE) from None

    def _map(
        self, peer: PullPeer, heads: _native.SlotPart | None, maps: contextlib.ExitStack
    ) -> Pool:
        """The peer's pool, mapped until `maps` is closed."""
        self._forget_earlier_life(peer)
        least = heads.theirs.granule_bytes if heads is not None else 0
        try:
            return maps.enter_context(self._mapped.map(peer, least))
        except MapError as error:
            log.warning("lmkv: %s cannot be mapped: %s", peer.instance, error)
            raise _NotFound(MAP_RESULTS.get(error.cause, PullResult.PEER_DEAD)) from None

    def _address(
        self,
        pool: Pool,
        chunk: LoadChunk,
        heads: _native.SlotPart | None,
    ) -> int:
        slot = heads.theirs if heads is not None else self._pages[chunk.group].slot
        room = 0 if short_room(chunk.place, pool) else slot.used_bytes
        try:
            return pool.slot_address(chunk.place, room)
        except ValueError as error:  # in no usable segment, or smaller than a slot
            log.info("lmkv: %s", error)
            raise _NotFound(PullResult.GONE) from None

    def _forget_earlier_life(self, peer: PullPeer) -> None:
        """A map keeps a dead holder's memory alive."""
        earlier = self._lives.get(peer.instance)
        if earlier is not None and earlier != peer.epoch:
            self._mapped.forget(peer.instance, earlier)
        self._lives[peer.instance] = peer.epoch
