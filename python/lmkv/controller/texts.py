"""Lookups of text, chat messages and LoRA adapters: an instance says what they are to its model.

hear() -> `lookup_text` at a live instance of the model, the least loaded -> the lookup or route
itself, as if its tokens had been given. The text goes through the controller and stays nowhere.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import TypeVar, Union

import msgspec

from lmkv.controller import prompts
from lmkv.controller.checks import Answer
from lmkv.controller.commands import Commands
from lmkv.controller.instance import Instance
from lmkv.controller.registry import Out, Registry
from lmkv.core import wire
from lmkv.core.messages import (
    AnyMessage,
    Command,
    Done,
    Lookup,
    Message,
    Refused,
    Route,
    Submit,
    TextResult,
    Unsupported,
)

DEADLINE = 10.0  # seconds that an instance may take
Question = Union[Lookup, Route]
Q = TypeVar("Q", bound=Union[Lookup, Route])
Say = Callable[[Message], "list[Out]"]
Then = Callable[[Question, bytes], "list[Out]"]


class Texts:
    def __init__(self, registry: Registry, commands: Commands) -> None:
        self._registry = registry
        self._commands = commands

    def hear(self, connection: bytes, message: AnyMessage) -> list[Out] | None:
        """None: it needs no instance."""
        if not isinstance(message, (Lookup, Route)):
            return None
        if not (message.text or message.messages or message.lora):
            return None

        def say(answer: Message) -> list[Out]:
            return [(connection, answer, ())]

        def then(question: Question, lora: bytes) -> list[Out]:
            if isinstance(question, Lookup):
                return say(prompts.lookup(self._registry, question, [], lora))
            return say(prompts.route(self._registry, question, lora))

        wrong = several(message)
        return say(wrong) if wrong is not None else self.resolve(message, then, say)

    def resolve(self, message: Question, then: Then, say: Say) -> list[Out]:
        """`then` hears of the same question with tokens, and the hash of its LoRA; `say` of a
        refusal."""
        instance = self._asked(message)
        if isinstance(instance, Refused):
            return say(instance)
        arguments = {"text": message.text, "lora": message.lora}
        if message.messages:
            arguments["messages"] = msgspec.json.encode(message.messages).decode()
        arguments = {name: text for name, text in arguments.items() if text}
        command = Command(
            secrets.token_hex(8), "lookup_text", instance.name, arguments=arguments,
            deadline=DEADLINE,
        )  # fmt: skip
        answered = self._answered(message, instance, then, say)
        return self._commands.start(command, [], answered)

    def _asked(self, message: Question) -> Instance | Refused:
        """Who is asked: of those whose keys are meant."""
        if isinstance(message, Lookup):
            like = prompts.like(self._registry, message)
            if isinstance(like, Refused) or (message.like and like.state == "live"):
                return like
            group = like.group
            live = [
                each
                for each in self._registry.instances.values()
                if each.state == "live" and each.group == group
            ]
        else:
            found = prompts.served(self._registry, message)
            if isinstance(found, Refused):
                return found
            live, like = found, None
        if not live:
            name = f"instance {like.name!r}" if like is not None else "any instance"
            text = f"text: {name} cannot be asked now: no live one has its tokenizer"
            return Refused("unavailable", text, "text", message.request)
        return min(live, key=lambda each: (each.load, each.name))

    def _answered(
        self, message: Question, instance: Instance, then: Then, say: Say
    ) -> Callable[[Answer, list[bytes]], list[Out]]:
        def answered(answer: Answer, frames: list[bytes]) -> list[Out]:
            if isinstance(answer, Unsupported):
                text = f"text: instance {instance.name!r} is of a release that looks up tokens only"
                return say(Refused("unavailable", text, "text", message.request))
            if isinstance(answer, Refused):
                return say(msgspec.structs.replace(answer, request=message.request))
            try:
                return then(*_read(message, answer, frames))
            except (ValueError, msgspec.MsgspecError) as error:
                text = f"instance {instance.name!r} answered lookup_text with no result: {error}"
                return say(Refused("failed", text, request=message.request))

        return answered


def _read(message: Q, done: Done, frames: list[bytes]) -> tuple[Q, bytes]:
    """The question with its tokens, and its LoRA's hash. Raises ValueError, MsgspecError."""
    result = msgspec.msgpack.decode(done.result, type=TextResult)
    tokens = message.tokens
    if frames:
        wire.counts(frames, 4, limit=len(frames[0]))
        tokens = list(memoryview(frames[0]).cast("I"))
    return msgspec.structs.replace(message, tokens=tokens), result.lora


def several(message: Question | Submit) -> Refused | None:
    """What is wrong where a prompt is given in more than one form."""
    given = [name for name in ("tokens", "text", "messages") if getattr(message, name)]
    if len(given) < 2:
        return None
    text = f"{given[1]}: a prompt is given as tokens, text or messages; {given[0]} are given too"
    return Refused("field", text, given[1], message.request)
