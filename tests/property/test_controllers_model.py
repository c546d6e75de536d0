"""Several controllers and several instances over connections that break, and processes that stop.

Registries, streams and slot tables are the real ones; connections and the clock are the model's. A
connection that breaks loses what was sent last. What had arrived before is heard, at a controller
perhaps after the messages of the next connection and under another routing id, as ZMQ's ROUTER does
it. After ten seconds in which nothing happens, every controller knows exactly what every table has.
"""

from __future__ import annotations

from collections import deque
from unittest import mock

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from lmkv._native import SlotTable
from lmkv.agent import stream
from lmkv.agent.stats import Stats
from lmkv.agent.streams import Streams
from lmkv.controller.registry import Registry
from lmkv.core import wire
from lmkv.core.clock import ManualClock
from lmkv.core.config import ControllerConfig
from lmkv.core.messages import RankInfo, Register

from tests.slot_tables import keys
from tests.stub_instance import HOST_A, LAYOUT, NAMESPACE

SLOTS, QUEUE, STEP, REST = 8, 4, 0.25, 10.0
# So small that they are met: outboxes overflow, and a sync has several slices.
SMALL = {"OUTBOX": 6, "SLICES_A_PUMP": 2, "MAX_KEYS": 3}
CONFIG = ControllerConfig(warming_least=0.5, warming_most=1.0, syncs_at_once=2)
WHO = st.integers(0, 2)
SOME = st.lists(st.integers(0, 11), min_size=1, max_size=4, unique=True)
LOST = st.integers(0, 5)

Frames = list[bytes]


