"""What vLLM's KV event stream says of the pool: `reserved()` -> `changed()` -> `take()`.

A slot that is reserved remembers its chunk as vLLM knows it: block hashes and tokens. `changed()`
hears what the controllers hear, from the background thread; `take()` gives each step what listeners
do not believe yet. It is the difference to what they were told: a chunk that came and went between
two takes is not in it. A readable chunk that vLLM's side could not describe is not told, and counts
as an alarm. One that a job has brought (`brought`) nobody here can describe before a request has
loaded it (`met`): then it is told.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

from lmkv.agent.refusals import Refuse, ignore
from lmkv.agent.stream import Changes
from lmkv.core import wire

KEY, PLACE = wire.KEY_BYTES, wire.PLACE_BYTES
# Chunks a take: a step is not to wait for the events of a whole pool. One that is stored has its
# tokens told too.
STORED_A_TAKE, REMOVED_A_TAKE = 64, 512


@dataclass(frozen=True, slots=True)
class BlockFacts:
    """A chunk's blocks in one cache group, as vLLM names them; made once, kept with the slot."""

    group: int
    first_token: int  # its number in the request
    block_tokens: int
    hashes: bytes  # of each block, all of one length
    parent: bytes  # of the block before; empty: there is none
    tokens: bytes  # u32 each
    more: object  # what is seldom there; only vLLM's side knows it


# (request, cache group, chunk): its blocks, None where vLLM has no hashes of them
Describe = Callable[[str, int, int], BlockFacts | None]


class KvEvents:
    """`reserved` and `take` are the scheduler thread's, `changed` the background's."""

    def __init__(self, describe: Describe, refuse: Refuse = ignore) -> None:
        self._describe = describe
        self._refuse = refuse
        self._lock = threading.Lock()
        # By a place's first granule: key, facts.
        self._slots: dict[bytes, tuple[bytes, BlockFacts | None]] = {}
        self._strange: set[bytes] = set()  # keys: readable, brought by jobs, not described
        self._told: dict[bytes, BlockFacts] = {}  # by key: what listeners believe is readable
        self._gone: dict[bytes, BlockFacts] = {}  # of those: to be told that they are not
        self._new: dict[bytes, BlockFacts] = {}  # readable, to be told
        self._ended = False

    def reserved(self, request: str, group: int, chunk: int, key: bytes, place: bytes) -> None:
        """This slot is to hold that chunk. Nothing that goes wrong here costs the store or pull."""
        facts = self._described(request, group, chunk)
        with self._lock:
            if facts is None or self._ended:
                self._slots.pop(place[:4], None)
            else:
                self._slots[place[:4]] = key, facts

    def _described(self, request: str, group: int, chunk: int) -> BlockFacts | None:
        try:
            return self._describe(request, group, chunk)
        except Exception as error:
            self._refuse("events", f"a chunk of cache group {group} is not described: {error!r}")
            return None

    def brought(self, key: bytes, place: bytes) -> None:
        """This slot is to hold a chunk that no request here has had: vLLM knows no hashes of it."""
        with self._lock:
            if not self._ended:
                self._slots[place[:4]] = key, None

    def met(self, request: str, group: int, chunk: int, key: bytes, place: bytes) -> None:
        """A request loads this chunk of the own pool."""
        if key not in self._strange:
            return
        facts = self._described(request, group, chunk)
        with self._lock:
            if facts is None or key not in self._strange:
                return
            self._strange.discard(key)
            self._slots[place[:4]] = key, facts
            self._tell(key, facts)

    def moved(self, key: bytes, old: bytes, place: bytes) -> None:
        """The chunk at place `old` is about to be readable at another one, in another form."""
        with self._lock:
            known = self._slots.get(old[:4])
            if known is not None and known[0] == key:
                self._slots[place[:4]] = known

    def changed(self, changes: Changes) -> None:
        """As `SlotTable.take_changes()` gave them."""
        for announced, keys, places, _ in changes:
            with self._lock:
                if self._ended:
                    return
                for i in range(len(keys) // KEY):
                    key = keys[i * KEY : (i + 1) * KEY]
                    if announced:
                        self._readable(key, places[i * PLACE : (i + 1) * PLACE])
                        continue
                    self._strange.discard(key)
                    if self._new.pop(key, None) is None and key in self._told:
                        self._gone[key] = self._told[key]

    def _readable(self, key: bytes, place: bytes) -> None:
        known = self._slots.get(place[:4])
        if known is None:
            self._refuse("events", "a readable chunk's block hashes are not known: it is not told")
            return
        holder, facts = known
        if holder != key:
            return  # it has gone again, its slot is reserved for another: that is told next
        facts = facts or self._told.get(key)  # a job has brought back what was told of before
        if facts is None:
            self._strange.add(key)
            return
        self._slots[place[:4]] = key, facts
        self._tell(key, facts)

    def _tell(self, key: bytes, facts: BlockFacts) -> None:
        told = self._told.get(key)
        if told is not None and told.hashes == facts.hashes:  # back before anyone missed it
            self._told[key] = facts
            self._gone.pop(key, None)
        else:
            self._new[key] = facts

    @property
    def pending(self) -> bool:
        """Whether a take would give something."""
        return bool(self._gone or self._new)

    def take(self) -> tuple[list[BlockFacts], list[BlockFacts]]:
        """(removed, stored), to be told in this order: a chunk of a new epoch may have the hashes
        of an old one. Of one take a prompt's chunks are in their order: listeners link them."""
        if not self.pending:
            return [], []
        with self._lock:
            gone = list(islice(self._gone.items(), REMOVED_A_TAKE))
            for key, _ in gone:
                del self._gone[key], self._told[key]
            new: list[tuple[bytes, BlockFacts]] = []
            if not self._gone:
                first = sorted(self._new.items(), key=lambda item: item[1].first_token)
                new = first[:STORED_A_TAKE]
            for key, facts in new:
                del self._new[key]
                self._told[key] = facts
        return [facts for _, facts in gone], [facts for _, facts in new]

    def end(self) -> None:
        """Nothing is shared here any more: what was told is gone, nothing else will be told."""
        with self._lock:
            if not self._ended:
                self._ended = True
                self._gone = dict(self._told)
                self._new.clear()
                self._slots.clear()
                self._strange.clear()

    def sizes(self) -> dict[str, int]:
        """Chunks remembered with slots, told, and to be told: for tests."""
        with self._lock:
            pending = len(self._gone) + len(self._new)
            return {
                "slots": len(self._slots),
                "strange": len(self._strange),
                "told": len(self._told),
                "pending": pending,
            }
