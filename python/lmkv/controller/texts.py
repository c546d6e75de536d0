"""Lookups of text, chat messages and LoRA adapters: an instance says what they are to its model.

hear() -> `lookup_text` at a live instance of the model, the least loaded -> the lookup or route
itself, as if its tokens had been given. The text goes through the controller and stays nowhere.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Union

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
    TextResult,
    Unsupported,
)

DEADLINE = 10.0  # seconds that an instance may take
Question = Union[Lookup, Route]


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

        wrong = several(message)
        if wrong is not None:
            return say(wrong)
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
        return self._commands.start(command, [], self._then(message, instance, say))

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

    def _then(
        self, message: Question, instance: Instance, say: Callable[[Message], list[Out]]
    ) -> Callable[[Answer, list[bytes]], list[Out]]:
        def then(answer: Answer, frames: list[bytes]) -> list[Out]:
            if isinstance(answer, Unsupported):
                text = f"text: instance {instance.name!r} is of a release that looks up tokens only"
                return say(Refused("unavailable", text, "text", message.request))
            if isinstance(answer, Refused):
                return say(msgspec.structs.replace(answer, request=message.request))
            try:
                return say(self._answer(message, answer, frames))
            except (ValueError, msgspec.MsgspecError) as error:
                text = f"instance {instance.name!r} answered lookup_text with no result: {error}"
                return say(Refused("failed", text, request=message.request))

        return then

    def _answer(self, message: Question, done: Done, frames: list[bytes]) -> Message:
        result = msgspec.msgpack.decode(done.result, type=TextResult)
        tokens = message.tokens
        if frames:
            wire.counts(frames, 4, limit=len(frames[0]))
            tokens = list(memoryview(frames[0]).cast("I"))
        question = msgspec.structs.replace(message, tokens=tokens)
        if isinstance(question, Lookup):
            return prompts.lookup(self._registry, question, [], result.lora)
        return prompts.route(self._registry, question, result.lora)


def several(message: Question) -> Refused | None:
    """What is wrong where a prompt is given in more than one form."""
    given = [name for name in ("tokens", "text", "messages") if getattr(message, name)]
    if len(given) < 2:
        return None
    text = f"{given[1]}: a prompt is given as tokens, text or messages; {given[0]} are given too"
    return Refused("field", text, given[1], message.request)
