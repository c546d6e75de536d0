"""pin: chunks are kept until a time, or until their owner unpins them; and unpin."""

from __future__ import annotations

from collections.abc import Mapping

from lmkv.agent.commands import Failed
from lmkv.agent.jobs import Run, Steps, seconds
from lmkv.agent.pins import Full


def needs_an_end(arguments: Mapping[str, str], whole: bool) -> None:
    """The check of `pin`: it has an expiry or an owner."""
    if not seconds(arguments, "ttl") and not arguments.get("owner"):
        text = "ttl: a pin needs one (seconds above 0), or an owner who unpins it"
        raise Failed("field", text, "ttl")


def pin(run: Run) -> Steps:
    """All that are here, or none: what it would take is known before the first is pinned."""
    pins = run.agent.pins
    more, known = 0, 0
    for keys in run.batches():
        for key in keys:
            slot = pins.find(key)
            if slot is None:
                run.count(1, skipped="absent")
            else:
                known += 1
                more += 0 if pins.holds(key) else slot[0][4]
        yield
    if not known:
        raise Failed("unknown_prefix", "none of these chunks is here")
    if pins.granules + more > pins.allowed:
        raise Failed("no_room", pins.full(more))
    name = run.part.id
    kept = False
    try:
        pins.begin(name, run.part.owner, run.part.ttl)
        for keys in run.batches():
            pins.add(name, keys)
            yield
        chunks, size = pins.size(name)
        if not chunks:
            raise Failed("unknown_prefix", "these chunks went before they were pinned")
        run.count(chunks, size)
        run.count(max(0, known - chunks), skipped="absent")
        pins.commit(name)
        kept = True
    except Full as full:
        raise Failed("no_room", str(full)) from None
    finally:
        if not kept:
            pins.release(name)


def unpin(run: Run) -> Steps:
    """Every pin that lies within the prefix, of the owner where one is given."""
    pins = run.agent.pins
    keys = None if run.keys is None else frozenset(run.keys)
    names = pins.within(keys, run.part.owner)
    run.part.chunks_total = sum(pins.size(name)[0] for name in names)
    for name in names:
        if name in pins:  # its time may have come meanwhile
            chunks, size = pins.size(name)
            pins.release(name)
            run.count(chunks, size)
        yield
