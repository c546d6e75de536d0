"""The scheduler thread's time: `match()` of a request that waits for the controller's answer.

vLLM asks it once a step. The agent is real, its two links are real ZMQ sockets on loopback to a
router that never answers, so that each call polls them in vain, which is what a wait costs.
Profile (cProfile): three fifths are the two empty receives, half of that raising `zmq.Again`.
"""

from __future__ import annotations

import zmq
from lmkv.agent.links import Link

from bench.harness import Figure, Row, measure
from tests.fake_links import CONTROLLER, World

CALLS, ROUNDS, TARGET_US = 1000, 21, 50.0


def rows() -> list[Row]:
    router: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
    router.setsockopt(zmq.LINGER, 0)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    links = [Link(f"tcp://127.0.0.1:{port}") for _ in range(2)]
    for link in links:
        assert link.socket.poll(2000, zmq.POLLOUT), "the router is there"
    world = World(locate_deadline=3600)
    world.begin("first", world.prompt(1), skip_load=True)  # takes the links that World made
    world.agent.locator.use(CONTROLLER, (links[0], links[1]))
    prompt = world.prompt(512)
    world.begin("waiting", prompt)
    assert world.match("waiting", prompt) is None

    def wait() -> None:
        for _ in range(CALLS):
            world.agent.match("waiting", 0, len(prompt))

    (figure,) = measure(wait, rounds=ROUNDS, figure=lambda seconds: seconds / CALLS * 1e6)
    world.agent.locator.close()
    router.close()
    note = "limit: DESIGN's 50 us per waiting request and step"
    fixed = Figure(TARGET_US, TARGET_US, TARGET_US)
    return [Row("scheduler thread, a waiting request", "us", figure, fixed, 1.0, False, note)]
