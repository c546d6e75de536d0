"""Real agents and real controllers in one process, without sockets or bytes: where jobs are watched
step by step.

Links are queues; workers and movers are the simulator's, to which a slot is a number, so that a
wrong one shows. One `tick()` carries every message one hop, and a hundredth of a second passes.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import count
from typing import Any

import msgspec
from lmkv import _native
from lmkv.agent.agent import Agent
from lmkv.agent.engine import Engine, Rank
from lmkv.agent.transfers import Geometry
from lmkv.controller.commands import Commands
from lmkv.controller.registry import Registry
from lmkv.core import config
from lmkv.core.clock import ManualClock
from lmkv.core.messages import (
    AnyMessage,
    Command,
    Done,
    Job,
    Locate,
    Message,
    Part,
    PinsHeld,
    Refused,
    WorkerState,
)
from lmkv.core.messages.jobs import ENDED
from lmkv.sim.worker import CONTROL, Rates, Worker, _slots

from tests.fake_links import FakeLink

SLOTS, CHUNK_BYTES, TICK = 16, 1000, 0.01
NAMESPACE, SPECS, LAYOUT = "model=m\n", ["kind=full\n"], "head_size=1\nsegments=1\n"


class Times:
    """A hub of the simulator: what is due at which time."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self._jobs: list[tuple[float, int, Any]] = []
        self._numbers = count()

    def after(self, seconds: float, job: Any) -> None:
        heapq.heappush(self._jobs, (self.clock() + seconds, next(self._numbers), job))

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        while self._jobs and self._jobs[0][0] <= self.clock():
            heapq.heappop(self._jobs)[2]()


class Controller:
    """As the server has them: a registry, and commands; and what it heard of jobs and pins."""

    def __init__(self, address: str, clock: ManualClock) -> None:
        self.address, self.clock = address, clock
        self.query = f"{address[:-1]}{int(address[-1]) + 1}"
        self.links: dict[bytes, FakeLink] = {}
        self.born()

    def born(self) -> None:
        settings = config.ControllerConfig(warming_least=0.1, warming_most=0.2)
        port = int(self.query.rpartition(":")[2])
        self.registry = Registry(settings, self.clock, query_port=port)
        self.commands = Commands(self.registry)
        self.parts: dict[tuple[str, str], Part] = {}
        self.pins: list[PinsHeld] = []
        self.answers: list[Message] = []
        self.up = True

    def tick(self) -> None:
        for connection, link in list(self.links.items()):
            sent, link.sent = link.sent, []
            if link.closed:
                del self.links[connection]
            for message, frames in sent if self.up else ():
                self._hear(connection, message, frames)
        if self.up:
            self._send(self.registry.tick() + self.commands.tick())

    def _hear(self, connection: bytes, message: AnyMessage, frames: list[bytes]) -> None:
        if isinstance(message, Job):
            assert message.part.id
            self.parts[message.part.instance, message.part.id] = message.part
        elif isinstance(message, PinsHeld):
            self.pins.append(message)
        elif isinstance(message, Locate):
            answer, arrays = self.registry.locate(message, frames)
            self._send([(connection, answer, arrays)])
        else:
            out = self.commands.hear(connection, message, frames)
            self._send(self.registry.hear(connection, message, frames) if out is None else out)

    def _send(self, out: list[Any]) -> None:
        for connection, message, arrays in out:
            if connection == b"test":
                self.answers.append(message)
            elif connection in self.links and not self.links[connection].closed:
                self.links[connection].say(message, *arrays)

    def command(self, command: Command, *frames: bytes) -> None:
        self._send(self.commands.hear(b"test", command, list(frames)) or [])