class Connection:
    """Between an instance and a controller. `stale` is heard under another routing id."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        self.up: deque[Frames] = deque()
        self.down: deque[Frames] = deque()
        self.stale: deque[Frames] = deque()
        self.is_up = True

    def send(self, frames: Frames) -> bool:
        if self.is_up and len(self.up) < QUEUE:
            self.up.append(frames)
            return True
        return False

    def cut(self, lost_up: int, lost_down: int) -> None:
        arrived = list(self.up)[: max(0, len(self.up) - lost_up)]
        self.stale.extend(arrived)
        self.up.clear()
        for _ in range(min(lost_down, len(self.down))):
            self.down.pop()
        self.is_up = False


class Agent:
    lives = 0

    def __init__(self, name: str, clock: ManualClock, controllers: int) -> None:
        self.name, self.clock = name, clock
        self.links: dict[str, Connection] = {}
        self.stopped = False
        self.controllers = [str(c) for c in range(controllers)]
        self.born()

    def born(self) -> None:
        """Another process under the same name."""
        Agent.lives += 1
        self.epoch, self.version = 1000 + Agent.lives, 0
        self.table = SlotTable(SLOTS, SLOTS)
        self.table.grow(SLOTS)
        self.streams = Streams(self.table, self.register, Stats(), self.clock)
        for address, link in self.links.items():
            self.connect(address, list(link.stale) + list(link.up))
        self.follow()

    def connect(self, address: str, stale: list[Frames]) -> None:
        Agent.lives += 1
        self.links[address] = Connection(f"{self.name}.{Agent.lives}".encode())
        self.links[address].stale.extend(stale)

    def follow(self) -> None:
        for address in self.controllers:
            if address not in self.links:
                self.connect(address, [])
        self.streams.follow(self.controllers)

    def register(self) -> Register:
        ranks = [RankInfo(0, HOST_A, nixl_metadata=b"%d" % self.version)]
        return Register(
            1, 1, "default", self.name, self.epoch, NAMESPACE, [LAYOUT], 4, ranks, self.version
        )

    def hold(self, names: list[int]) -> None:
        new = [n for n in names if self.table.contains(keys(n)) == b"\0"]
        room = self.table.reserve(keys(*new), self.clock()) if new else None
        if room is not None:
            self.table.admit(*room)

    def turn(self) -> None:
        if self.stopped:
            return
        self.streams.woke()
        for address in self.controllers:
            down = self.links[address].down
            while down:
                self.streams[address].hear(*wire.decode(down.popleft()))
        self.streams.turn()
        for address in self.controllers:
            self.streams[address].flush(self.links[address].send)


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.small = mock.patch.multiple(stream, **SMALL)
        self.small.start()
        self.clock = ManualClock()

    @initialize(agents=st.integers(1, 3), controllers=st.integers(1, 3))
    def begin(self, agents: int, controllers: int) -> None:
        self.agents = [Agent(f"agent{i}", self.clock, controllers) for i in range(agents)]
        self.registries = [Registry(CONFIG, self.clock) for _ in range(controllers)]
        self.stopped: set[int] = set()
        self.steps(4)

    def agent(self, which: int) -> Agent:
        return self.agents[which % len(self.agents)]

    def controller(self, which: int) -> str:
        return str(which % len(self.registries))

    def link(self, agent: int, controller: int) -> Connection:
        return self.agent(agent).links[self.controller(controller)]

    # ------------------------------------------------------------ instances

    @rule(which=WHO, names=SOME)
    def hold(self, which: int, names: list[int]) -> None:
        self.agent(which).hold(names)

    @rule(which=WHO, names=SOME)
    def retire(self, which: int, names: list[int]) -> None:
        self.agent(which).table.retire(keys(*names))

    @rule(which=WHO)
    def another_epoch(self, which: int) -> None:
        agent = self.agent(which)
        agent.table.begin_epoch()
        agent.epoch += 100_000
        agent.streams.restart()

    @rule(which=WHO)
    def another_mover(self, which: int) -> None:
        self.agent(which).version += 1

    @rule(which=WHO)
    def restart_an_agent(self, which: int) -> None:
        self.agent(which).born()

    @rule(which=WHO, controllers=st.sets(WHO))
    def follow_others(self, which: int, controllers: set[int]) -> None:
        """As when a name's records change."""
        agent = self.agent(which)
        chosen = {self.controller(c) for c in controllers}
        for address in set(agent.controllers) - chosen:
            link = agent.links[address]
            agent.connect(address, list(link.stale) + list(link.up))
        agent.controllers = sorted(chosen)
        agent.follow()

    # ------------------------------------------------------------ connections, processes, time

    @rule(
        which=WHO,
        controller=WHO,
        says=st.booleans(),
        hears=st.booleans(),
        up=LOST,
        down=LOST,
        again=st.booleans(),
    )
    def cut(
        self, which: int, controller: int, says: bool, hears: bool, up: int, down: int, again: bool
    ) -> None:
        """Perhaps right after something was said, or answered."""
        if says:
            self.agent(which).turn()
        if hears:
            self.a_controller_speaks(controller)
        self.link(which, controller).cut(up, down)
        self.link(which, controller).is_up = again

    @rule(which=WHO, controller=WHO)
    def connect_again(self, which: int, controller: int) -> None:
        self.link(which, controller).is_up = True

    @rule(which=WHO, stop=st.booleans())
    def stop_an_agent(self, which: int, stop: bool) -> None:
        self.agent(which).stopped = stop

    @rule(which=WHO)
    def stop_a_controller(self, which: int) -> None:
        self.stopped.add(int(self.controller(which)))

    @precondition(lambda self: self.stopped)
    @rule()
    def wake_controllers(self) -> None:
        self.stopped.clear()

    @rule(which=WHO, down=LOST)
    def restart_a_controller(self, which: int, down: int) -> None:
        address = self.controller(which)
        self.registries[int(address)] = Registry(CONFIG, self.clock)
        for agent in self.agents:
            agent.links[address].cut(QUEUE, down)
            agent.links[address].stale.clear()
            agent.links[address].is_up = True

    @rule(which=WHO, passed=st.sampled_from([0.0, 0.3, 1.1]))
    def an_agent_speaks(self, which: int, passed: float) -> None:
        """And nobody hears it yet."""
        self.clock.advance(passed)
        self.agent(which).turn()

    @rule(which=WHO)
    def a_controller_speaks(self, which: int) -> None:
        if int(self.controller(which)) not in self.stopped:
            self.run_controller(int(self.controller(which)))

    @rule(n=st.sampled_from([1, 2, 5, 14, 40]))
    def time(self, n: int) -> None:
        self.steps(n)

    def steps(self, n: int) -> None:
        for _ in range(n):
            for c in range(len(self.registries)):
                if c not in self.stopped:
                    self.run_controller(c)
            for agent in self.agents:
                agent.turn()
            self.clock.advance(STEP)

    def run_controller(self, which: int) -> None:
        """Hears all, the newest connection first, and ticks."""
        registry, by_name = self.registries[which], {}
        for agent in self.agents:
            link = agent.links.get(str(which))
            if link is None:
                continue
            by_name[link.name] = link
            for queue, name in ((link.up, link.name), (link.stale, link.name + b" before")):
                while queue:
                    self.answer(by_name, registry.hear(name, *wire.decode(queue.popleft())))
        self.answer(by_name, registry.tick())

    def answer(self, by_name: dict[bytes, Connection], out: list) -> None:
        for name, message, arrays in out:
            if name in by_name and by_name[name].is_up:
                by_name[name].down.append(wire.encode(message, *arrays))

    # ------------------------------------------------------------ what must hold

    @invariant()
    def outboxes_are_bounded(self) -> None:
        for agent in getattr(self, "agents", []):
            for address in agent.controllers:
                assert len(agent.streams[address].outbox) <= SMALL["OUTBOX"] + 1

    def teardown(self) -> None:
        try:
            if hasattr(self, "agents"):
                self.rest()
                for agent in self.agents:
                    for registry in self.registries:
                        self.agrees(agent, registry)
        finally:
            self.small.stop()

    def rest(self) -> None:
        self.stopped.clear()
        for agent in self.agents:
            agent.stopped = False
            agent.controllers = [str(c) for c in range(len(self.registries))]
            agent.follow()
            for link in agent.links.values():
                link.is_up = True
        self.steps(int(REST / STEP))

    def agrees(self, agent: Agent, registry: Registry) -> None:
        known = registry.instances[agent.name]
        assert (known.epoch, known.state) == (agent.epoch, "live")
        assert not registry.syncing(known)
        assert known.registration.data_version == agent.version
        assert known.registration.ranks == agent.register().ranks
        directory = registry.placement.directory
        assert directory.sums(known.number) == agent.table.sums()
        others = [i.number for i in registry.instances.values() if i is not known and i.number >= 0]
        for name in range(12):
            key = keys(name)
            places, counters, n = agent.table.places(key)
            assert (known.number in directory.holders(key)) == bool(n)
            if n:
                assert directory.locate(key, -1, avoid=others)[2:4] == (places, counters)
        for address in agent.controllers:
            assert agent.streams[address].ready and not agent.streams[address].warming
        assert sorted(agent.streams.order()) == agent.controllers


TestControllers = Machine.TestCase
TestControllers.settings = settings(max_examples=250, stateful_step_count=40, deadline=None)
