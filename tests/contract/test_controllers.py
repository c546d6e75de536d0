"""Two real controllers and two agents with real sockets and threads; workers are not there.

A chunk that a peer holds is asked for: without workers it cannot be pulled, so that its cause is
`mover_down` where the locate found it, and `cold` where it did not. What must follow is waited for.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator

import pytest
import zmq
from lmkv.agent.agent import Agent
from lmkv.agent.engine import Engine, Rank
from lmkv.agent.links import Link
from lmkv.agent.options import Options
from lmkv.agent.reader import Geometry
from lmkv.agent.texts import Texts
from lmkv.core.client import Client, Unreachable
from lmkv.core.config import InstanceConfig, load
from lmkv.core.messages import HostIdentity, RankInfo, Status, StatusInfo

from tests.contract.test_controller import DEADLINE, Controller, until
from tests.ports import free_port
from tests.stub_instance import LAYOUT, NAMESPACE

CHUNK, SLOTS = 4, 64


@pytest.fixture
def controllers() -> Iterator[list[Controller]]:
    running = [Controller(free_port()) for _ in range(2)]
    yield running
    for each in running:
        each.process.send_signal(signal.SIGCONT)
        each.end()


class Instance:
    def __init__(
        self,
        name: str,
        controllers: list[str],
        connect: Callable[[str], Link] = Link,
        texts: Texts | None = None,
    ) -> None:
        inline = {"controllers": controllers, "min_tokens": 1, "locate_deadline": DEADLINE}
        rank = Rank(
            RankInfo(0, HostIdentity("boot", 1, 2)), f"ipc:///tmp/none-{name}", [LAYOUT], [9]
        )
        engine = Engine(
            name,
            lambda _: NAMESPACE,
            ["kind=full\n"],
            [Geometry(CHUNK, 2, 1024)],
            SLOTS,
            SLOTS,
            [rank],
        )
        self.agent = Agent(
            load(InstanceConfig, inline), engine, connect=connect, ranks=Link, texts=texts
        )
        self.agent.table.grow(SLOTS)
        self.agent.start()
        self.asked = 0

    def hold(self, prompt: list[int]) -> None:
        chain = self.agent._hasher.chain(b"")
        chain.extend(prompt, 0, {})
        room = self.agent.table.reserve(chain.keys(0, 0, len(chain)), 0.0)
        assert room is not None
        self.agent.table.admit(*room)
        self.agent.background.wake()

    def reaches(self, address: str) -> bool:
        """Whether it may ask there. The link for that is made with the welcome, up a little later;
        until then a prompt's cause is `no_controller`."""
        self.agent._take_links()
        controller = self.agent.locator._controllers.get(address)
        if controller is None or address not in self.agent.streams.order():
            return False
        return bool(controller.query.socket.poll(0, zmq.POLLOUT))

    def link(self, controller: Controller) -> Link | None:
        """What its stream goes over; another one once that was silent for too long."""
        return self.agent._controllers._links.get(controller.state)

    def cause(self, prompt: list[int]) -> str:
        """Why the prompt is not loaded, of an instance that reaches a controller."""
        until(lambda: any(map(self.reaches, self.agent.streams.order())))
        self.asked += 1
        name = str(self.asked)
        self.agent.begin(name, [*prompt, 0], b"", {}, Options())
        until(lambda: self.agent.match(name, 0, len(prompt) + 1) is not None)
        self.agent.allocated(name, [], 0)
        ended = self.agent.finished(name)
        assert ended is not None
        return next(c for c, n in ended["lmkv"]["miss_tokens"].items() if n and c != "too_short")


@pytest.fixture
def pair(controllers: list[Controller]) -> Iterator[tuple[Instance, Instance]]:
    both = tuple(Instance(name, [c.state for c in controllers]) for name in ("us", "peer"))
    yield both[0], both[1]
    for each in both:
        each.agent.close()


def knows(controller: Controller, keys: int) -> bool:
    """Both instances, and as many keys; and it is ready."""
    try:
        with Client(controller.state, 1.0) as client:
            status, _ = client.ask(Status())
    except Unreachable:
        return False
    assert isinstance(status, StatusInfo)
    live = [each.instance for each in status.instances if each.state == "live"]
    return (sorted(live), status.keys, status.state) == (["peer", "us"], keys, "ready")


def ask_at(us: Instance, controller: Controller, prompt: list[int]) -> str:
    """At this one alone."""
    until(lambda: us.reaches(controller.state))
    order = us.agent.streams.order
    us.agent.streams.order = lambda: [controller.state]  # type: ignore[method-assign]
    try:
        return us.cause(prompt)
    finally:
        us.agent.streams.order = order  # type: ignore[method-assign]


def test_one_is_killed_and_comes_again(
    controllers: list[Controller], pair: tuple[Instance, Instance]
) -> None:
    us, peer = pair
    first, second = list(range(8)), list(range(100, 108))
    peer.hold(first)
    for controller in controllers:
        until(lambda c=controller: knows(c, 2))  # type: ignore[misc]
        assert ask_at(us, controller, first) == "mover_down"
    port = int(controllers[0].state.rpartition(":")[2])
    controllers[0].end(signal.SIGKILL)
    peer.hold(second)
    until(lambda: knows(controllers[1], 4))
    assert us.cause(second) == "mover_down"  # whichever was the nearest
    controllers[0] = Controller(port)
    until(lambda: knows(controllers[0], 4))
    until(lambda: sorted(us.agent.streams.order()) == sorted(c.state for c in controllers))
    assert ask_at(us, controllers[0], second) == "mover_down"


def test_one_is_stopped_and_goes_on(
    controllers: list[Controller], pair: tuple[Instance, Instance]
) -> None:
    us, peer = pair
    first, second = list(range(8)), list(range(100, 108))
    peer.hold(first)
    until(lambda: all(knows(c, 2) for c in controllers))
    links = [(each, each.link(controllers[0])) for each in pair]
    controllers[0].process.send_signal(signal.SIGSTOP)
    peer.hold(second)
    until(lambda: knows(controllers[1], 4))
    until(lambda: us.agent.streams.order() == [controllers[1].state])
    assert us.cause(second) == "mover_down"
    # By then its silence was too long for ZMQ and for both agents.
    until(lambda: not any(link is each.link(controllers[0]) for each, link in links))
    controllers[0].process.send_signal(signal.SIGCONT)
    until(lambda: knows(controllers[0], 4))
    until(lambda: sorted(us.agent.streams.order()) == sorted(c.state for c in controllers))
    assert ask_at(us, controllers[0], second) == "mover_down"
