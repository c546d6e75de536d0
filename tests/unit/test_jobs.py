"""Jobs inside an instance: taken, run a step a turn, told to all controllers, given back."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from lmkv.agent import jobs
from lmkv.agent.commands import Failed
from lmkv.agent.jobs import Operation, Run, Steps
from lmkv.core.messages import Command, Done, Job, Message, Part, Refused, Resync, Welcome

from tests.fake_links import CONTROLLER, World

KEYS = b"k" * 16


def many(n: int) -> bytes:
    return b"".join(i.to_bytes(16, "little") for i in range(n))


class Jobs(World):
    """An instance with the operations `step` (two steps), `wait` (until it is closed), `pace` (100
    bytes at a time), `fail`, `break`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.closed: list[str] = []
        operations = {
            "step": Operation(self._steps),
            "wait": Operation(self._waits, jobs.BYTES),
            "fail": Operation(self._fails),
            "break": Operation(self._breaks),
            "pace": Operation(self._paced, jobs.BYTES),
        }
        self.agent.jobs._operations = operations
        self.agent.commands._prompt.update(dict.fromkeys(operations, self.agent.jobs.take))

    def _steps(self, run: Run) -> Steps:
        for keys in run.batches():
            run.count(len(keys), 10)
            yield
        run.count(1, skipped="absent")

    def _waits(self, run: Run) -> Steps:
        try:
            while True:
                yield 0.5
        finally:
            self.closed.append(run.part.id)

    def _paced(self, run: Run) -> Steps:
        while True:
            yield from run.paced(100)
            run.count(1)

    def _fails(self, run: Run) -> Steps:
        yield
        raise Failed("no_room", "there is none")

    def _breaks(self, run: Run) -> Steps:
        raise KeyError("defect")
        yield

    def ask(self, operation: str, name: str = "j1", *frames: bytes, **arguments: str) -> Message:
        """A controller's command; its answer."""
        link = self.at(CONTROLLER)
        command = Command(name, operation, "us", arguments, request=7, deadline=30.0)
        link.say(command, *(frames or (KEYS,)))
        self.turn()
        answers = [m for m, _ in link.sent if isinstance(m, (Done, Refused)) and m.request == 7]
        return answers[-1]

    def part(self, operation: str, name: str = "j1", *frames: bytes, **arguments: str) -> Part:
        answer = self.ask(operation, name, *frames, **arguments)
        assert isinstance(answer, Done), answer
        return msgspec.msgpack.decode(answer.result, type=Part)

    def refused(self, operation: str, name: str = "j1", *frames: bytes, **more: str) -> Refused:
        answer = self.ask(operation, name, *frames, **more)
        assert isinstance(answer, Refused), answer
        return answer

    def told(self, address: str = CONTROLLER, name: str = "j1") -> list[Part]:
        return [m.part for m, _ in self.at(address).of(Job) if m.part.id == name]


def test_a_job_is_taken_at_once_and_runs_a_step_a_turn():
    world = Jobs()
    taken = world.part("step", "j1", many(65), asked_by="cli", parts="3")
    assert (taken.state, taken.chunks_total, taken.instance) == ("queued", 65, "us")
    assert (taken.asked_by, taken.parts, taken.attempt) == ("cli", 3, 1)
    world.turn()
    world.turn()
    world.turn()
    (*_, last) = world.told()
    assert [part.state for part in world.told()] == ["queued", "running", "done"]
    assert (last.chunks, last.bytes, last.skipped) == (66, 20, {"absent": 1})
    assert world.agent.jobs.open == 0


def test_a_job_that_fails_says_why_and_one_with_a_defect_says_that():
    world = Jobs()
    world.part("fail", "j1")
    world.part("break", "j2")
    for _ in range(3):
        world.turn()
    (*_, failed) = world.told()
    assert (failed.state, failed.code, failed.reason) == ("failed", "no_room", "there is none")
    (*_, broken) = world.told(name="j2")
    assert (broken.state, broken.code) == ("failed", "failed")
    assert "defect" in broken.reason