class Instance:
    def __init__(self, name: str, cluster: Cluster, slots: int, **settings: Any) -> None:
        self.name, self.cluster = name, cluster
        rates = Rates(pull=cluster.rate, copy=cluster.rate, latency=0.0)
        self.worker = Worker(
            name,
            CHUNK_BYTES,
            cluster.times,
            rates,
            lambda: None,
            cluster.find,  # type: ignore[arg-type]
        )
        engine = Engine(
            name,
            lambda word: cluster.namespaces.get(name, NAMESPACE) + (word and f"word={word}\n"),
            SPECS,
            [Geometry(4, 4, CHUNK_BYTES)],
            slots,
            slots,
            [Rank(self.worker.info, CONTROL, [LAYOUT], [1])],
        )
        inline = {"controllers": [c.address for c in cluster.controllers], **settings}
        made = config.load(config.InstanceConfig, inline)
        self.agent = Agent(made, engine, cluster.times.clock, self._connect)
        self.agent.background.open()

    def _connect(self, address: str) -> Any:
        link = self.worker.link(address.partition("?")[0])
        if link is None:
            return self.cluster.connect(address)
        link.address = address
        return link

    def keys(self, first: int, last: int) -> bytes:
        chain = _native.KeyHasher(NAMESPACE, SPECS, 4).chain()
        chain.extend(list(range(last * 4)))
        return chain.keys(0, first, last)

    def hold(self, first: int, last: int) -> bytes:
        """Chunks of the common prompt are stored here."""
        keys = self.keys(first, last)
        room = self.agent.table.reserve(keys, self.cluster.times.clock())
        assert room is not None
        self.worker.holds |= dict(_slots(*room))
        assert self.agent.table.admit(*room) == last - first
        return keys

    def room(self, first: int, last: int) -> bool:
        """Whether there is some for these chunks."""
        room = self.agent.table.reserve(self.keys(first, last), self.cluster.times.clock())
        if room is not None:
            self.agent.table.abort(*room)
        return room is not None

    def has(self, first: int, last: int) -> list[int]:
        """Those of the common prompt's chunks that are readable here."""
        state = self.agent.table.contains(self.keys(first, last))
        return [first + i for i, there in enumerate(state) if there == 1]

    def mover(self, address: str) -> None:
        """It is another one from now on; "": there is none."""
        info = self.worker.info
        state = WorkerState(0, self.agent.epoch, 0, info, address, 2, local_segments=1)
        self.worker._control.say(state)

    def part(self, name: str = "j1") -> Part:
        [part] = [m.part for _, m in self.agent.jobs.news(0) if m.part.id == name]  # type: ignore[attr-defined]
        return part

    def wrong(self) -> list[bytes]:
        """Keys of readable slots that do not hold what they should."""
        table, found = self.agent.table, []
        keys, places, counters = table.slice(0, 16 * table.usable)
        for i, (granule, counter) in enumerate(_slots(places, counters)):
            if self.worker.holds.get(granule) != counter:
                found.append(keys[16 * i : 16 * i + 16])
        return found

    def leftovers(self) -> dict[str, int]:
        """What jobs may not leave behind."""
        slots = self.agent.table.granules()
        links = len(self.agent.fetches.sockets()) + len(self.agent.fetches._links)
        return {
            "pins": self.agent.table.pins - sum(self.agent.pins.size(p)[0] for p in self.pins),
            "reserved": slots["reserved"],
            "limbo": slots["limbo"],
            "pulls": self.agent.pulls.open,
            "rewrites": self.agent.rewrites.open,
            "jobs": self.agent.jobs.open,
            "links": links,
        }

    @property
    def pins(self) -> list[str]:
        return self.agent.pins.within(None, "")


class Cluster:
    """`rate` is bytes per second of a pull, or of compressing: a chunk has 1,000."""

    def __init__(
        self,
        *names: str,
        controllers: int = 1,
        rate: float = 1e5,
        slots: int = SLOTS,
        **settings: Any,
    ) -> None:
        self.times, self.rate = Times(), rate
        self.namespaces: dict[str, str] = settings.pop("namespaces", {})
        self.controllers = [
            Controller(f"tcp://127.0.0.1:70{i}0", self.times.clock) for i in range(controllers)
        ]
        self.gone: set[str] = set()  # instances that do nothing more
        self.gone_movers: set[str] = set()  # from which nothing can be read
        self._numbers = count()
        self.instances = {name: Instance(name, self, slots, **settings) for name in names or "ab"}
        self.run(12)

    def __getitem__(self, name: str) -> Instance:
        return self.instances[name]

    def find(self, name: str, epoch: int) -> Worker | None:
        instance = self.instances[name]
        gone = name in self.gone | self.gone_movers
        return None if gone or instance.agent.epoch != epoch else instance.worker

    def connect(self, address: str) -> FakeLink:
        [controller] = [c for c in self.controllers if address in (c.address, c.query)]
        link = FakeLink(address)
        controller.links[b"%d" % next(self._numbers)] = link
        return link

    def tick(self) -> None:
        for name, instance in self.instances.items():
            if name not in self.gone:
                instance.agent.background.turn()
        for controller in self.controllers:
            controller.tick()
        self.times.advance(TICK)

    def run(self, ticks: int) -> None:
        for _ in range(ticks):
            self.tick()

    def ask(
        self, operation: str, instance: str, *frames: bytes, name: str = "j1", **arguments: str
    ) -> Message:
        """A client's command by the first controller that is up; its answer."""
        controller = next(c for c in self.controllers if c.up)
        controller.answers.clear()
        command = Command(name, operation, instance, arguments, request=7, deadline=5.0)
        controller.command(command, *frames)
        for _ in range(5):
            if controller.answers:
                break
            self.tick()
        [answer] = controller.answers
        return answer

    def take(
        self, operation: str, instance: str, *frames: bytes, name: str = "j1", **more: str
    ) -> Part:
        answer = self.ask(operation, instance, *frames, name=name, **more)
        assert isinstance(answer, Done), answer
        return msgspec.msgpack.decode(answer.result, type=Part)

    def refused(self, operation: str, instance: str, *frames: bytes, **more: str) -> Refused:
        answer = self.ask(operation, instance, *frames, **more)
        assert isinstance(answer, Refused), answer
        return answer

    def ended(self, instance: str, name: str = "j1", ticks: int = 4000) -> Part:
        """The job's part once it has ended."""
        for _ in range(ticks):
            part = self[instance].part(name)
            if part.state in ENDED:
                return part
            self.tick()
        raise AssertionError(f"{part} has not ended")

    def do(
        self, operation: str, instance: str, *frames: bytes, name: str = "j1", **more: str
    ) -> Part:
        self.take(operation, instance, *frames, name=name, **more)
        return self.ended(instance, name)

    def at_rest(self) -> Iterator[str]:
        """What is left behind, once all that ends by itself has ended."""
        for _ in range(800):
            self.tick()
            if not any(any(each.leftovers().values()) for each in self.instances.values()):
                break
        for name, instance in self.instances.items():
            for what, left in instance.leftovers().items():
                if left:
                    yield f"{name}: {what} {left}"
            if instance.wrong():
                yield f"{name}: {len(instance.wrong())} wrong slots"
