"""Jobs at a controller, without sockets: who is commanded, what is remembered, who is gone."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import msgspec
import pytest
from lmkv.controller import job_table, jobs
from lmkv.controller.commands import Commands
from lmkv.controller.jobs import JobDesk
from lmkv.controller.texts import Texts
from lmkv.core import wire
from lmkv.core.messages import (
    OPEN,
    STATES,
    AskJob,
    Command,
    Done,
    Job,
    JobInfo,
    Jobs,
    JobsInfo,
    JobState,
    Leave,
    Lookup,
    LookupInfo,
    Message,
    Part,
    Pins,
    PinsHeld,
    PinsInfo,
    PinState,
    Refused,
    Status,
    Submit,
    Subscribe,
    TextResult,
    Unsupported,
)
from msgspec.structs import replace

from tests.stub_instance import StubInstance, keys
from tests.unit.test_registry import Story

CLIENT = b"client"


class Desk(Story):
    def __init__(self, **settings: object) -> None:
        super().__init__(**settings)
        self.commands = Commands(self.registry)
        self.desk = JobDesk(self.registry, self.commands, Texts(self.registry, self.commands))
        self.table = self.registry.jobs

    def hear(self, connection: bytes, message: Any, *frames: bytes) -> list[Any]:
        for each in (self.desk, self.commands, self.registry):
            out = each.hear(connection, message, list(frames))  # type: ignore[attr-defined]
            if out is not None:
                return list(out)
        raise AssertionError(message)

    def instance(self, name: str, epoch: int = 1, *held: int) -> StubInstance:
        stub = self.join(StubInstance(name, epoch))
        if held:
            self.tell(stub, *stub.store(*held))
        return stub

    def submit(self, operation: str, *held: int, **more: Any) -> list[Any]:
        frames = [keys(*held)] if held else []
        return self.hear(CLIENT, Submit(5, operation, **more), *frames)

    def begun(self, operation: str, *held: int, **more: Any) -> dict[str, Command]:
        """The commands, by instance."""
        out = self.submit(operation, *held, **more)
        assert all(isinstance(sent, Command) for _, sent, _ in out), out
        return {to.decode().partition(" ")[0]: sent for to, sent, _ in out}

    def answer(self, stub: StubInstance, command: Command, state: str = "queued") -> list[Any]:
        """It takes it."""
        part = self.part(stub, command, state)
        done = Done(command.request, command.id, msgspec.msgpack.encode(part))
        return self.hear(self.connection(stub), done)

    @staticmethod
    def part(stub: StubInstance, command: Command, state: str = "queued", **more: Any) -> Part:
        given = command.arguments
        parts = int(given.get("parts", "1"))
        return Part(command.id, command.operation, stub.name, state, parts=parts,
                    command=given.get("command", ""), **more)  # fmt: skip

    def said(self, stub: StubInstance, part: Part) -> None:
        self.hear(self.connection(stub), Job(stub.epoch, part))

    def job(self, name: str) -> JobState:
        [(_, info, _)] = self.hear(CLIENT, AskJob(1, name))
        assert isinstance(info, JobInfo), info
        return info.job

    def events(self) -> list[tuple[str, str, str]]:
        found = self.registry.history.ask(CLIENT, Subscribe(1))
        assert found is not None
        return [(e.instance, e.text, e.job) for e in found.events if e.kind == "job"]


def one(out: list[Any]) -> Message:
    [(to, message, _)] = out
    assert to == CLIENT
    return message


def test_a_job_and_its_answer() -> None:
    desk = Desk()
    a = desk.instance("a", 1, 1, 2)
    sent = desk.begun("compress", 1, 2, 3, asked_by="ops")["a"]
    assert sent.arguments["asked_by"] == "ops" and sent.arguments["parts"] == "1"
    info = one(desk.answer(a, sent))
    assert isinstance(info, JobInfo)
    assert (info.request, info.new, info.job.state, info.job.instances) == (5, True, "queued", 1)
    desk.said(a, desk.part(a, sent, "running", chunks=2, chunks_total=8, bytes=100, seconds=2.0))
    desk.clock.advance(2)
    job = desk.job(sent.id)
    assert (job.state, job.bytes, job.eta, job.age) == ("running", 100, 12.0, 2.0)
    desk.said(a, desk.part(a, sent, "done", chunks=8, chunks_total=8, bytes=400, seconds=4.0))
    desk.clock.advance(3)
    job = desk.job(sent.id)
    assert (job.state, job.chunks, job.rate, job.eta, job.ended_age) == ("done", 8, 100, 0, 3)
    assert desk.events() == [("a", "compress runs", sent.id), ("a", "compress is done", sent.id)]
    assert desk.table.bytes == {"compress": 400}


def test_what_moves_no_bytes_has_no_rate() -> None:
    desk = Desk()
    a = desk.instance("a", 1, 1)
    sent = desk.begun("pin", 1, ttl=60.0)["a"]
    assert sent.arguments["ttl"] == "60.0"
    desk.answer(a, sent)
    desk.said(a, desk.part(a, sent, "done", chunks=1, bytes=100, seconds=2.0))
    job = desk.job(sent.id)
    assert (job.bytes, job.rate) == (100, 0.0)


def test_every_holder_of_a_chunk_has_its_part() -> None:
    desk = Desk()
    stubs = [desk.instance("a", 1, 1, 2), desk.instance("b", 2, 2), desk.instance("c", 3, 9)]
    sent = desk.begun("clear", 1, 2)
    assert sorted(sent) == ["a", "b"]
    assert {each.id for each in sent.values()} == {sent["a"].id}
    assert desk.answer(stubs[0], sent["a"], "done") == []
    refused = Refused("busy", "too many", request=sent["b"].request)
    info = one(desk.hear(desk.connection(stubs[1]), refused))
    assert isinstance(info, JobInfo)
    job = info.job
    assert (job.state, job.code, job.reason) == ("failed", "busy", "b: too many")
    assert [(part.instance, part.state) for part in job.parts] == [("b", "failed"), ("a", "done")]


def test_what_an_instance_tells_stands_whatever_its_answer() -> None:
    desk = Desk()
    a, b = desk.instance("a", 1, 1), desk.instance("b", 2, 1)
    sent = desk.begun("clear", 1)
    desk.said(a, desk.part(a, sent["a"], "running", chunks=1))
    desk.answer(b, sent["b"], "done")
    late = Refused("timeout", "it did not answer", request=sent["a"].request)
    info = one(desk.hear(desk.connection(a), late))
    assert isinstance(info, JobInfo) and (info.job.state, info.job.chunks) == ("running", 1)


def test_what_the_only_one_refuses_is_no_job() -> None:
    desk = Desk()
    a = desk.instance("a", 1, 1)
    for answer, code in ((Refused("busy", "x"), "busy"), (Unsupported("pin"), "unsupported")):
        sent = desk.begun("pin", 1, owner="o")["a"]
        said = one(desk.hear(desk.connection(a), replace(answer, request=sent.request)))
        assert isinstance(said, Refused)
        assert (said.code, said.request, len(desk.table)) == (code, 5, 0)
    of_another = msgspec.msgpack.encode(Part("j9", "pin", "a", "running"))
    for garbage, why in ((b"garbage", "no part of a job"), (of_another, "that is of job 'j9'")):
        sent = desk.begun("pin", 1, owner="o")["a"]
        said = one(desk.hear(desk.connection(a), Done(sent.request, sent.id, garbage)))
        assert isinstance(said, Refused) and why in said.message
        assert len(desk.table) == 0


def test_one_that_does_not_answer_but_has_taken_it() -> None:
    desk = Desk()
    a = desk.instance("a", 1, 1)
    sent = desk.begun("pin", 1, owner="o", id="mine")["a"]
    out: list[Any] = []
    for _ in range(6):
        desk.wait(1, a)
        out += desk.commands.tick()
    said = one(out)
    assert isinstance(said, Refused) and said.code == "timeout"
    assert len(desk.table) == 0
    desk.said(a, desk.part(a, sent, "running"))
    again = one(desk.submit("pin", 1, owner="o", id="mine"))
    assert isinstance(again, JobInfo) and not again.new and again.job.id == sent.id


def test_a_job_that_was_sent_to_an_old_connection_is_sent_to_the_new_one() -> None:
    """As after a hang of the controller: it hears of the job before its instance registers anew."""
    desk = Desk()
    a = desk.instance("a", 1, 1)
    sent = desk.begun("pin", 1, owner="o", id="mine")["a"]
    desk.clock.advance(1.0)
    desk.connection = lambda stub: b"new"  # type: ignore[method-assign]
    desk.join(a)
    [(to, again, frames)] = desk.commands.tick()
    assert (to, again, frames) == (b"new", replace(sent, deadline=4.0), (keys(1),))
    info = one(desk.answer(a, again))
    assert isinstance(info, JobInfo) and (info.job.id, info.job.state) == (sent.id, "queued")
    assert len(desk.commands) == 0


def test_an_idempotency_key_at_a_controller_that_only_heard() -> None:
    desk, other = Desk(), Desk()
    a = desk.instance("a", 1, 1)
    sent = desk.begun("pin", 1, owner="o", id="mine")["a"]
    there = other.instance("a", 1, 1)
    other.said(there, desk.part(a, sent, "running"))
    same = one(other.submit("pin", 1, owner="o", id="mine"))
    assert isinstance(same, JobInfo) and (same.new, same.job.id) == (False, sent.id)
    for more in ({"owner": "p"}, {"owner": "o", "instance": "a"}):
        clash = one(other.submit("pin", 1, id="mine", **more))
        assert isinstance(clash, Refused) and (clash.code, clash.field) == ("conflict", "id")
    other.hear(CLIENT, Submit(5, "pin", owner="o"), keys(1))
    assert len(other.table) == 2  # without a key each is its own


def test_while_warming_only_those_are_asked_who_know_themselves_what_they_have() -> None:
    desk = Desk()
    desk.instance("a"), desk.instance("b")
    assert desk.registry.state == "warming"
    for more in ({"operation": "pin", "owner": "o"}, {"operation": "copy", "source": "b"}):
        assert set(desk.begun(more.pop("operation"), 1, instance="a", **more)) == {"a"}
    for operation in ("copy", "move"):
        refused = one(desk.submit(operation, 1, instance="a"))
        assert isinstance(refused, Refused) and refused.code == "warming"


# ------------------------------------------------------------------ who is gone


@pytest.mark.parametrize("how", ["left", "died", "started anew"])
def test_the_part_of_one_that_is_gone_has_failed(how: str) -> None:
    desk = Desk()
    a = desk.instance("a", 1, 1)
    sent = desk.begun("pin", 1, owner="o")["a"]
    desk.answer(a, sent, "running")
    desk.hear(desk.connection(a), PinsHeld(1, [PinState(sent.id, "a")], 1))
    if how == "left":
        desk.tell(a, (Leave(1), ()))
    elif how == "started anew":
        desk.tell(a, (Leave(1), ()))
        desk.instance("a", 2)
    else:
        desk.wait(6)
    desk.registry.tick()
    job = desk.job(sent.id)
    assert (job.state, job.code) == ("failed", "instance_gone")
    assert job.reason.startswith("instance 'a' ") and how in job.reason
    assert (desk.registry.pins.total, desk.table._open) == (0, {})
    assert desk.events()[-1][1].startswith("pin failed: instance 'a' ")


def test_one_that_was_only_cut_off_tells_the_truth_again() -> None:
    desk = Desk()
    a = desk.instance("a", 1, 1)
    sent = desk.begun("pin", 1, owner="o")["a"]
    desk.answer(a, sent, "running")
    desk.wait(6)
    assert desk.job(sent.id).state == "failed"
    desk.join(a)
    desk.said(a, desk.part(a, sent, "running", chunks=1))
    assert desk.job(sent.id).state == "running"


def test_a_part_that_nobody_tells_of_is_waited_for_a_while() -> None:
    """Of a controller that is gone, which had not told all instances."""
    desk = Desk()
    a = desk.instance("a", 1, 1)
    command = Command("j1", "clear", "a", arguments={"parts": "3"})
    desk.said(a, desk.part(a, command, "done"))
    desk.wait(9, a)
    assert desk.job("j1").state == "running"
    desk.wait(2, a)
    job = desk.job("j1")
    assert (job.state, job.instances, len(job.parts)) == ("failed", 3, 1)
    assert job.reason == "2 of 3 instances told nothing of it in 10 s"


def test_an_answer_that_comes_late_does_not_set_a_part_back() -> None:
    """It may wait for a link behind what the instance has told since."""
    desk = Desk()
    a, b = desk.instance("a", 1, 1), desk.instance("b", 2, 1)
    sent = desk.begun("clear", 1)
    for stub in (a, b):
        desk.said(stub, desk.part(stub, sent[stub.name], "running", chunks=1))
        desk.said(stub, desk.part(stub, sent[stub.name], "done", chunks=1))
    desk.answer(a, sent["a"], "queued")
    desk.said(b, desk.part(b, sent["b"], "running"))
    assert desk.job(sent["a"].id).state == "done"
    assert desk.table._open == {}
    again = desk.part(a, sent["a"], "queued", attempt=2)
    desk.said(a, again)
    assert desk.job(sent["a"].id).state == "running"  # of both together
    desk.said(a, replace(again, state="cancelled"))
    desk.tell(a, (Leave(1), ()))
    a = desk.instance("a", 9)
    desk.said(a, replace(again, state="queued", attempt=1))  # another life of it
    assert desk.job(sent["a"].id).state == "running"


def test_a_part_whose_end_was_told_and_not_heard_does_not_run_for_ever() -> None:
    """The instance remembers its last ended jobs only: who was cut off for a while may miss it."""
    desk = Desk()
    a, b = desk.instance("a", 1, 1), desk.instance("b", 2, 1)
    sent = desk.begun("clear", 1)
    for stub in (a, b):
        desk.answer(stub, sent[stub.name], "running")
    for _ in range(3):
        desk.wait(19, a, b)
        desk.said(a, desk.part(a, sent["a"], "running"))
    assert desk.job(sent["a"].id).state == "running"
    desk.wait(9, a, b)
    job = desk.job(sent["a"].id)
    assert [(part.instance, part.state) for part in job.parts] == [
        ("b", "failed"),
        ("a", "running"),
    ]
    assert job.code == "instance_gone" and "tells nothing more of it" in job.reason
    desk.said(b, desk.part(b, sent["b"], "done"))
    assert {part.state for part in desk.job(sent["a"].id).parts} == {"done", "running"}


def test_silence_while_the_controller_stood_still_is_nobodys() -> None:
    desk = Desk()
    a = desk.instance("a", 1, 1)
    desk.answer(a, desk.begun("pin", 1, owner="o", id="p")["a"], "running")
    desk.clock.advance(70)
    desk.registry.tick()
    assert {record.state for record in desk.table._jobs.values()} == {"running"}


def test_what_had_ended_before_is_no_event() -> None:
    desk = Desk()
    a = desk.instance("a", 1, 1)
    desk.said(a, Part("j1", "clear", "a", "done", bytes=7, age=30.0, ended_age=20.0))
    assert desk.events() == [] and desk.table.ended == {} and not desk.table.bytes
    job = desk.job("j1")
    assert (job.age, job.ended_age) == (30.0, 20.0)


# ------------------------------------------------------------------ bounds


def test_the_oldest_ended_ones_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_table, "KEPT", 3)
    desk = Desk()
    a = desk.instance("a", 1, 1)
    for number, state in enumerate(("running", "done", "done", "done")):
        desk.clock.advance(1)
        desk.said(a, Part(f"j{number}", "clear", "a", state))
    page = desk.table.page(Jobs(1))
    assert isinstance(page, JobsInfo)
    assert [job.id for job in page.jobs] == ["j3", "j2", "j0"]
    for number in (2, 3):
        desk.said(a, Part(f"j{number}", "clear", "a", "running", attempt=2))
    refused = one(desk.submit("clear", 1))
    assert isinstance(refused, Refused) and refused.code == "busy"
    desk.said(a, Part("j9", "clear", "a", "running"))
    assert len(desk.table) == 3
    desk.said(a, Part("j0", "clear", "a", "done"))
    desk.begun("clear", 1)
    assert len(desk.table) == 3 and desk.table.find("j0") is None


def test_parts_of_all_jobs_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_table, "PARTS", 5)
    desk = Desk()
    stubs = [desk.instance(name, n) for n, name in enumerate("abc", 1)]
    for job in ("j1", "j2"):
        desk.clock.advance(1)
        for stub in stubs:
            desk.said(stub, Part(job, "clear", stub.name, "done", parts=3))
    assert desk.table.find("j1") is None and desk.job("j2").state == "done"
    refused = [desk.submit("clear", whole=True), desk.submit("clear", whole=True)]
    assert [type(sent) for _, sent, _ in refused[0]] == [Command] * 3
    second = one(refused[1])
    assert isinstance(second, Refused) and second.code == "busy"
    assert (desk.table._parts, len(desk.table)) == (3, 1)


def test_texts_of_others_are_bounded_and_printable() -> None:
    desk = Desk()
    a = desk.instance("a", 1)
    many = {f"{n:04}": 1 for n in range(1000)}
    desk.said(a, Part("j1", "\x1b[2J" * 99, "a", "failed", code="c" * 999, reason="r\n" * 9999,
                      command="d" * 9999, skipped=many))  # fmt: skip
    [part] = desk.job("j1").parts
    assert len(msgspec.msgpack.encode(part)) < 1500
    assert "\x1b" not in part.operation and "\n" not in part.reason
    for wrong in (Part("j2", "pin", "b"), Part("j2", "pin", "a", "sunk")):
        with pytest.raises(ValueError, match=r"tells of one of 'b'|allowed is one of"):
            desk.said(a, wrong)
    with pytest.raises(ValueError, match="of another instance"):
        desk.hear(desk.connection(a), PinsHeld(1, [PinState("j1", "b")], 1))
    assert desk.table.find("j2") is None
    stranger = desk.hear(b"nobody", Job(1, Part("j3", "pin", "a")))
    assert stranger[0][1].code == "not_registered" and desk.table.find("j3") is None


def test_a_thousand_instances_a_few_at_a_time() -> None:
    desk = Desk()
    stubs = [desk.instance(f"i{n:04}", n + 1) for n in range(1000)]
    by_connection = {desk.connection(stub): stub for stub in stubs}
    waiting = desk.submit("clear", whole=True)
    assert len(waiting) == jobs.AT_ONCE
    answers = 0
    while waiting:
        to, sent, _ = waiting.pop(0)
        if to == CLIENT:
            break
        waiting += desk.answer(by_connection[to], sent, "done")
        assert len(desk.commands) <= jobs.AT_ONCE
        answers += 1
    assert isinstance(sent, JobInfo)
    assert (answers, sent.job.instances, sent.job.state) == (1000, 1000, "done")
    page = desk.table.page(Jobs(1))
    assert isinstance(page, JobsInfo) and len(page.jobs[0].parts) == job_table.LISTED


def test_what_is_cancelled_before_all_have_heard_of_it() -> None:
    desk = Desk()
    stubs = [desk.instance(f"i{n:04}", n + 1) for n in range(100)]
    by_connection = {desk.connection(stub): stub for stub in stubs}
    begun = desk.submit("clear", whole=True)
    name = begun[0][1].id
    cancels = desk.hear(b"other client", AskJob(6, name, "cancel"))
    assert cancels == []  # there is no room: they wait for the answers
    said: list[Message] = []
    waiting, heard = begun, 0
    while waiting:
        to, sent, _ = waiting.pop(0)
        if not isinstance(sent, Command):
            said.append(sent)
            continue
        heard += sent.operation == "clear"
        state = "cancelled" if sent.operation == "cancel" else "queued"
        part = Command(name, "clear", sent.instance, arguments={"parts": "100"})
        answer = desk.part(by_connection[to], part, state)
        done = Done(sent.request, sent.id, msgspec.msgpack.encode(answer))
        waiting += desk.hear(to, done)
    assert heard == jobs.AT_ONCE  # nobody else was asked to
    assert [type(each) for each in said] == [JobInfo, JobInfo]
    job = desk.job(name)
    assert (job.state, job.instances, len(desk.commands)) == ("cancelled", 100, 0)


def test_a_thousand_that_cannot_be_asked() -> None:
    desk = Desk()
    for n in range(1000):
        desk.instance(f"i{n:04}", n + 1)
    desk.wait(4)  # they are suspect
    info = one(desk.submit("clear", whole=True))
    assert isinstance(info, JobInfo)
    assert (info.job.state, info.job.code, len(desk.commands)) == ("failed", "unavailable", 0)
    assert "(and 999 more)" in info.job.reason


def test_what_a_job_adds_up_is_what_its_parts_say() -> None:
    desk = Desk()
    dice = random.Random(4)
    stubs = [desk.instance(f"i{n}", n + 1) for n in range(6)]
    said: dict[str, Part] = {}
    for _ in range(400):
        stub = dice.choice(stubs)
        before = said.get(stub.name)
        attempt = before.attempt if before is not None else 1
        part = Part(
            "j1", "copy", stub.name, dice.choice(STATES), "", *dice.choices(range(99), k=4),
            {word: dice.randrange(9) for word in dice.sample(["absent", "pinned", "limit"], 2)},
            parts=6, attempt=attempt + 1,
        )  # fmt: skip
        said[stub.name] = part
        desk.said(stub, part)
        job = desk.job("j1")
        for word in ("chunks", "chunks_total", "bytes", "bytes_total"):
            assert getattr(job, word) == sum(getattr(each, word) for each in said.values())
        skipped = Counter[str]()
        for each in said.values():
            skipped.update(each.skipped)
        assert job.skipped == {word: n for word, n in skipped.items() if n}
        assert {each.instance: each.state for each in job.parts} == {
            name: each.state for name, each in said.items()
        }
        assert (job.attempt, desk.table._parts) == (
            max(each.attempt for each in said.values()), len(said)
        )  # fmt: skip
        waits = {name for name, each in said.items() if each.state in OPEN}
        assert set(desk.table._waits) == waits
    for stub in stubs:
        desk.said(stub, replace(said[stub.name], state="done", bytes=7, attempt=999))
    desk.table.drop("j1")  # they have told of it
    assert (desk.job("j1").state, desk.job("j1").bytes, desk.table._waits) == ("done", 42, {})


def test_numbers_that_no_message_holds_are_cut() -> None:
    desk = Desk()
    most = (1 << 64) - 1
    for name, epoch in (("a", 1), ("b", 2)):
        stub = desk.instance(name, epoch)
        for bytes_ in (0, most):
            desk.said(stub, Part("j1", "copy", name, "running", bytes=bytes_, chunks=bytes_,
                                 skipped={"x" * 999: most}))  # fmt: skip
    job = desk.job("j1")
    assert (job.bytes, job.chunks, job.skipped) == (most, most, {"x" * 64: most})
    encoded = [wire.encode(JobInfo(1, job)), wire.encode(desk.ask(Status()))]
    assert [wire.decode(each)[0] is not None for each in encoded] == [True, True]


def test_a_tick_looks_at_no_part_of_those_who_are_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand instances may have their part of a job."""
    desk = Desk()
    stubs = [desk.instance(f"i{n}", n + 1) for n in range(9)]
    for stub in stubs:
        desk.said(stub, Part("j1", "clear", stub.name, "running", parts=9))
    looked: list[str] = []
    look = desk.table._look
    monkeypatch.setattr(
        desk.table, "_look", lambda *given: [looked.append(given[1].part.instance), look(*given)]
    )
    desk.wait(4, *stubs)
    assert looked == []
    desk.wait(6, *stubs[1:])
    assert "i0" in looked and looked.count("i1") <= 2  # every few seconds, whether they are silent
    assert desk.job("j1").parts[0].reason.startswith("instance 'i0' died")