def test_the_same_id_is_the_same_job_and_another_command_is_refused():
    world = Jobs()
    world.part("wait", "j1", owner="a", asked_by="one")
    again = world.part("wait", "j1", owner="a", asked_by="another")
    assert (again.state, again.asked_by) == ("running", "one")
    assert world.refused("wait", "j1", owner="b").code == "conflict"
    assert world.refused("wait", "j1", KEYS * 2, owner="a").code == "conflict"
    assert world.refused("step", "j1", owner="a").code == "conflict"


def test_cancel_gives_back_what_it_holds_and_twice_is_refused():
    world = Jobs()
    world.part("wait")
    world.turn()
    assert world.part("cancel", "c1", job="j1").state == "cancelled"
    assert world.closed == ["j1"]
    world.clock.advance(3.0)
    refused = world.refused("cancel", "c2", job="j1")
    assert (refused.code, refused.message) == ("ended", "job j1 is cancelled since 3 s")
    assert world.refused("cancel", "c3", job="j9").code == "unknown_job"
    assert world.refused("retry", "c4").field == "job"
    assert world.at_rest()


def test_a_command_that_comes_once_more_acts_once():
    """As when its answer went to a connection that a controller does not hear any more."""
    world = Jobs()
    world.part("wait")
    for _ in range(2):
        assert world.part("cancel", "c1", job="j1").state == "cancelled"
    assert world.closed == ["j1"]
    for _ in range(2):
        assert world.part("retry", "r1", job="j1").attempt == 2
        world.turn()
    assert world.refused("retry", "r2", job="j1").code == "conflict"
    assert world.part("cancel", "c2", job="j1").state == "cancelled"
    assert world.at_rest()


def test_retry_runs_it_again_with_counts_from_zero():
    world = Jobs()
    world.part("fail")
    assert world.refused("retry", "r0", job="j1").code == "conflict"  # it runs
    world.turn()
    world.turn()
    again = world.part("retry", "r1", job="j1")
    assert (again.state, again.attempt, again.code, again.reason) == ("queued", 2, "", "")
    world.part("step", "j2")
    for _ in range(4):
        world.turn()
    assert world.told()[-1].attempt == 2
    assert world.told()[-1].state == "failed"
    assert world.refused("retry", "r2", job="j2").code == "ended"


def test_two_that_move_bytes_run_at_once_and_others_do_not_wait_for_them():
    world = Jobs()
    for name in ("j1", "j2", "j3"):
        world.part("wait", name)
    world.part("step", "j4")
    for _ in range(3):
        world.turn()
    states = {name: world.told(name=name)[-1].state for name in ("j1", "j2", "j3", "j4")}
    assert states == {"j1": "running", "j2": "running", "j3": "queued", "j4": "done"}
    world.part("cancel", "c", job="j1")
    world.turn()
    assert world.told(name="j3")[-1].state == "running"


def test_a_reset_fails_what_runs_and_what_waits():
    world = Jobs()
    for name in ("j1", "j2", "j3"):
        world.part("wait", name)
    world.turn()
    world.agent.reset()
    world.turn()
    assert world.closed == ["j1", "j2"]
    parts = [part for _, message in world.agent.jobs.news(0) for part in [message.part]]  # type: ignore[attr-defined]
    assert {part.code for part in parts} == {"reset"}
    assert world.at_rest()


def test_progress_is_told_once_a_second():
    world = Jobs()
    world.part("step", "j1", many(64 * 10))
    for _ in range(5):
        world.turn()
    assert [part.state for part in world.told()] == ["queued", "running"]
    world.clock.advance(1.0)
    world.turn()
    assert len(world.told()) == 3
    assert world.told()[-1].chunks > 128


def test_what_is_open_is_told_again_though_nothing_changes():
    world = Jobs()
    for name in ("j1", "j2", "j3"):
        world.part("wait", name)
    world.turn()
    before = [len(world.told(name=name)) for name in ("j1", "j3")]
    for seconds, more in ((19.0, 0), (2.0, 1), (19.0, 1), (2.0, 2)):
        world.clock.advance(seconds)
        world.welcome()  # the controller is there
        world.turn()
        told = [len(world.told(name=name)) for name in ("j1", "j3")]
        assert told == [n + more for n in before]
    assert [part.state for part in world.told()][-1] == "running"
    assert [part.state for part in world.told(name="j3")][-1] == "queued"


