"""A run: many instances, their controllers, and requests that come as a trace says.

make_room() -> Simulation(...) -> open() -> feed() -> settle() -> report() -> close()
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lmkv.core.clock import Clock, Deadline, monotonic
from lmkv.core.config import InstanceConfig, load
from lmkv.core.keyfiles import ClientKeys
from lmkv.sim import trace
from lmkv.sim.controllers import NoController, Usage, status, usage, whole
from lmkv.sim.hub import Hub
from lmkv.sim.instance import Instance, Seen, Shape
from lmkv.sim.report import ControllerUse, Run, latency
from lmkv.sim.visible import Sampler
from lmkv.sim.worker import Worker

LONGEST = 0.05  # seconds of a turn in which nothing happens
ASK_EVERY = 0.5  # seconds between two questions whether controllers are whole
REGISTERED = 60.0  # seconds that all have for it
SETTLED = 30.0  # seconds that requests have to end after the last one came


@dataclass
class Plan:
    """What is asked of a run."""

    instances: int
    shape: Shape
    controllers: list[str]
    pids: list[int]  # of those that were started for it
    route: str = "round_robin"
    seed: int = 1
    settings: dict[str, Any] | None = None  # InstanceConfig's
    keys: ClientKeys | None = None  # where controllers ask for them


class Simulation:
    def __init__(self, plan: Plan, clock: Clock = monotonic) -> None:
        self.plan = plan
        self.seen = Seen()
        self.hub = Hub(clock, plan.keys)
        config = load(InstanceConfig, {"controllers": plan.controllers, **(plan.settings or {})})
        self.instances = [
            Instance(f"sim-{i:05d}", config, plan.shape, self.hub, self.seen, self._worker)
            for i in range(plan.instances)
        ]
        self._by_name = {instance.name: instance for instance in self.instances}
        self._router = router(plan.route, len(self.instances), plan.seed)
        self._sampler = Sampler(plan.controllers, self.hub)
        for instance in self.instances:
            instance.worker.on_stored = self._sampler.take
        self._began, self._use = clock(), self._usages()

    def _worker(self, name: str, epoch: int) -> Worker | None:
        found = self._by_name.get(name)
        return found.worker if found is not None and found.agent.epoch == epoch else None

    # ------------------------------------------------------------ the run

    def open(self, controllers: Sequence[str] | None = None) -> None:
        """Until all are registered, at all controllers or at these. Raises NoController."""
        for instance in self.instances:
            instance.open()
            self.turn(0.0)
        until = Deadline(REGISTERED, self.hub.clock)
        while not self.whole(controllers=controllers):
            if until.over:
                raise NoController(
                    f"the controllers do not have all {len(self.instances)} instances "
                    f"after {REGISTERED:g} s"
                )
            self.run_for(ASK_EVERY)
        self._began, self._use = self.hub.clock(), self._usages()
        self.hub.late.clear()

    def whole(self, keys: int = 0, controllers: Sequence[str] | None = None) -> bool:
        """Whether each controller knows all instances and has at least so many keys."""
        where = controllers or self.plan.controllers
        return whole(where, len(self.instances), keys, self.plan.keys)

    def turn(self, longest: float = LONGEST) -> None:
        self.hub.turn(longest)

    def run_for(self, seconds: float) -> None:
        until = Deadline(seconds, self.hub.clock)
        while not until.over:
            self.turn(min(LONGEST, until.left()))

    def feed(self, requests: Iterable[trace.Asked], rate: float, seconds: float) -> None:
        """Ask as the trace does, `rate` times as fast, and end after so many seconds."""
        began = self.hub.clock()
        for asked in requests:
            at = began + min(asked.at / rate, seconds)
            while (left := at - self.hub.clock()) > 0:
                self.turn(min(LONGEST, left))
            if asked.at / rate >= seconds:
                return
            self.turn(0.0)
            self.ask(asked)

    def ask(self, asked: trace.Asked) -> None:
        self.instances[self._router(asked.blocks)].ask(trace.tokens(asked))

    def settle(self, seconds: float = SETTLED) -> None:
        """Until every request has ended and every controller has heard of it."""
        until = Deadline(seconds, self.hub.clock)
        while not until.over and any(instance.busy for instance in self.instances):
            self.run_for(LONGEST)
        self.run_for(1.0)  # a heartbeat

    def close(self) -> None:
        for instance in self.instances:
            instance.leave()
        self._sampler.close()
        self.hub.close()

    # ------------------------------------------------------------ what was found

    def _usages(self) -> list[Usage]:
        return [usage(pid) for pid in (*self.plan.pids, os.getpid())]

    def report(self) -> Run:
        seconds = self.hub.clock() - self._began
        totals = {"hit": Counter[str](), "miss": Counter[str]()}
        counts: Counter[str] = Counter()
        pulled: Counter[str] = Counter()
        for instance in self.instances:
            for kind, tokens in instance.agent.stats.totals().items():
                totals[kind] += tokens
            taken = instance.agent.stats.take()
            pulled.update({k: int(n) for k, n in taken.get("pulled_chunks", {}).items()})
            for name in ("announced_keys", "retracted_keys"):
                counts[name] += int(taken.get(name, 0))
        hits, misses = totals["hit"], totals["miss"]
        before, now = self._use, self._usages()
        used = [100 * (b.cpu_seconds - a.cpu_seconds) / seconds for a, b in zip(before, now)]
        return Run(
            pool_chunks=self.plan.shape.slots,
            instances=len(self.instances),
            seconds=round(seconds, 3),
            requests=self.seen.begun,
            unfinished=self.seen.begun - self.seen.ended,
            hit_rate=round(hits.total() / max(1, hits.total() + misses.total()), 4),
            hit_tokens=_told(hits),
            miss_tokens=_told(misses),
            pulled_chunks=_told(pulled),
            announced_chunks=counts["announced_keys"],
            retracted_chunks=counts["retracted_keys"],
            locates=self.seen.locates_sent,
            resent=self.seen.resent,
            late=self.seen.late,
            locate=latency(self.seen.locates),
            switched=latency(self.seen.switched),
            known=latency(self.seen.waits),
            visible=latency(self._sampler.seconds),
            never_visible=self._sampler.never,
            controllers=[
                self._controller(i, address, used, now)
                for i, address in enumerate(self.plan.controllers)
            ],
            simulator_cpu_percent=round(used[-1], 1),
            simulator_rss_mib=round(now[-1].rss_mib, 1),
            simulator_late=latency(self.hub.late),
        )

    def _controller(
        self, i: int, address: str, used: Sequence[float], now: Sequence[Usage]
    ) -> ControllerUse:
        info = status(address, keys=self.plan.keys)
        use = ControllerUse(
            address,
            info.state,
            info.keys,
            sum(n for state, n in info.states.items() if state != "dead"),
            info.drifts,
            info.resyncs,
            round(info.lag, 3),
        )
        if self.plan.pids:
            use.cpu_percent, use.rss_mib = round(used[i], 1), round(now[i].rss_mib, 1)
        return use


def _told(counts: Counter[str]) -> dict[str, int]:
    return {name: n for name, n in sorted(counts.items()) if n}


# ---------------------------------------------------------------- whom a request goes to

Router = Callable[[Sequence[int]], int]  # a prompt's blocks -> the number of an instance


def router(kind: str, instances: int, seed: int) -> Router:
    """`round_robin`, `random`, or `prefix`: who was last sent the longest part of it."""
    turns = _round(instances)
    chance = random.Random(seed)
    last: dict[int, int] = {}  # by block, which stands for all before it too

    def by_prefix(blocks: Sequence[int]) -> int:
        chosen = next((last[b] for b in reversed(blocks) if b in last), None)
        if chosen is None:
            chosen = next(turns)
        last.update(dict.fromkeys(blocks, chosen))
        return chosen

    return {
        "round_robin": lambda blocks: next(turns),
        "random": lambda blocks: chance.randrange(instances),
        "prefix": by_prefix,
    }[kind]


def _round(instances: int) -> Iterator[int]:
    while True:
        yield from range(instances)
