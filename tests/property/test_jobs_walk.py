"""Many jobs at once on three instances, at random: each ends, and leaves nothing behind.

In a walk of copies, moves and pins no chunk is ever nowhere, at any tick; in one where chunks are
cleared too, caches are reset and controllers come and go, every slot still holds what it should.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from lmkv.core.messages import ENDED, Command

from tests.job_cluster import Cluster

CHUNKS, STEPS, NAMES = 8, 60, "abc"
CALM = ["copy", "move", "move", "move", "pin", "unpin"]
ROUGH = ["copy", "move", "move", "pin", "unpin", "clear", "compress", "decompress"]


class Walk:
    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        settings = {"pin_share": 0.9, "on_reset": "keep"}
        self.cluster = Cluster(*NAMES, controllers=2, slots=24, **settings)  # type: ignore[arg-type]
        for n in range(CHUNKS):
            self.cluster[self.dice.choice(NAMES)].hold(n, n + 1)
        self.cluster.run(5)
        self.jobs: list[tuple[str, str]] = []  # id, instance

    def job(self, operation: str) -> None:
        """It is asked for; nobody waits for the answer."""
        dice, arguments = self.dice, dict[str, str]()
        where = dice.choice(NAMES)
        first = dice.randrange(CHUNKS)
        frames = [self.cluster["a"].keys(first, dice.randint(first + 1, CHUNKS))]
        if operation in ("copy", "move") and dice.random() < 0.8:
            arguments["source"] = dice.choice([name for name in NAMES if name != where])
        if operation == "pin":
            arguments["owner"] = "team"
        whole = operation != "pin" and operation != "unpin" and dice.random() < 0.3
        if whole and (arguments or operation not in ("copy", "move")):
            arguments["whole"], frames = "1", []
        self.jobs.append((f"j{len(self.jobs)}", where))
        self.command(Command(self.jobs[-1][0], operation, where, arguments), *frames)

    def act(self) -> None:
        """On one that there is."""
        if self.jobs:
            name, where = self.dice.choice(self.jobs)
            action = self.dice.choice(["cancel", "retry"])
            number = f"{action} {self.dice.random()}"
            self.command(Command(number, action, where, {"job": name}))

    def command(self, command: Command, *frames: bytes) -> None:
        command.request, command.deadline = 7, 5.0
        up = [each for each in self.cluster.controllers if each.up]
        self.dice.choice(up).command(command, *frames)

    # ------------------------------------------------------------ what befalls them

    def mover(self) -> None:
        name = self.dice.choice(NAMES)
        self.cluster[name].mover(f"sim://mover?{self.dice.random()}")

    def unreadable(self) -> None:
        gone = self.cluster.gone_movers
        self.dice.choice([gone.add, gone.discard, gone.discard])(self.dice.choice(NAMES))

    def reset(self) -> None:
        if self.dice.random() < 0.2:
            self.cluster[self.dice.choice(NAMES)].agent.reset()

    def controller(self) -> None:
        """One goes, or all are there again."""
        all_up = all(each.up for each in self.cluster.controllers)
        self.dice.choice(self.cluster.controllers).up = not all_up
        if not all_up:
            for each in self.cluster.controllers:
                each.up = True
        self.cluster.run(self.dice.choice([1, 50, 400]))

    def stores(self) -> None:
        instance = self.cluster[self.dice.choice(NAMES)]
        for n in [*self.dice.sample(range(CHUNKS), 4), 100 + self.dice.randrange(400)]:
            room = instance.agent.table.granules()
            free = room["free"] + room["readable"] + room["retired"] >= 32
            if free and instance.agent.table.contains(instance.keys(n, n + 1)) == b"\0":
                instance.hold(n, n + 1)

    # ------------------------------------------------------------ the end

    def run(self, ticks: int, look: Callable[[], None]) -> None:
        for _ in range(ticks):
            self.cluster.tick()
            look()

    def end(self, look: Callable[[], None]) -> None:
        self.cluster.gone_movers.clear()
        for each in self.cluster.controllers:
            each.up = True
        agents = [self.cluster[name].agent for name in NAMES]
        for _ in range(6000):
            if not any(agent.jobs.open for agent in agents):
                break
            self.run(1, look)
        for agent in agents:
            for _, message in agent.jobs.news(0):
                part = message.part  # type: ignore[attr-defined]
                assert part.state in ENDED, part
                assert part.state == "done" or part.code not in ("", "failed"), part
                assert part.chunks <= part.chunks_total or not part.chunks_total, part
        assert list(self.cluster.at_rest()) == []

    def nothing_lost(self) -> None:
        there = set().union(*(self.cluster[name].has(0, CHUNKS) for name in NAMES))
        assert there == set(range(CHUNKS))


@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_copied_and_moved_at_once_no_chunk_is_lost(seed: int) -> None:
    walk = Walk(seed)
    for _ in range(STEPS):
        walk.dice.choice([*[lambda: walk.job(walk.dice.choice(CALM))] * 6, walk.act, walk.mover])()
        walk.unreadable()
        walk.run(walk.dice.choice([0, 1, 2, 3, 8]), walk.nothing_lost)
    walk.end(walk.nothing_lost)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_befalls_them_jobs_end_and_leave_nothing_behind(seed: int) -> None:
    walk = Walk(seed)
    befalls = [walk.act, walk.mover, walk.unreadable, walk.reset, walk.controller, walk.stores]
    for _ in range(STEPS):
        walk.dice.choice([*[lambda: walk.job(walk.dice.choice(ROUGH))] * 8, *befalls])()
        walk.run(walk.dice.choice([0, 1, 2, 3, 8]), lambda: None)
    walk.end(lambda: None)