def test_each_controller_that_welcomes_hears_all_jobs_as_they_stand():
    other = "tcp://127.0.0.1:8550"
    world = Jobs(controllers=[CONTROLLER, other])
    world.part("step", "j1")
    world.part("wait", "j2")
    for _ in range(3):
        world.turn()
    assert world.told(other) == []  # it has not welcomed this instance
    world.at(other).say(Welcome(1, "other", 78, 8551, "ready"))
    world.turn()
    assert [part.state for part in world.told(other)] == ["done"]
    assert [part.state for part in world.told(other, "j2")] == ["running"]
    before = len(world.told())
    world.at(CONTROLLER).say(Resync(1, "gap"))  # what was lost with it may have been news
    world.turn()
    assert len(world.told()) == before + 1


def test_what_is_told_of_a_job_is_the_latest_not_all_that_was():
    world = Jobs()
    world.at(CONTROLLER).up = False  # nothing leaves
    stream = world.agent.streams[CONTROLLER]
    world.agent.jobs.take(
        Command("j1", "step", deadline=1.0),
        [many(64 * 200)],
        None,  # type: ignore[arg-type]
    )
    most = 0
    for _ in range(150):
        world.clock.advance(1.0)
        world.at(CONTROLLER).say(Welcome(1, "controller", 77, 7551, "ready"))
        world.turn()
        most = max(most, len(stream.outbox))
    assert most < 64
    world.at(CONTROLLER).up = True
    world.turn()
    world.turn()
    assert world.told()[-1].chunks >= 149 * 64


def test_the_last_ended_ones_are_remembered_and_the_oldest_lose_their_keys_first(monkeypatch):
    monkeypatch.setattr(jobs, "KEYS_KEPT", 32)
    world = Jobs()
    for i in range(jobs.JOBS_KEPT + 2):
        world.part("fail", f"j{i}")
        for _ in range(3):
            world.turn()
    assert world.refused("retry", "r0", job="j1").code == "unknown_job"
    assert world.refused("retry", "r1", job="j2").code == "unavailable"
    assert world.part("retry", "r2", job=f"j{jobs.JOBS_KEPT + 1}").attempt == 2


def test_so_many_wait_and_no_more():
    world = Jobs()
    for i in range(2 + jobs.WAITING):
        world.part("wait", f"j{i}")
        world.turn()
    assert world.refused("wait", "one more").code == "busy"


@pytest.mark.parametrize(
    ("frames", "arguments", "field"),
    [
        ((b"short",), {}, "keys"),
        ((b"",), {}, "keys"),
        ((KEYS * (jobs.KEYS_A_JOB + 1),), {}, "keys"),
        ((KEYS,), {"ttl": "nan"}, "ttl"),
        ((KEYS,), {"ttl": "-1"}, "ttl"),
        ((KEYS,), {"ttl": "soon"}, "ttl"),
        ((KEYS,), {"parts": "0"}, "parts"),
    ],
)
def test_what_cannot_be_a_job_is_refused_by_the_field(frames, arguments, field):
    world = Jobs()
    refused = world.refused("step", "j1", *frames, **arguments)
    assert (refused.code, refused.field) == ("field", field)
    assert field in refused.message
    assert world.agent.jobs.open == 0


def test_the_pace_holds_for_all_jobs_together():
    world = Jobs(job_bytes_per_second=100)
    pace, now = world.agent.jobs._pace, world.clock()
    assert [pace.take(50) - now, pace.take(200) - now, pace.take(1) - now] == [0.0, 0.5, 2.5]
    world.clock.advance(9.0)
    assert pace.take(50) - now == 9.0  # what nobody moved is not made up for
    for _ in range(2):
        assert jobs.Pace(0, world.clock).take(1 << 40) == now + 9.0


def test_two_jobs_share_the_pace_and_one_that_is_cancelled_takes_nothing():
    world = Jobs(job_bytes_per_second=100)
    for name in ("j1", "j2"):
        world.part("pace", name)
    for _ in range(41):
        world.clock.advance(0.1)
        world.turn()
    moved = [world.agent.jobs._jobs[name].part.chunks for name in ("j1", "j2")]
    assert moved == [3, 2]  # of a second each
    world.part("cancel", "c", job="j1")
    for _ in range(31):
        world.clock.advance(0.1)
        world.turn()
    assert world.agent.jobs._jobs["j2"].part.chunks == 5  # what j1 had been given is made up for
