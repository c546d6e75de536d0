"""Everything that may have happened to a slot since it was announced, and what a reader must say.

`corrupt(...)` puts a slot into the holder's pool as one of `KINDS` leaves it, and answers what a
reader asks for and which causes are right: the cause follows from how the slot was damaged, never
from a look at its bytes.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass

from lmkv import _native

from tests.soak.slots import (
    CHUNKS,
    EARLIER,
    FINGERPRINT,
    GRANULES,
    HEADER,
    THEIRS,
    Memory,
    Shape,
    Truth,
    generation,
    key,
    place,
)
from tests.soak.tally import DIGEST, GONE, GOOD, INCOMPATIBLE, Tally

HEADER_SEGMENT = 0xFFFFFE


@dataclass
class Ask:
    """A reader's question: chunk n, announced as `counter` at `place`."""

    n: int
    counter: int
    place: bytes
    expected: int


class Damage:
    """The holder's pool, a slot at a time; `counter` is the next admission."""

    def __init__(self, memory: Memory, truth: Truth, slots: int, random_: random.Random) -> None:
        self.memory, self.truth, self.random = memory, truth, random_
        self.shape: Shape = truth.shape
        self.layout = truth.layout
        self.used = self.layout.used_bytes
        self.slots = slots  # usable
        self.counter = 1
        self.cuts: set[int] = set()

    def write(
        self, slot: int, n: int, epoch: int = THEIRS, layout: _native.SlotLayout | None = None
    ) -> int:
        """Admit chunk n there; its counter."""
        self.counter += 1
        _native.write_slot(
            self.memory.address(slot),
            layout or self.layout,
            key(n),
            generation(epoch, self.counter),
            self.truth.payload(n),
        )
        return self.counter

    def chunk(self, but: int = -1) -> int:
        """Another chunk than `but`."""
        n = self.random.randrange(CHUNKS)
        return n if n != but else (n + 1) % CHUNKS

    def flip(self, slot: int, first: int, last: int) -> int:
        """One bit of bytes [first, last); the byte."""
        byte = self.random.randrange(first, last)
        self.memory.slot(slot)[byte] ^= 1 << self.random.randrange(8)
        return byte

    def reseal(self, slot: int, at: int, value: int) -> None:
        """Another header byte, and a checksum that fits."""
        header = bytearray(self.memory.slot(slot)[:HEADER])
        header[at] = value
        header[56:] = bytes(8)
        header[56:] = struct.pack("<Q", _native.lmx64(header, HEADER_SEGMENT))
        self.memory.slot(slot)[:HEADER] = header


def intact(d: Damage, slot: int, n: int) -> Ask:
    return Ask(n, d.write(slot, n), place(slot), GOOD)


def overwritten(d: Damage, slot: int, n: int) -> Ask:
    counter = d.write(slot, n)
    d.write(slot, d.chunk(but=n))
    return Ask(n, counter, place(slot), GONE)


def reused(d: Damage, slot: int, n: int) -> Ask:
    """Its next owner has cleared word 0 and has written some of its own."""
    counter = d.write(slot, n)
    view = d.memory.slot(slot)
    view[:8] = bytes(8)
    end = d.random.randrange(d.layout.payload_offset, d.used)
    view[d.layout.payload_offset : end] = d.random.randbytes(end - d.layout.payload_offset)
    return Ask(n, counter, place(slot), GONE)


