"""The worker's socket: what it must tell waits for an agent that is not there."""

from __future__ import annotations

import queue
import tempfile
from collections.abc import Iterator

import pytest
import zmq
from lmkv.core import wire
from lmkv.core.clock import ManualClock
from lmkv.core.messages import (
    Alarm,
    Attach,
    HostIdentity,
    Message,
    RankInfo,
    StoredOk,
    WorkerState,
)
from lmkv.worker.control import REPEAT_S, Control

DEADLINE_MS = 60_000


class Side:
    """A control socket whose state is a number, and agents that come and go."""

    def __init__(self, folder: str) -> None:
        self.version, self.epoch = 0, 0
        self.clock = ManualClock()
        path = f"{folder}/x.worker"
        self.control = Control(path, self._state, self._attach, print, print, print, self.clock)
        self.sent: queue.SimpleQueue[bool] = queue.SimpleQueue()  # whether each attempt went out
        self._send, self.control._send = self.control._send, self._spied  # type: ignore[method-assign]
        self.control.start()

    def _state(self) -> WorkerState:
        info = RankInfo(0, HostIdentity("boot", 1, 1))
        return WorkerState(0, self.epoch, self.version, info)

    def _attach(self, message: Attach) -> None:
        self.epoch = message.epoch

    def agent(self, name: bytes = b"agent") -> zmq.Socket[bytes]:
        agent: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        agent.setsockopt(zmq.LINGER, 0)
        agent.setsockopt(zmq.ROUTING_ID, name)
        agent.connect(self.control.address)
        return agent

    def _spied(self, frames: list[bytes]) -> bool:
        good = self._send(frames)
        self.sent.put(good)
        return good

    def close(self) -> None:
        assert self.control.stop(DEADLINE_MS / 1000)


@pytest.fixture
def side() -> Iterator[Side]:
    with tempfile.TemporaryDirectory(prefix="lmkv-", dir="/tmp") as folder:
        side = Side(folder)
        yield side
        side.close()


def alarm(n: int) -> Alarm:
    return Alarm(0, "test", str(n))


def hear(agent: zmq.Socket[bytes]) -> Message:
    assert agent.poll(DEADLINE_MS), "nothing is said"
    return wire.decode(agent.recv_multipart())[0]


def test_reports_wait_for_the_first_attach_and_come_after_the_state(side: Side) -> None:
    for n in (1, 2):
        side.control.send(alarm(n))
    with side.agent() as agent:
        agent.send_multipart(wire.encode(Attach("a", 5)))
        state = hear(agent)
        assert isinstance(state, WorkerState)
        assert state.epoch == 5
        assert [hear(agent), hear(agent)] == [alarm(1), alarm(2)]


def test_an_agent_that_comes_back_under_its_name_misses_nothing(side: Side) -> None:
    with side.agent() as first:
        first.send_multipart(wire.encode(Attach("a", 5)))
        hear(first)
    assert side.sent.get(timeout=DEADLINE_MS / 1000)  # the state
    for n in range(1, 10_000):
        side.control.send(alarm(n))
        if not side.sent.get(timeout=DEADLINE_MS / 1000):
            break  # ZMQ has noticed: what went out before is lost with the connection
    else:
        pytest.fail("an agent that has gone is still written to")
    side.control.send(alarm(n + 1))
    with side.agent() as second:
        assert [hear(second), hear(second)] == [alarm(n), alarm(n + 1)]


def test_a_report_that_was_lost_with_its_connection_comes_until_it_is_answered(side: Side) -> None:
    with side.agent() as first:
        first.send_multipart(wire.encode(Attach("a", 5)))
        hear(first)
        side.control.report(7, alarm(7))
        for _ in ("the state", "the report"):
            assert side.sent.get(timeout=DEADLINE_MS / 1000)
    with side.agent() as second:  # the first one closed without having read it
        for _ in range(2):
            for _ in range(DEADLINE_MS // 50):  # it may be said to the first one once more
                if second.poll(50):
                    break
                side.clock.advance(REPEAT_S)
                side.control.wake()
            assert hear(second) == alarm(7)
        second.send_multipart(wire.encode(StoredOk(7)))
        second.send_multipart(wire.encode(Attach("a", 6)))
        while not isinstance(hear(second), WorkerState):
            pass  # a report that was on its way
        side.clock.advance(REPEAT_S)
        side.control.send(alarm(8))
        assert hear(second) == alarm(8)


def test_another_agent_takes_over_when_it_attaches(side: Side) -> None:
    with side.agent(b"one") as one, side.agent(b"two") as two:
        one.send_multipart(wire.encode(Attach("a", 5)))
        hear(one)
        two.send_multipart(wire.encode(Attach("a", 6)))
        hear(two)
        side.control.send(alarm(1))
        assert hear(two) == alarm(1)
        assert one.poll(0) == 0


def test_only_the_present_state_is_told_and_once(side: Side) -> None:
    for side.version in (1, 2, 3):
        side.control.wake()
    with side.agent() as agent:
        agent.send_multipart(wire.encode(Attach("a", 5)))
        state = hear(agent)
        assert isinstance(state, WorkerState)
        assert state.data_version == 3
        side.control.wake()
        side.control.send(alarm(1))
        assert hear(agent) == alarm(1)


def test_what_is_no_message_of_an_agent_is_told_to_the_agent_and_counted(side: Side) -> None:
    with side.agent(b"stranger") as stranger, side.agent() as agent:
        agent.send_multipart(wire.encode(Attach("a", 5)))
        hear(agent)
        for frames, named in (
            ([b"\xff"], "message of no type"),
            ([wire.encode(Attach("", 5))[0]], "$.instance"),
            (wire.encode(alarm(1)), "Alarm is not served"),
            ([b""], "no type"),
        ):
            stranger.send_multipart(frames)
            said = hear(agent)
            assert isinstance(said, Alarm)
            assert said.kind == "message" and named in said.text, said
        assert side.control.refused == 4
        agent.send_multipart(wire.encode(Attach("a", 6)))
        state = hear(agent)
        assert isinstance(state, WorkerState) and state.epoch == 6