# ------------------------------------------------------------------ cancel, retry


def test_cancel_asks_those_that_have_not_ended() -> None:
    desk = Desk()
    a, b = desk.instance("a", 1, 1), desk.instance("b", 2, 1)
    sent = desk.begun("clear", 1)
    desk.answer(a, sent["a"], "done")
    desk.answer(b, sent["b"], "running")
    [(to, cancel, _)] = desk.hear(CLIENT, AskJob(6, sent["a"].id, "cancel"))
    assert to == desk.connection(b)
    assert (cancel.operation, cancel.arguments) == ("cancel", {"job": sent["a"].id})
    part = desk.part(b, sent["b"], "cancelled")
    done = Done(cancel.request, cancel.id, msgspec.msgpack.encode(part))
    info = one(desk.hear(desk.connection(b), done))
    assert isinstance(info, JobInfo)
    assert (info.request, info.job.state) == (6, "cancelled")
    [(to, retry, _)] = desk.hear(CLIENT, AskJob(7, sent["a"].id, "retry"))
    assert (to, retry.operation) == (desk.connection(b), "retry")
    assert len({sent["a"].id, cancel.id, retry.id}) == 3  # or it would be answered as before
    lost = Refused("unknown_job", "job j.. is not known here", request=retry.request)
    refused = one(desk.hear(desk.connection(b), lost))
    assert isinstance(refused, Refused) and (refused.code, refused.request) == ("unknown_job", 7)


