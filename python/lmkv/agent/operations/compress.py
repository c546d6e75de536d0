"""compress: readable slots are compressed where that frees a granule; decompress: full ones again.

A batch at a time: every rank's mover compresses -> room for the largest of the ranks' -> every rank
writes -> the new slots take the names of the old ones in one step. Until then the old ones serve
loads and peers; after it their bytes stay until they are reused. A chunk that does not shrink stays
as it is (`unchanged`), as does one that a load reads or an operator has pinned (`pinned`).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from lmkv.agent.commands import Failed
from lmkv.agent.jobs import SOON, STEP, Run, Steps
from lmkv.agent.relay import POLL
from lmkv.core import wire
from lmkv.core.geometry import DEVICE, GRANULES_A_SLOT
from lmkv.core.messages import Compress, PullResult, Rewrite

BATCH_BYTES = 32 << 20  # of a rank's pool: a mover keeps what it has compressed
PLACE, COUNTER = wire.PLACE_BYTES, wire.COUNTER_BYTES
PINNED = 2  # of SlotTable.replace()

WORDS = {
    PullResult.GONE: "absent",
    PullResult.DIGEST: "absent",
    PullResult.INCOMPATIBLE: "incompatible",
}


@dataclass
class _Chunk:
    key: bytes
    place: bytes
    counter: bytes
    granules: int = GRANULES_A_SLOT  # of the new slot


def compress(run: Run) -> Steps:
    yield from _all(run, short=True)


def decompress(run: Run) -> Steps:
    yield from _all(run, short=False)


def _all(run: Run, short: bool) -> Steps:
    infos = run.agent.infos
    if infos[0].tier == DEVICE:
        text = "this instance's pool is in a GPU's memory, where nothing is compressed"
        raise Failed("unavailable", text)
    slot = max(info.granule_bytes for info in infos) * GRANULES_A_SLOT
    most = max(1, min(STEP, BATCH_BYTES // max(1, slot)))
    there, seen = 0, set[bytes]()
    for keys in run.batches(most):
        if run.keys is None:  # what has been moved to the pool's other end comes by once more
            keys = [key for key in keys if key not in seen]
            seen.update(keys)
        there += len(keys)
        yield from _batch(run, keys, short, slot * len(infos))
        yield SOON
    absent = run.part.skipped.get("absent", 0)
    if run.keys and absent == there:
        raise Failed("unknown_prefix", "this instance has none of these chunks")


def _batch(run: Run, keys: Sequence[bytes], short: bool, size: int) -> Steps:
    """One batch at a time of all jobs: another one may be at these chunks. A full slot has `size`
    bytes in all ranks."""
    rewrites = run.agent.rewrites
    while rewrites.taken:
        yield POLL
    rewrites.taken = True
    try:
        chunks = _fitting(run, keys, short)
        if chunks:
            yield from run.paced(len(chunks) * size)
        if chunks and short:
            chunks = yield from _compressed(run, chunks)
        if chunks:
            yield from _rewritten(run, chunks)
    finally:
        rewrites.taken = False


def _fitting(run: Run, keys: Sequence[bytes], short: bool) -> list[_Chunk]:
    """Those that have the other form now."""
    table, found = run.agent.table, []
    for key in keys:
        place, counter, n = table.places(key)
        if not n:
            run.count(1, skipped="absent")
        elif (place[4] == GRANULES_A_SLOT) != short:
            run.count(1, skipped="unchanged")
        elif run.agent.pins.holds(key):
            run.count(1, skipped="pinned")
        else:
            found.append(_Chunk(key, place, counter))
    return found


def _compressed(run: Run, chunks: list[_Chunk]) -> Generator[float, None, list[_Chunk]]:
    """Those that shrink, with their granules."""
    rewrites = run.agent.rewrites
    answers = yield from rewrites.ask(Compress(rewrites.number()), _arrays(chunks))
    good = _good(run, chunks, [_bytes(answer, 2, chunks)[0] for answer in answers])
    sizes = [_bytes(answer, 2, chunks)[1] for answer in answers]
    shrunk = []
    for i, chunk in enumerate(chunks):
        if not good[i]:
            continue
        if not all(size[i] for size in sizes):
            run.count(1, skipped="unchanged")
            continue
        chunk.granules = max(size[i] for size in sizes)
        shrunk.append(chunk)
    return shrunk


def _rewritten(run: Run, chunks: list[_Chunk]) -> Steps:
    agent = run.agent
    keys = b"".join(chunk.key for chunk in chunks)
    own = agent.table.reserve_again(keys, run.clock(), bytes(chunk.granules for chunk in chunks))
    if own is None:
        slots = agent.table.granules()
        text = (
            f"{len(chunks)} slots of the pool are needed and fewer can be taken: "
            f"{slots['pinned'] // GRANULES_A_SLOT} of {agent.table.usable} are pinned or being read"
        )
        raise Failed("no_room", text)
    number = agent.rewrites.number()
    try:
        answers = yield from agent.rewrites.ask(Rewrite(number), [*_arrays(chunks), *own])
        good = _good(run, chunks, [_bytes(answer, 1, chunks)[0] for answer in answers])
        for i, chunk in enumerate(chunks):
            place, counter = own[0][i * PLACE : (i + 1) * PLACE], own[1][i * COUNTER :][:COUNTER]
            if good[i]:
                _replace(run, chunk, place, counter)
    finally:
        agent.rewrites.abandon(number, *own)  # what has been replaced is reserved no longer


def _replace(run: Run, chunk: _Chunk, place: bytes, counter: bytes) -> None:
    agent = run.agent
    if agent.events is not None:
        agent.events.moved(chunk.key, chunk.place, place)
    replaced = agent.table.replace(place, counter, chunk.place, chunk.counter)[0]
    if not replaced or replaced == PINNED:
        run.count(1, skipped="pinned" if replaced else "absent")
        return
    run.count(1, abs(agent.room(chunk.place) - agent.room(place)))


def _good(run: Run, chunks: Sequence[_Chunk], answers: Sequence[bytes]) -> list[bool]:
    """Which every rank has done; the others are counted."""
    good = []
    for i in range(len(chunks)):
        worst = max(results[i] for results in answers)
        good.append(worst == PullResult.GOOD)
        if worst in WORDS:
            run.count(1, skipped=WORDS[worst])
        elif worst != PullResult.GOOD:
            raise Failed("mover_down", "a mover of this instance could not do it")
    return good


def _arrays(chunks: Sequence[_Chunk]) -> list[bytes]:
    return [
        b"".join(chunk.key for chunk in chunks),
        b"".join(chunk.place for chunk in chunks),
        b"".join(chunk.counter for chunk in chunks),
    ]


def _bytes(frames: Sequence[bytes], n: int, chunks: Sequence[_Chunk]) -> Sequence[bytes]:
    if [len(frame) for frame in frames] != [len(chunks)] * n:
        sizes = [len(frame) for frame in frames]
        raise Failed("failed", f"a mover answered frames of {sizes} bytes for {len(chunks)} chunks")
    return frames
