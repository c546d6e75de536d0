"""Pulls over real NIXL, between two processes; UCX runs in neither of them but these.

The reader pulls while the holder changes its slots; then the holder is killed, and another life of
it comes up at the same pool address, as a mover's pool always is: what was known of the first one
must bring nothing.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from lmkv import _native
from lmkv.worker.supervise import MoverSettings, environment

from tests.soak import holder
from tests.soak.corruption import Ask
from tests.soak.pulls import Cases, Reader
from tests.soak.slots import EARLIER, GRANULES, THEIRS, Shape, Truth, place
from tests.soak.tally import GONE, GOOD, PEER_DEAD, Tally

TLS = {"cma": "cma,tcp,self", "tcp": "tcp,self"}
JOB, JOBS = 16, 2  # chunks of a job, jobs at once
PATIENCE = 180.0  # seconds for an answer of a process, on a machine that does much else

spawn = get_context("spawn")


def ucx(tls: str) -> dict[str, str]:
    settings = MoverSettings("", nixl_tls=TLS[tls])
    return environment(settings, os.environ)


@dataclass
class Process:
    """A holder (holder.main): what it announces, and how it ends."""

    shape: Shape
    seed: int
    share: str = ""
    transport: tuple[str, dict[str, str]] | None = None
    epoch: int = THEIRS
    address: int = 0
    metadata: bytes = b""
    announced: Any = field(default_factory=lambda: spawn.RawArray("Q", holder.SLOTS))

    def __enter__(self) -> Process:
        ours, theirs = spawn.Pipe()
        self._stop = spawn.RawValue("b", 0)
        self.process = spawn.Process(
            target=holder.main,
            args=(theirs, self.shape, self.seed, self.announced, self._stop, self.share,
                  self.transport, self.epoch, self.address),
            daemon=True,
        )  # fmt: skip
        self.process.start()
        theirs.close()
        assert ours.poll(PATIENCE), "the holder does not come up"
        self.address, self.metadata = ours.recv()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.value = 1
        self.process.join(10)
        if self.process.is_alive():
            self.kill()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


@dataclass
class Work:
    """Of the reader: `tries` pulls from this peer, as row `row` unless the slot decides it."""

    name: str
    metadata: bytes
    address: int
    epoch: int
    tries: int
    seed: int
    row: str = ""
    expected: frozenset[int] = frozenset()


def read(commands: Connection, shape: Shape, seed: int, tls: str, name: str, old: Any,
         new: Any) -> None:  # fmt: skip
    """The reader's process: a `Work` in, a `Tally` out, until there is no more."""
    from lmkv.mover.transport import find_library

    os.environ.clear()
    os.environ.update(ucx(tls))
    truth = Truth(shape, seed)
    transport = _native.Transport("nixl", name, find_library().path)
    reader = Reader(truth, transport, JOB * JOBS)
    commands.send(Tally())
    while (work := commands.recv()) is not None:
        tally = Tally()
        pull(reader, truth, work, new if work.name.endswith("new") else old, tls, tally)
        commands.send(tally)
    os._exit(0)  # as a mover: UCX is not asked to tidy up


def pull(reader: Reader, truth: Truth, work: Work, announced: Any, tls: str, tally: Tally) -> None:
    random_ = random.Random(work.seed)
    granules = holder.SLOTS * GRANULES
    granule_bytes = truth.layout.granule_bytes
    peer = _native.PullPeer(
        work.name, work.metadata, work.address, granule_bytes, granules, granules
    )
    left = work.tries
    while left > 0:
        for job in range(min(JOBS, -(-left // JOB))):
            slots = random_.sample(range(holder.SLOTS), min(JOB, left))
            said = [divmod(announced[slot], 1 << 32) for slot in slots]
            reader.post(
                peer,
                Cases(
                    [work.row or holder.row(slot) for slot in slots],
                    [Ask(n, c, place(slot), GOOD) for (n, c), slot in zip(said, slots)],
                    [job * JOB + i for i in range(len(slots))],
                    reader.counters(len(slots)),
                    [work.expected or holder.expected(slot) for slot in slots],
                ),
                work.epoch,
            )
            left -= len(slots)
        reader.finish(tally, f"pull, NIXL {tls}")


def run(shape: Shape, tls: str, tries: int, seed: int, tally: Tally,
        progress: Callable[[int], None]) -> None:  # fmt: skip
    tag = f"soak-{os.getpid()}-{seed & 0xFFFFFFFF:x}-{tls}"
    old = Process(shape, seed, transport=(f"{tag}-first", ucx(tls)), epoch=EARLIER)
    few = max(8, tries // 100)
    ours, theirs = spawn.Pipe()
    announced = spawn.RawArray("Q", holder.SLOTS)
    reader = spawn.Process(
        target=read,
        args=(theirs, shape, seed, tls, f"{tag}-reader", old.announced, announced),
        daemon=True,
    )
    reader.start()
    theirs.close()

    def ask(work: Work | None) -> None:
        ours.send(work)
        if work is not None:
            answer()
            progress(work.tries)

    def answer() -> None:
        assert ours.poll(PATIENCE), f"NIXL {tls}: the reader does not answer"
        tally.add(ours.recv())  # EOFError: it has died

    try:
        answer()
        with old:
            known = Work("old", old.metadata, old.address, EARLIER, tries - 4 * few, seed)
            ask(known)
            old.kill()
        dead = frozenset({PEER_DEAD})
        ask(Work("old", old.metadata, old.address, EARLIER, few, seed, "mover was killed", dead))
        transport = (f"{tag}-second", ucx(tls))
        new = Process(shape, seed, transport=transport, address=old.address, announced=announced)
        with new:
            # By its port of old, where the new one has got it again, the other life's bytes come.
            either = frozenset({PEER_DEAD, GONE})
            row = "metadata of an earlier mover"
            ask(Work("old", old.metadata, old.address, EARLIER, few, seed, row, either))
            gone = frozenset({GONE})
            row = "of another life"
            ask(Work("old2", new.metadata, new.address, EARLIER, few, seed, row, gone))
            ask(Work("new", new.metadata, new.address, THEIRS, few, seed))
        ask(None)
        reader.join(10)
    finally:
        if reader.is_alive():
            reader.kill()
            reader.join()