def test_nobody_can_retry_what_was_of_one_that_left() -> None:
    desk = Desk()
    a = desk.instance("a", 1, 1)
    sent = desk.begun("clear", 1)["a"]
    desk.answer(a, sent, "running")
    desk.tell(a, (Leave(1), ()))
    desk.registry.tick()
    refused = one(desk.hear(CLIENT, AskJob(6, sent.id, "retry")))
    assert isinstance(refused, Refused) and refused.code == "unavailable"
    assert "submit it again" in refused.message


def test_a_retry_that_nobody_takes_is_refused_though_one_of_them_has_left() -> None:
    desk = Desk()
    a, b = desk.instance("a", 1, 1), desk.instance("b", 2, 1)
    sent = desk.begun("clear", 1)
    for stub in (a, b):
        desk.answer(stub, sent[stub.name], "running")
        desk.said(stub, desk.part(stub, sent[stub.name], "failed"))
    desk.tell(a, (Leave(1), ()))
    [(_, retry, _)] = desk.hear(CLIENT, AskJob(6, sent["a"].id, "retry"))
    lost = Refused("unknown_job", "job j.. is not known here", request=retry.request)
    refused = one(desk.hear(desk.connection(b), lost))
    assert isinstance(refused, Refused) and (refused.code, refused.request) == ("unknown_job", 6)