def torn(d: Damage, slot: int, n: int) -> Ask:
    """Two states of the slot in one, cut at a cache line; either of them is asked for."""
    cut = d.random.randrange(1, d.used // 64) * 64
    d.cuts.add(cut)
    other = n if d.random.random() < 0.1 else d.chunk(but=n)
    asked = [(n, d.write(slot, n))]
    before = bytes(d.memory.slot(slot))
    asked.append((other, d.write(slot, other)))
    first_is_old = d.random.random() < 0.5
    view = d.memory.slot(slot)
    if first_is_old:
        view[:cut] = before[:cut]
    else:
        view[cut:] = before[cut:]
    choice = d.random.randrange(2)
    headers = choice == (0 if first_is_old else 1)
    # The same chunk stored again has the same table and payload: no cut can tell, and none matters.
    expected = (GOOD if other == n else DIGEST) if headers else GONE
    return Ask(*asked[choice], place(slot), expected)


def flipped_header(d: Damage, slot: int, n: int) -> Ask:
    counter = d.write(slot, n)
    byte = d.flip(slot, 0, HEADER)
    expected = GONE if byte < 4 else INCOMPATIBLE if byte == 4 else DIGEST  # magic, version
    return Ask(n, counter, place(slot), expected)


def flipped_table(d: Damage, slot: int, n: int) -> Ask:
    counter = d.write(slot, n)
    d.flip(slot, d.shape.table.start, d.shape.table.stop)
    return Ask(n, counter, place(slot), DIGEST)


def flipped_payload(d: Damage, slot: int, n: int) -> Ask:
    counter = d.write(slot, n)
    d.flip(slot, d.layout.payload_offset, d.used)
    return Ask(n, counter, place(slot), DIGEST)


def flipped_padding(d: Damage, slot: int, n: int) -> Ask:
    """Between table and payload there is nothing of the chunk."""
    counter = d.write(slot, n)
    d.flip(slot, d.shape.table.stop, d.layout.payload_offset)
    return Ask(n, counter, place(slot), GOOD)


def truncated(d: Damage, slot: int, n: int) -> Ask:
    """Zeros from somewhere on."""
    counter = d.write(slot, n)
    cut = d.random.randrange(0, d.used // 16) * 16
    d.memory.slot(slot)[cut:] = bytes(d.used - cut)
    return Ask(n, counter, place(slot), DIGEST if cut else GONE)


def swapped_segments(d: Damage, slot: int, n: int) -> Ask:
    """Two segments of the slot have changed places, digests and all."""
    counter = d.write(slot, n)
    a, b = d.random.sample(range(d.shape.segments), 2)
    size, view = d.shape.segment_bytes, d.memory.slot(slot)
    for start, width in ((d.layout.payload_offset, size), (HEADER, 8)):
        one, other = (slice(start + s * width, start + (s + 1) * width) for s in (a, b))
        view[one], view[other] = bytes(view[other]), bytes(view[one])
        if d.random.random() < 0.5:
            break  # the table stayed
    return Ask(n, counter, place(slot), DIGEST)


def swapped_places(d: Damage, slot: int, n: int) -> Ask:
    """The slot of another place lies here, whole, under its own key and counter."""
    neighbour = slot ^ 1
    counter = d.write(slot, n)
    mine = bytes(d.memory.slot(slot))
    d.write(neighbour, d.chunk(but=n))
    d.memory.slot(slot)[:] = d.memory.slot(neighbour)
    d.memory.slot(neighbour)[:] = mine
    return Ask(n, counter, place(slot), GONE)


def another_life(d: Damage, slot: int, n: int) -> Ask:
    """The right key and counter, of the epoch before."""
    return Ask(n, d.write(slot, n, EARLIER), place(slot), GONE)


def another_generation(d: Damage, slot: int, n: int) -> Ask:
    counter = d.write(slot, n)
    return Ask(n, (counter + d.random.choice([-1, 1, 1 << 31])) % (1 << 32), place(slot), GONE)


def another_key(d: Damage, slot: int, n: int) -> Ask:
    return Ask(d.chunk(but=n), d.write(slot, n), place(slot), GONE)


def another_layout(d: Damage, slot: int, n: int) -> Ask:
    bit = 1 << d.random.randrange(64)
    counter = d.write(slot, n, layout=d.shape.layout(fingerprint=FINGERPRINT ^ bit))
    return Ask(n, counter, place(slot), INCOMPATIBLE)


def another_format(d: Damage, slot: int, n: int) -> Ask:
    """Sealed as a version, codec, page format, flags or sizes that were not agreed upon."""
    counter = d.write(slot, n)
    at = d.random.choice([4, 5, 6, 7, 40, 44])
    d.reseal(slot, at, d.memory.slot(slot)[at] ^ (1 << d.random.randrange(8)))
    return Ask(n, counter, place(slot), INCOMPATIBLE)


def beyond_the_pool(d: Damage, slot: int, n: int) -> Ask:
    counter = d.write(slot, n)
    far = d.random.choice([0, 1, d.slots, (1 << 28) - 1 - d.slots])
    return Ask(n, counter, place(d.slots + far), GONE)


def across_segments(d: Damage, slot: int, n: int) -> Ask:
    """A place in the middle between two slots, at the end of a segment."""
    counter = d.write(slot, n)
    half = d.slots // 2  # the pool has two usable segments
    return Ask(n, counter, place(half - 1, shift=d.random.randrange(1, GRANULES)), GONE)


def no_slot(d: Damage, slot: int, n: int) -> Ask:
    """Granules or a tier that no slot of this pool has."""
    counter = d.write(slot, n)
    too_few = -(-d.used // d.layout.granule_bytes) - 1
    bad = [place(slot, granules=g) for g in (0, too_few, 17, 255)]
    bad += [place(slot, tier=t) for t in (1, 2, 255)]
    return Ask(n, counter, d.random.choice(bad), GONE)


Kind = Callable[[Damage, int, int], Ask]

KINDS: dict[str, Kind] = {
    "none": intact,
    "overwritten": overwritten,
    "being overwritten": reused,
    "torn": torn,
    "bit flipped: header": flipped_header,
    "bit flipped: table": flipped_table,
    "bit flipped: payload": flipped_payload,
    "bit flipped: padding": flipped_padding,
    "truncated": truncated,
    "segments swapped": swapped_segments,
    "places swapped": swapped_places,
    "of another life": another_life,
    "of another generation": another_generation,
    "of another key": another_key,
    "of another layout": another_layout,
    "of another format": another_format,
    "place beyond the pool": beyond_the_pool,
    "place across segments": across_segments,
    "place that is no slot": no_slot,
}
# How often, where it is not once: what people fear most, and what can be done in most ways.
WEIGHTS = {"none": 3, "torn": 4, "bit flipped: payload": 3, "bit flipped: header": 2}


def draw(d: Damage, kinds: list[str], slots: list[int]) -> list[tuple[str, Ask]]:
    """A slot each, damaged in one of the ways; whole pairs of slots are this call's."""
    weights = [WEIGHTS.get(kind, 1) for kind in kinds]
    chosen = d.random.choices(kinds, weights, k=len(slots))
    return [(kind, KINDS[kind](d, slot, d.chunk())) for kind, slot in zip(chosen, slots)]


def note_cuts(d: Damage, tally: Tally) -> None:
    tally.cuts[f"{d.shape.segments} x {d.shape.segment_bytes}"] |= d.cuts
