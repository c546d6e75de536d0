"""Jobs: what people want done, made into commands to the instances that do it.

hear(): `Submit` -> its keys (text and messages by an instance's tokenizer) -> the instances -> a
command each, of the job's id -> `JobInfo` as soon as each has taken it or said why not. An instance
tells all controllers of it from then on (`job_table.py`), so that this one is not needed any more.
The id of an idempotency key is the same everywhere, and so is the digest of what was asked: a
repetition is answered with the job that there is, by whichever controller. `AskJob` cancels and
retries by commands of that name to the parts that it fits.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from lmkv.controller import job_checks, prompts, texts
from lmkv.controller.access import WEB
from lmkv.controller.checks import Answer
from lmkv.controller.commands import Commands
from lmkv.controller.instance import Instance
from lmkv.controller.job_table import Record, unknown_job
from lmkv.controller.registry import Out, Registry
from lmkv.core import jobs
from lmkv.core.messages import (
    ENDED,
    KEYS_A_JOB,
    AnyMessage,
    AskJob,
    Command,
    Done,
    JobInfo,
    Jobs,
    Lookup,
    Message,
    Part,
    Pins,
    Refused,
    Submit,
    Unsupported,
)
from lmkv.core.wire import KEY_BYTES

DEADLINE = 5.0  # seconds in which an instance takes a job
AT_ONCE = 64  # commands of jobs that are not answered, so that others have room

Say = Callable[[Message], "list[Out]"]


@dataclass(eq=False)
class _Sending:
    """One command of a job to several instances, a few at a time; `end` hears what they refused."""

    job: str
    command: Command
    frames: list[bytes]
    targets: deque[Instance]
    fresh_ids: bool  # each its own, or it would be answered as before
    refused: Callable[[Instance, Refused], None]
    end: Callable[[list[Refused]], list[Out]]
    wrong: list[Refused] = field(default_factory=list)
    out: int = 0  # commands that are not answered
    going: bool = False  # `_send` is at it


class JobDesk:
    def __init__(self, registry: Registry, commands: Commands, asking: texts.Texts) -> None:
        self._registry = registry
        self._table = registry.jobs
        self._commands = commands
        self._texts = asking
        self._open = 0  # commands that are not answered
        self._waiting: deque[_Sending] = deque()  # that have more to send

    def hear(
        self, connection: bytes, message: AnyMessage, frames: list[bytes], sender: str = ""
    ) -> list[Out] | None:
        """None: it is not about jobs. `sender` is the client's name by its keys, where it has some;
        a web process says itself who asked it."""

        def say(answer: Message) -> list[Out]:
            return [(connection, answer, ())]

        if isinstance(message, Submit):
            if sender not in ("", WEB):
                message.asked_by = sender
            return self._submit(message, frames, say)
        if isinstance(message, AskJob):
            return self._ask(message, say)
        if isinstance(message, Jobs):
            return say(self._table.page(message))
        if isinstance(message, Pins):
            return say(self._registry.pins.page(message))
        return None

    # ------------------------------------------------------------ a new one

    def _submit(self, message: Submit, frames: list[bytes], say: Say) -> list[Out]:
        wrong = job_checks.unfit(message, frames)
        if wrong is None and self._registry.config.require_salt:
            wrong = job_checks.unsalted(message)
        if wrong is not None:
            return say(wrong)
        command = jobs.digest_of(message, frames)
        name = jobs.id_of(message.id) if message.id else jobs.new_id()
        known = self._table.find(name)
        if known is not None:
            return say(self._known(message, known, command))
        places = job_checks.places(self._registry, message)
        if isinstance(places, Refused):
            return say(places)
        if message.whole or frames:
            keys = frames[0] if frames else b""
            return self._begin(name, command, message, keys, say)
        like = message.like or message.instance or message.source
        asked = Lookup(message.request, message.tokens, message.text, message.messages,
                       message.salt, message.lora, like, message.model)  # fmt: skip

        def then(question: texts.Question, lora: bytes) -> list[Out]:
            assert isinstance(question, Lookup)
            keys = self._keys(question, lora)
            if isinstance(keys, Refused):
                return say(keys)
            return self._begin(name, command, message, keys, say)

        if message.text or message.messages or message.lora:
            return self._texts.resolve(asked, then, say)
        return then(asked, b"")

    def _known(self, message: Submit, record: Record, command: str) -> Message:
        if any(told.part.command != command for told in record.parts.values()):
            text = f"id {message.id!r}: another job had it ({record.id}): give each one its own"
            return Refused("conflict", text, "id", message.request)
        return JobInfo(message.request, self._table.view(record), new=False)

    def _keys(self, question: Lookup, lora: bytes) -> bytes | Refused:
        like = prompts.like(self._registry, question)
        if isinstance(like, Refused):
            return like
        registration = like.registration
        keys = prompts.keys_of_all_groups(registration, question.tokens, question.salt, lora)
        count, chunk = len(keys) // KEY_BYTES, registration.chunk_tokens
        field = next((f for f in ("text", "messages") if getattr(question, f)), "tokens")
        if not count:
            text = f"{field}: {len(question.tokens)} tokens are less than a chunk of {chunk}, "
            return Refused("field", text + "and only whole ones are kept", field, question.request)
        if count > KEYS_A_JOB:
            text = f"{field}: {count} chunks, at most {KEYS_A_JOB} are allowed"
            return Refused("too_large", text, field, question.request)
        return keys

    def _begin(self, name: str, command: str, message: Submit, keys: bytes, say: Say) -> list[Out]:
        """Send it to the instances that do it."""
        targets = job_checks.targets(self._registry, message, keys)
        if isinstance(targets, Refused):
            return say(targets)
        again = self._table.find(name)  # asked for twice while an instance was asked for the text
        if again is not None:
            return say(self._known(message, again, command))
        if self._table.full(len(targets)):
            text = "more jobs have not ended than this controller remembers: try again later"
            return say(Refused("busy", text, request=message.request))
        part = Part(
            name, message.operation, "", source=message.source, asked_by=message.asked_by,
            parts=len(targets), command=command, owner=message.owner, ttl=message.ttl,
        )  # fmt: skip
        for instance in targets:
            self._table.add(instance, msgspec.structs.replace(part, instance=instance.name))

        def refused(instance: Instance, answer: Refused) -> None:
            failed = msgspec.structs.replace(
                part, instance=instance.name, state="failed", code=answer.code,
                reason=answer.message,
            )  # fmt: skip
            if len(targets) > 1:
                self._table.add(instance, failed)

        def end(wrong: list[Refused]) -> list[Out]:
            if wrong and len(targets) == 1:
                self._table.drop(name)
                return say(msgspec.structs.replace(wrong[0], request=message.request))
            return say(self._info(message.request, name))

        sent = Command(name, message.operation, arguments=_arguments(message, part))
        frames = [] if message.whole else [keys]
        sending = _Sending(name, sent, frames, deque(targets), False, refused, end)
        return self._send(sending)

    def _info(self, request: int, name: str) -> Message:
        record = self._table.find(name)
        if record is None:
            return unknown_job(name, request)
        return JobInfo(request, self._table.view(record))

    # ------------------------------------------------------------ one that there is

    def _ask(self, message: AskJob, say: Say) -> list[Out]:
        record = self._table.find(message.id)
        if record is None:
            return say(unknown_job(message.id, message.request))
        if not message.action:
            return say(self._info(message.request, record.id))
        states = job_checks.FITTING.get(message.action)
        if states is None:
            allowed = ", ".join(job_checks.FITTING)
            text = f"action {message.action[:64]!r}: allowed is one of {allowed}, or none"
            return say(Refused("field", text, "action", message.request))
        fitting = [t.part.instance for t in record.parts.values() if t.part.state in states]
        if not fitting:
            view = self._table.view(record)
            return say(job_checks.unfitting(view, message.action, message.request))
        found = [self._registry.instances.get(name) for name in fitting]
        targets = deque(instance for instance in found if instance is not None)
        if not targets:
            text = f"job {record.id}: instance {fitting[0]!r} has left, so that nobody can "
            text += f"{message.action} it; submit it again"
            return say(Refused("unavailable", text, "id", message.request))

        def end(wrong: list[Refused]) -> list[Out]:
            if wrong and len(wrong) == len(asked):
                return say(msgspec.structs.replace(wrong[0], request=message.request))
            return say(self._info(message.request, record.id))

        if message.action == "cancel":
            self._withdraw(record)
            targets = deque(each for each in targets if _open(record, each))
        asked = list(targets)
        sent = Command("", message.action, arguments={"job": record.id})
        return self._send(
            _Sending(record.id, sent, [], targets, True, lambda instance, answer: None, end)
        )

    def _withdraw(self, record: Record) -> None:
        """What has not been sent of it stays here."""
        for sending in self._waiting:
            if sending.job == record.id:
                for instance in sending.targets:
                    told = record.parts[instance.name].part
                    self._table.add(instance, msgspec.structs.replace(told, state="cancelled"))
                sending.targets.clear()

    # ------------------------------------------------------------ to instances

    def _send(self, sending: _Sending) -> list[Out]:
        """As many as there is room for; the rest when others are answered."""
        out: list[Out] = []
        sending.going = True  # what is refused at once calls back from inside
        while sending.targets and self._open < AT_ONCE:
            instance = sending.targets.popleft()
            sending.out += 1
            self._open += 1
            name = secrets.token_hex(16) if sending.fresh_ids else sending.command.id
            command = msgspec.structs.replace(
                sending.command, id=name, instance=instance.name, deadline=DEADLINE
            )
            then = self._answered(sending, instance)
            out += self._commands.start(command, sending.frames, then)
        sending.going = False
        if sending.targets:
            self._waiting.append(sending)
        elif not sending.out:
            out += sending.end(sending.wrong)
        return out

    def _answered(
        self, sending: _Sending, instance: Instance
    ) -> Callable[[Answer, list[bytes]], list[Out]]:
        def answered(answer: Answer, frames: list[bytes]) -> list[Out]:
            sending.out -= 1
            self._open -= 1
            refused = _refusal(instance, sending.command.operation, answer)
            if refused is None:
                assert isinstance(answer, Done)
                refused = self._taken(instance, answer, sending.job)
            if refused is not None:
                sending.wrong.append(refused)
                sending.refused(instance, refused)
            if sending.going:
                return []
            out: list[Out] = []
            if not sending.targets and not sending.out and sending not in self._waiting:
                out += sending.end(sending.wrong)
            while self._waiting and self._open < AT_ONCE:
                out += self._send(self._waiting.popleft())
            return out

        return answered

    def _taken(self, instance: Instance, answer: Done, job: str) -> Refused | None:
        """What is wrong with its answer."""
        try:
            part = msgspec.msgpack.decode(answer.result, type=Part)
            if part.id != job:
                raise ValueError(f"that is of job {part.id!r}, this is {job}")
            self._table.take(instance, part)
        except (ValueError, msgspec.MsgspecError) as error:
            text = f"instance {instance.name!r} answered with what is no part of a job: {error}"
            return Refused("failed", text)
        return None


def _open(record: Record, instance: Instance) -> bool:
    told = record.parts.get(instance.name)
    return told is not None and told.part.state not in ENDED


def _refusal(instance: Instance, operation: str, answer: Answer) -> Refused | None:
    if isinstance(answer, Unsupported):
        text = f"instance {instance.name!r} is of a release that does not know {operation!r}"
        return Refused("unsupported", text, "operation")
    return answer if isinstance(answer, Refused) else None


def _arguments(message: Submit, part: Part) -> dict[str, str]:
    """Of the command; those at their default are left out."""
    found = {
        "source": message.source,
        "ttl": str(message.ttl) if message.ttl else "",
        "owner": message.owner,
        "whole": "1" if message.whole else "",
        "parts": str(part.parts),
        "asked_by": message.asked_by,
        "command": part.command,
    }
    return {name: value for name, value in found.items() if value}
