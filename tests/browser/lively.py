"""The simulator's agents on a real controller: a pair at rest, and a cluster with life in it."""

from __future__ import annotations

import random
import threading

from lmkv.sim.instance import CHUNK, Shape
from lmkv.sim.simulation import Plan, Simulation
from lmkv.sim.trace import BLOCK, Asked, tokens
from lmkv.sim.worker import Rates

INSTANCES = 10
JOB_RATE = 8 << 20  # bytes a second: a job takes its time
SHARED = 12  # beginnings that prompts have in common
SHAPE = Shape(slots=160, chunk_bytes=8 << 20, rates=Rates(4e9, 2e10), prefill=6000.0)
SMALL = Shape(slots=64, chunk_bytes=1 << 20, rates=Rates(1e12, 1e12), prefill=1e9)


class Simulated:
    """Instances of the simulator in a thread of their own, from `begin()` to `end()`."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def begin(self) -> None:
        self._thread.start()

    def end(self) -> None:
        self._over.set()
        self._thread.join(30)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        self.world = Simulation(self._plan)
        self.world.open()
        self.opened(self.world)
        while not self._over.is_set():
            self.live(self.world)
        self.world.settle(5.0)
        self.world.close()

    def opened(self, world: Simulation) -> None:
        """All are registered."""

    def live(self, world: Simulation) -> None:
        world.run_for(0.05)


class Pair(Simulated):
    """Two instances, of which one has been asked for `PROMPT`."""

    PROMPT = Asked(0.0, 5 * CHUNK + 1, (1, 2, 3))

    def __init__(self, controller: str) -> None:
        super().__init__(Plan(2, SMALL, [controller], []))

    def opened(self, world: Simulation) -> None:
        world.ask(self.PROMPT)


class Lively(Simulated):
    """Asked without end."""

    def __init__(self, controller: str, seed: int = 7) -> None:
        slow = {"job_bytes_per_second": JOB_RATE}
        super().__init__(
            Plan(INSTANCES, SHAPE, [controller], [], "random", seed=seed, settings=slow)
        )
        self._chance = random.Random(seed)
        self._next = 10_000

    def live(self, world: Simulation) -> None:
        for _ in range(self._chance.randrange(1, 7)):
            world.ask(self._asked())
        world.run_for(0.25)

    def _asked(self) -> Asked:
        """A beginning that others have too, some more often, and an end of its own."""
        shared = min(int(self._chance.expovariate(0.35)), SHARED - 1)
        blocks = _beginning(shared)
        for _ in range(self._chance.randrange(3)):
            self._next += 1
            blocks.append(self._next)
        return Asked(0.0, len(blocks) * BLOCK - self._chance.randrange(CHUNK), tuple(blocks))


def _beginning(shared: int) -> list[int]:
    return [shared * 100 + i for i in range(4 + shared)]


def prompt() -> list[int]:
    """Tokens that many have the beginning of, and nobody the end."""
    blocks = (*_beginning(9), 1)
    return tokens(Asked(0.0, len(blocks) * BLOCK, blocks))
