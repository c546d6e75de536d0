"""Jobs with several real controllers: any of them answers for any job, and none is needed."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from lmkv.core.client import Client, Unreachable
from lmkv.core.messages import AskJob, JobInfo, JobState, Pins, PinsInfo, Refused, Submit

from tests.contract.test_controller import DEADLINE, Controller, until
from tests.ports import free_port
from tests.scripted_jobs import Worker
from tests.stub_instance import keys


@pytest.fixture
def controllers() -> Iterator[list[Controller]]:
    running = [Controller(free_port()) for _ in range(2)]
    yield running
    for each in running:
        each.end()


def asked(controller: Controller, question: Submit | AskJob, *arrays: bytes) -> JobInfo | Refused:
    with Client(controller.state, DEADLINE) as client:
        answer, _ = client.ask(question, *arrays)
    assert isinstance(answer, (JobInfo, Refused)), answer
    return answer


def job(controller: Controller, name: str) -> JobState | None:
    """As this one has it; None: it has not."""
    try:
        answer = asked(controller, AskJob(1, name))
    except Unreachable:
        return None
    return answer.job if isinstance(answer, JobInfo) else None


def is_(controller: Controller, name: str, state: str) -> bool:
    found = job(controller, name)
    return found is not None and found.state == state


def pins(controller: Controller) -> int:
    with Client(controller.state, DEADLINE) as client:
        answer, _ = client.ask(Pins(1))
    assert isinstance(answer, PinsInfo)
    return answer.total


def test_the_one_that_took_it_is_killed(controllers: list[Controller]) -> None:
    first, second = controllers
    with Worker("a", controllers) as a:
        a.store(keys(1), keys(2))
        a.hold()
        question = Submit(2, "pin", id="nightly", ttl=60.0, asked_by="ops")

        def taken() -> bool:
            answer = asked(first, question, keys(1, 2))
            return isinstance(answer, JobInfo)  # not before it has heard who holds it

        until(taken)
        [name] = a.parts
        until(lambda: is_(second, name, "running"))
        a.lose(0)
        first.end(signal.SIGKILL)
        again = asked(second, question, keys(1, 2))
        assert isinstance(again, JobInfo) and (again.new, again.job.id) == (False, name)
        clash = asked(second, Submit(2, "pin", id="nightly", owner="x"), keys(1, 2))
        assert isinstance(clash, Refused) and clash.code == "conflict"
        cancelled = asked(second, AskJob(3, name, "cancel"))
        assert isinstance(cancelled, JobInfo) and cancelled.job.state == "cancelled"
        a.release()
        assert isinstance(asked(second, AskJob(3, name, "retry")), JobInfo)
        until(lambda: is_(second, name, "done"))
        found = job(second, name)
        assert found is not None and (found.attempt, found.asked_by) == (2, "ops")
        until(lambda: pins(second) == 1)


def test_one_that_is_started_later_hears_of_all(controllers: list[Controller]) -> None:
    first, second = controllers
    port = int(second.state.rpartition(":")[2])
    with Worker("a", controllers) as a:
        a.store(keys(1))
        until(lambda: isinstance(asked(first, Submit(2, "pin", owner="o"), keys(1)), JobInfo))
        name = next(iter(a.parts))
        until(lambda: is_(second, name, "done") and pins(second) > 0)
        second.end(signal.SIGKILL)
        controllers[1] = second = Controller(port)
        until(lambda: is_(second, name, "done"))
        until(lambda: pins(second) == pins(first) > 0)


def test_who_waits_goes_on_waiting(controllers: list[Controller]) -> None:
    """Over the end of the controller that is asked, until it is there again and knows the job."""
    first = controllers[0]
    with Worker("a", controllers) as a:
        a.store(keys(1))
        a.hold()
        until(lambda: isinstance(asked(first, Submit(2, "pin", owner="o"), keys(1)), JobInfo))
        [name] = a.parts
        words = ("jobs", "wait", name, "--controller", first.state)
        waiting = subprocess.Popen(
            [sys.executable, "-m", "lmkv.cli.main", *words],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert waiting.stderr and waiting.stdout
        assert "is running" in waiting.stderr.readline()
        first.end(signal.SIGKILL)
        assert "waiting for it" in waiting.stderr.readline()
        controllers[0] = Controller(int(first.state.rpartition(":")[2]))
        until(lambda: is_(controllers[0], name, "running"))
        a.release()
        assert waiting.stdout.readline().startswith(f"pin {name} is done")
        assert waiting.wait(DEADLINE) == 0


def test_an_instance_that_is_killed(controllers: list[Controller]) -> None:
    with Worker("a", controllers) as a:
        a.store(keys(1))
        a.hold()
        until(
            lambda: isinstance(asked(controllers[0], Submit(2, "pin", owner="o"), keys(1)), JobInfo)
        )
        [name] = a.parts
        until(lambda: is_(controllers[1], name, "running"))
        a.stop()
        for each in controllers:
            until(lambda each=each: is_(each, name, "failed"))  # type: ignore[misc]
            found = job(each, name)
            assert found is not None and found.code == "instance_gone"
            assert found.reason == "instance 'a' died before it had ended"
            assert pins(each) == 0