# ------------------------------------------------------------------ prompts, pins


def test_text_is_made_tokens_by_an_instance_first() -> None:
    desk = Desk()
    a = desk.instance("a")
    [(_, asked, _)] = desk.submit("pin", text="hello", owner="o", id="mine")
    assert (asked.operation, asked.arguments) == ("lookup_text", {"text": "hello"})
    ids = list(range(32))
    found = desk.ask(Lookup(1, ids))
    assert isinstance(found, LookupInfo)
    desk.tell(a, *_held(a, [bytes.fromhex(key) for key in found.keys]))
    tokens = b"".join(number.to_bytes(4, "little") for number in ids)
    done = Done(asked.request, asked.id, msgspec.msgpack.encode(TextResult(32)))
    [(to, sent, frames)] = desk.hear(desk.connection(a), done, tokens)
    assert (to, sent.operation) == (desk.connection(a), "pin")
    assert frames == (b"".join(map(bytes.fromhex, found.keys)),)
    assert "text" not in sent.arguments


def _held(stub: StubInstance, each: list[bytes]) -> Any:
    reserved = stub.table.reserve(b"".join(each), 0.0)
    assert reserved is not None
    stub.table.admit(*reserved)
    return stub.changes()


def test_all_cache_groups_have_their_keys_chunk_by_chunk() -> None:
    desk = Desk()
    stub = StubInstance("a")
    stub.registration.group_specs = ["kind=full\n", "kind=window\nwindow=64\n"]
    a = desk.join(stub)
    found = desk.ask(Lookup(1, list(range(32))))
    assert isinstance(found, LookupInfo)
    desk.tell(a, *_held(a, [bytes.fromhex(key) for key in found.keys]))
    [(_, _, [frame])] = desk.submit("clear", tokens=list(range(32)))
    got = [frame[i : i + 16].hex() for i in range(0, len(frame), 16)]
    assert len(set(got)) == 4 and got[0::2] == found.keys


def test_pins_by_instance_and_their_time() -> None:
    desk = Desk()
    for name, epoch in (("a b", 1), ("a", 2)):
        stub = desk.instance(name, epoch)
        pins = [PinState(f"j{n}", name, left=5.0) for n in range(3)]
        pins[0].left = 0.0
        desk.hear(desk.connection(stub), PinsHeld(epoch, pins, 300))
    desk.clock.advance(2)
    seen, after = [], ""
    while True:
        [(_, page, _)] = desk.hear(CLIENT, Pins(1, limit=2, after=after))
        assert isinstance(page, PinsInfo) and page.total == 600
        seen += [(pin.instance, pin.id, pin.left) for pin in page.pins]
        after = page.next
        if not after:
            break
    assert len(seen) == len(set(seen)) == 6
    assert {left for _, _, left in seen} == {0.0, 3.0}
    desk.clock.advance(9)
    [(_, page, _)] = desk.hear(CLIENT, Pins(1, "a"))
    assert [pin.left for pin in page.pins] == [0.0, 0.001, 0.001]
