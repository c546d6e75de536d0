"""Slots between their two forms, for the agent: Compress -> Compressed -> Rewrite -> Rewritten.

A thread of the lowest priority, which begins with the first question, compresses slots into memory
of its own: how many granules they then need, all ranks must say before their new places can be
reserved. A `Rewrite` puts them there; those of the last `Compress` are kept until then, and no
others. A place of 16 granules is filled with the full slot again. The interpreter's lock is dropped
for each slot.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress

from lmkv import _native
from lmkv.core import geometry, wire, zstd
from lmkv.core.geometry import GRANULES_A_SLOT
from lmkv.core.messages import Compress, Compressed, Message, PullResult, Rewrite, Rewritten
from lmkv.core.waker import Waker

KEY, PLACE, COUNTER = wire.KEY_BYTES, wire.PLACE_BYTES, wire.COUNTER_BYTES
WAITING = 16  # questions
LOWEST = 19  # of priorities
IMAGES = 64 << 20  # bytes of compressed slots that are kept, or one slot
FAILURES = MemoryError, RuntimeError, ValueError  # of one slot; the thread lives on

Answer = tuple[bytes, list[bytes]]  # routing id, frames


class Codec:
    """`pool` None: it is in a GPU's memory, where nothing is compressed. `fd` is readable when
    answers() has something."""

    def __init__(
        self, rank: int, pool: _native.PoolMap | None, layouts: Sequence[str], granule_bytes: int
    ) -> None:
        self._rank = rank
        self._pool = pool
        self._layouts = [(geometry.slot_layout(text), geometry.codec(text)) for text in layouts]
        self._granule_bytes = granule_bytes
        self._images: dict[tuple[bytes, int], tuple[int, bytes]] = {}  # layout's number, image
        self._asked: queue.Queue[tuple[bytes, Message, list[bytes], int]] = queue.Queue(WAITING)
        self._answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="lmkv-codec", daemon=True)
        self._waker = Waker()
        self.fd = self._waker.fd

    def ask(
        self, identity: bytes, message: Compress | Rewrite, frames: list[bytes], epoch: int
    ) -> None:
        """`epoch` is our own. Raises WireError. One too many is not answered: its asker has a
        deadline."""
        if isinstance(message, Compress):
            n = wire.counts(frames, KEY, PLACE, COUNTER)
            most = max(1, IMAGES // (GRANULES_A_SLOT * self._granule_bytes))
            if n > most:
                raise wire.WireError(f"compress: {n} slots, allowed are {most} at once")
        else:
            wire.counts(frames, KEY, PLACE, COUNTER, PLACE, COUNTER)
        with suppress(queue.Full):
            self._asked.put_nowait((identity, message, frames, epoch & 0xFFFFFFFF))
        if self._thread.ident is None:
            self._thread.start()

    def answers(self) -> Iterator[Answer]:
        self._waker.clear()
        while not self._answers.empty():
            yield self._answers.get()

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST)
        while True:
            identity, message, frames, epoch = self._asked.get()
            if isinstance(message, Compress):
                answer = self._compress(message, frames, epoch)
            else:
                answer = self._rewrite(message, frames, epoch)
            self._answers.put((identity, answer))
            self._waker.wake()

    def _compress(self, message: Message, frames: list[bytes], epoch: int) -> list[bytes]:
        assert isinstance(message, Compress)
        self._images.clear()
        answer = Compressed(self._rank, message.job)
        results, granules = bytearray(), bytearray()
        try:
            zstd.load()
        except zstd.ZstdError as error:
            answer.error = str(error)
        for key, place, counter in _slots(*frames):
            result, image = PullResult.MOVER_DOWN, b""
            with suppress(*FAILURES):
                if not answer.error:
                    result, number, image = self._image(key, place, epoch << 32 | counter)
            results.append(result)
            size = -(-len(image) // self._granule_bytes)
            fits = 0 < size < GRANULES_A_SLOT
            granules.append(size if fits else 0)
            if fits:
                self._images[key, counter] = number, image
        return wire.encode(answer, bytes(results), bytes(granules))

    def _image(self, key: bytes, place: bytes, generation: int) -> tuple[int, int, bytes]:
        """(PullResult, which layout, the compressed slot but for its header)."""
        found: tuple[int, int, bytes] = PullResult.GONE, 0, b""
        address = self._address(place)
        if address is None:
            return found
        for number, (layout, codec) in enumerate(self._layouts):
            status, image = _native.compress_slot(address, layout, key, generation, codec)
            found = status, number, image
            if status != PullResult.INCOMPATIBLE:
                break
        return found

    def _rewrite(self, message: Message, frames: list[bytes], epoch: int) -> list[bytes]:
        assert isinstance(message, Rewrite)
        keys, old, old_counters, places, counters = frames
        results = bytearray()
        with suppress(zstd.ZstdError):  # then nothing is GOOD
            zstd.load()
        for (key, place, counter), (_, to, own) in zip(
            _slots(keys, old, old_counters), _slots(keys, places, counters)
        ):
            theirs, ours = epoch << 32 | counter, epoch << 32 | own
            result: int = PullResult.MOVER_DOWN
            with suppress(*FAILURES):
                if to[4] == GRANULES_A_SLOT:
                    result = self._expand(key, place, theirs, to, ours)
                else:
                    result = self._place(key, counter, to, ours)
            results.append(result)
        return wire.encode(Rewritten(self._rank, message.job), bytes(results))

    def _place(self, key: bytes, counter: int, place: bytes, generation: int) -> int:
        """A PullResult."""
        number, image = self._images.pop((key, counter), (0, b""))
        room = place[4] * self._granule_bytes
        address = self._cleared(place) if 0 < len(image) <= room else None
        if address is None:
            return PullResult.GONE
        layout, codec = self._layouts[number]
        _native.place_compressed(address, room, layout, key, generation, codec, image)
        return PullResult.GOOD

    def _expand(self, key: bytes, place: bytes, theirs: int, to: bytes, ours: int) -> int:
        """A PullResult."""
        address, target = self._address(place), self._cleared(to)
        if address is None or target is None:
            return PullResult.GONE
        room = place[4] * self._granule_bytes
        result: int = PullResult.GONE
        for layout, _ in self._layouts:
            result = _native.expand_slot(address, room, layout, key, theirs, target, ours)
            if result != PullResult.INCOMPATIBLE:
                break
        return result

    def _address(self, place: bytes) -> int | None:
        """None: it is in no segment that is here."""
        try:
            return self._pool.slot_address(place) if self._pool is not None else None
        except ValueError:
            return None

    def _cleared(self, place: bytes) -> int | None:
        """Of a reserved place, in which no reader finds an older slot any more. None: as above."""
        address = self._address(place)
        if address is not None and self._pool is not None:
            self._pool.clear(place)
        return address


def _slots(keys: bytes, places: bytes, counters: bytes) -> Iterator[tuple[bytes, bytes, int]]:
    for i in range(len(keys) // KEY):
        counter = counters[i * COUNTER : (i + 1) * COUNTER]
        yield (
            keys[i * KEY : (i + 1) * KEY],
            places[i * PLACE : (i + 1) * PLACE],
            int.from_bytes(counter, "little"),
        )
