"""The parts of a soak in turn, for each shape of slots; all of them from one seed."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

from lmkv.core.messages import PullPeer

from tests.soak import holder, nixl
from tests.soak.mapped import Loader, Mapped, mapped_by_another, rank_info
from tests.soak.pulls import Pulls
from tests.soak.slots import SHAPES, THEIRS, Shape, Truth
from tests.soak.tally import Tally

Progress = Callable[[str, int], None]


@dataclass(frozen=True)
class Plan:
    """Tries by part, over all shapes; NIXL's shape is the first."""

    pulls: int
    mapped: int
    changing: int  # mapped, while another process changes the slots
    nixl: int  # by each of cross-memory attach and TCP

    @property
    def tries(self) -> int:
        return self.pulls + self.mapped + self.changing + len(nixl.TLS) * self.nixl


FULL = Plan(pulls=560_000, mapped=360_000, changing=60_000, nixl=10_000)
SMALL = Plan(pulls=9_000, mapped=6_000, changing=1_500, nixl=400)


def pulls(plan: Plan, seed: int, tally: Tally, progress: Progress) -> None:
    for number, (shape, tries) in enumerate(shares(plan.pulls)):
        Pulls(Truth(shape, seed), seed + number).run(
            tries, tally, lambda n: progress("pulls, loopback", n)
        )


def mapped(plan: Plan, seed: int, tally: Tally, progress: Progress) -> None:
    with tempfile.TemporaryDirectory(prefix="lmkv-soak-", dir="/tmp") as folder:
        for number, (shape, tries) in enumerate(shares(plan.mapped)):
            part = Mapped(Truth(shape, seed), seed + number, folder)
            try:
                part.run(tries, tally, lambda n: progress("mapped", n))
            finally:
                part.close()


def changing(plan: Plan, seed: int, tally: Tally, progress: Progress) -> None:
    with tempfile.TemporaryDirectory(prefix="lmkv-soak-", dir="/tmp") as folder:
        for number, (shape, tries) in enumerate(shares(plan.changing)):
            truth = Truth(shape, seed)
            loader = Loader(truth, folder)
            share = f"{folder}/{number}.share"
            try:
                with nixl.Process(shape, seed, share) as other:
                    info = rank_info(other.address, truth.layout, holder.SLOTS, share)
                    peer = PullPeer("changing", THEIRS, 1, info)
                    mapped_by_another(
                        loader, peer, other.announced, tries, seed + number, tally,
                        lambda n: progress("mapped, changing", n),
                    )  # fmt: skip
            finally:
                loader.close()


def over_nixl(plan: Plan, seed: int, tally: Tally, progress: Progress) -> None:
    for tls in nixl.TLS:
        nixl.run(SHAPES[0], tls, plan.nixl, seed, tally, lambda n: progress("pulls, NIXL", n))


PARTS = (pulls, mapped, changing, over_nixl)


def shares(tries: int) -> list[tuple[Shape, int]]:
    part = tries // len(SHAPES)
    return [(shape, part + (tries % len(SHAPES) if not n else 0)) for n, shape in enumerate(SHAPES)]


class Printed:
    """A line every few seconds."""

    EVERY = 5.0

    def __init__(self, of: int, say: Callable[[str], None]) -> None:
        self._of, self._say = of, say
        self._done, self._begin = 0, time.monotonic()
        self._next = self._begin + self.EVERY

    def __call__(self, part: str, n: int) -> None:
        self._done += n
        now = time.monotonic()
        if now >= self._next:
            self._next = now + self.EVERY
            self._say(f"{now - self._begin:4.0f} s  {self._done:9,} of {self._of:,}  {part}")
