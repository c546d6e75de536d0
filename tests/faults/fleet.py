"""Simulated instances that ask without pause, in a process of their own: commands come by stdin.

`python -m tests.faults.fleet CONTROLLERS INSTANCES SETTINGS FIRST` (addresses with commas; JSON)
prints a JSON line once all are registered at the first few controllers, and one for each command:

    tell   counts since the start, and how many instances may ask each controller, and ask it first
    rest   ask no more, let all end; then the same
    agree  by controller: keys whose holders there are not exactly those whose tables have them
    go     ask again
"""

from __future__ import annotations

import json
import select
import sys
from collections import Counter
from itertools import count
from typing import Any

from lmkv.core import wire
from lmkv.core.client import Client
from lmkv.core.geometry import GRANULES_A_SLOT
from lmkv.core.messages import MAX_KEYS, Lookup, LookupInfo, Status, StatusInfo
from lmkv.sim.instance import CHUNK, Shape
from lmkv.sim.report import latency
from lmkv.sim.room import make_room
from lmkv.sim.simulation import Plan, Simulation
from lmkv.sim.trace import Asked
from lmkv.sim.worker import Rates

EVERY = 0.02  # seconds between two requests
TALKS = 7  # another number than of instances, so that turns wander
CHUNKS = 8  # of a talk, then another one begins
SLOTS = 128


class Fleet:
    def __init__(
        self, controllers: list[str], instances: int, settings: dict[str, Any], first: int
    ) -> None:
        make_room(instances, len(controllers))
        shape = Shape(SLOTS, 1 << 16, Rates(1e12, 1e12), 1e8)
        plan = Plan(instances, shape, controllers, [], settings=settings)
        self.simulation = Simulation(plan)
        self.simulation.open(controllers[:first])
        self._ids = count(1)
        self._talks = [[next(self._ids)] for _ in range(TALKS)]
        self._turns = count()
        self._next = 0.0
        self._asks = True

    def run(self) -> None:
        """Until the end of stdin."""
        self._say(self.tell())
        while True:
            if self._asks and self.simulation.hub.clock() >= self._next:
                self._ask()
            self.simulation.turn(0.005)
            if select.select([sys.stdin], [], [], 0)[0]:
                command = sys.stdin.readline().strip()
                if not command:
                    return
                self._say(getattr(self, command)())

    @staticmethod
    def _say(what: Any) -> None:
        print(json.dumps(what), flush=True)

    def _ask(self) -> None:
        self._next = self.simulation.hub.clock() + EVERY
        talk = self._talks[next(self._turns) % TALKS]
        if len(talk) >= CHUNKS:
            talk.clear()
        talk.append(next(self._ids))
        self.simulation.ask(Asked(0.0, 2 * CHUNK * len(talk), tuple(talk)))

    # ------------------------------------------------------------ commands

    def tell(self) -> dict[str, Any]:
        instances, seen = self.simulation.instances, self.simulation.seen
        causes: Counter[str] = Counter()
        asked: Counter[str] = Counter()
        first: Counter[str] = Counter()
        for instance in instances:
            for kind in instance.agent.stats.totals().values():
                causes += kind
            order = instance.agent.streams.order()
            asked.update(order)
            first.update(order[:1])
        switched = latency(seen.switched)
        return {
            "begun": seen.begun,
            "ended": seen.ended,
            "causes": dict(causes),
            "locates": seen.locates_sent,
            "resent": seen.resent,
            "switched": [switched.count, switched.p50, switched.p99, switched.most],
            "locate_p99": latency(seen.locates).p99,
            "asked": dict(asked),
            "first": dict(first),
        }

    def rest(self) -> dict[str, Any]:
        self._asks = False
        self.simulation.settle()
        return self.tell()

    def go(self) -> dict[str, Any]:
        self._asks = True
        return self.tell()

    def agree(self) -> dict[str, Any]:
        """By controller: [state, how many keys it has, how many differ]."""
        held: dict[bytes, list[str]] = {}
        for instance in self.simulation.instances:
            keys, _, _ = instance.agent.table.slice(0, SLOTS * GRANULES_A_SLOT)
            for i in range(0, len(keys), wire.KEY_BYTES):
                held.setdefault(keys[i : i + wire.KEY_BYTES], []).append(instance.name)
        return {
            "keys": len(held),
            "controllers": {
                address: self._differ(address, held) for address in self.simulation.plan.controllers
            },
        }

    def _differ(self, address: str, held: dict[bytes, list[str]]) -> list[Any]:
        assert len(held) <= MAX_KEYS
        with Client(address, 20.0) as client:
            status, _ = client.ask(Status(1, brief=True))
            found, _ = client.ask(Lookup(2, like="sim-00000"), b"".join(held))
        assert isinstance(status, StatusInfo) and isinstance(found, LookupInfo)
        wrong = sum(a != sorted(b) for a, b in zip(found.holders, held.values(), strict=True))
        return [status.state, status.keys, wrong]


if __name__ == "__main__":
    addresses, number, given, there = sys.argv[1:]
    Fleet(addresses.split(","), int(number), json.loads(given), int(there)).run()
