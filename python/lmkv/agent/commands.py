"""What controllers command: take() -> a handler, in threads of its own -> answer().

`take` and `answer` are the background thread's; handlers run in two daemon threads, which begin
with the first command, so that neither a heartbeat nor the scheduler waits for one. An operation
without a handler is answered `Unsupported` by name. A command that is repeated, by whichever
controller, is answered as before and not carried out again; another one under the same id is
refused. Operations that only queue something, or look, are answered at once by `prompt` handlers,
which know a repetition themselves.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from lmkv.core import wire
from lmkv.core.clock import Clock, Deadline
from lmkv.core.messages import RESULT_BYTES, Command, Done, Message, Refused, Unsupported

log = logging.getLogger("lmkv.agent")

THREADS = 2
WAITING = 16  # commands that no thread has taken
UNSENT = 16  # answers, to each controller: as many commands as it has at once
REMEMBERED, REMEMBERED_BYTES = 128, 1 << 22  # commands whose answer is kept

Frames = list[bytes]
Asker = tuple[str, int]  # a controller's address, its number
# Answers the operation's struct and the frames behind it.
Handler = Callable[[Command, Frames, Deadline], "tuple[Any, Frames]"]


class Failed(Exception):
    """A handler's sentence for whoever asked; `code` is stable."""

    def __init__(self, code: str, message: str, name: str = "") -> None:
        super().__init__(message)
        self.code, self.message, self.field = code, message, name


def number(command: Command, name: str, default: int, least: int, most: int) -> int:
    """An argument that is one. Raises Failed."""
    text = command.arguments.get(name, str(default))
    # The length comes first: Python refuses to read thousands of digits.
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and least <= int(text) <= most):
        said = f"{name} = {text[:20]!r}: allowed is a number from {least} to {most}"
        raise Failed("field", said, name)
    return int(text)


@dataclass
class _Known:
    command: bytes  # digest of what was asked
    askers: list[Asker] = field(default_factory=list)  # who waits
    result: bytes | None = None  # None: it has not ended
    frames: Frames = field(default_factory=list)

    @property
    def size(self) -> int:
        return len(self.result or b"") + sum(map(len, self.frames))


class Commands:
    def __init__(
        self,
        handlers: Mapping[str, Handler],
        wake: Callable[[], None],
        clock: Clock,
        prompt: Mapping[str, Handler] | None = None,
    ) -> None:
        """`wake()` is called when there is something to send; `prompt` handlers are called by the
        background thread."""
        self._handlers = handlers
        self._prompt = prompt or {}
        self._wake = wake
        self._clock = clock
        self._lock = threading.Lock()
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._unsent: dict[str, deque[tuple[Message, Frames]]] = {}  # by controller
        self._queue: queue.Queue[tuple[Command, Frames, Deadline]] = queue.Queue(WAITING)
        self._threads: list[threading.Thread] = []

    # ------------------------------------------------------------ the background thread

    def take(self, address: str, command: Command, frames: Frames) -> None:
        """A controller commands; never waits."""
        if command.operation in self._prompt:
            self._at_once(address, command, frames)
            return
        asker, digest = (address, command.request), _digest(command, frames)
        with self._lock:
            self._unsent.setdefault(address, deque(maxlen=UNSENT))
            if command.operation not in self._handlers:
                self._say(asker, Unsupported(command.operation))
                return
            known = self._known.get(command.id)
            if known is None:
                known = self._known[command.id] = _Known(digest, [asker])
            elif known.command != digest:
                text = f"id {command.id!r}: another command had it; give each one its own"
                self._say(asker, Refused("field", text, "id"))
                return
            elif known.result is None:  # it runs, and answers all who ask
                if len(known.askers) < WAITING:
                    known.askers.append(asker)
                return
            else:
                self._say(asker, Done(0, command.id, known.result), known.frames)
                return
        self._begin(command, frames)

    def _at_once(self, address: str, command: Command, frames: Frames) -> None:
        until = Deadline(command.deadline, self._clock)
        answer, behind = self._answer(self._prompt, command, frames, until)
        with self._lock:
            self._unsent.setdefault(address, deque(maxlen=UNSENT))
            self._say((address, command.request), answer, behind)

    def _begin(self, command: Command, frames: Frames) -> None:
        try:
            self._queue.put_nowait((command, frames, Deadline(command.deadline, self._clock)))
        except queue.Full:
            text = f"{WAITING} commands wait here, which is the most: try again later"
            self._end(command, Refused("busy", text))
            return
        if len(self._threads) < THREADS:
            name = f"lmkv-command-{len(self._threads)}"
            self._threads.append(threading.Thread(target=self._run, name=name, daemon=True))
            self._threads[-1].start()

    def answer(self, address: str, send: Callable[[Frames], bool]) -> None:
        """Hand on what this controller is to hear, as much as `send` takes."""
        if not self._unsent.get(address):
            return
        with self._lock:
            unsent = self._unsent[address]
            while unsent:
                message, frames = unsent[0]
                if not send(wire.encode(message, *frames)):
                    return
                unsent.popleft()

    def forget(self, address: str) -> None:
        """It is no controller any more."""
        with self._lock:
            self._unsent.pop(address, None)

    # ------------------------------------------------------------ their own threads

    def _run(self) -> None:
        while True:
            self._carry_out(*self._queue.get())

    def _carry_out(self, command: Command, frames: Frames, until: Deadline) -> None:
        answer, behind = self._answer(self._handlers, command, frames, until)
        self._end(command, answer, behind)
        self._wake()

    def _answer(
        self, handlers: Mapping[str, Handler], command: Command, frames: Frames, until: Deadline
    ) -> tuple[Done | Refused, Frames]:
        operation = command.operation
        try:
            if until.over:
                raise Failed("timeout", f"{operation}: its deadline passed while others ran")
            result, behind = handlers[operation](command, frames, until)
            encoded = msgspec.msgpack.encode(result)
            size = len(encoded) + sum(map(len, behind))
            if size > RESULT_BYTES:
                text = f"{operation}: an answer of {size} bytes, at most {RESULT_BYTES} are sent"
                raise Failed("too_large", text)
        except Failed as error:
            return Refused(error.code, error.message, error.field), []
        except Exception:
            log.exception("lmkv: the command %s failed", operation)
            text = f"{operation}: a defect of lmkv; the instance's log says more"
            return Refused("failed", text), []
        return Done(0, command.id, encoded), behind

    def _end(self, command: Command, answer: Done | Refused, frames: Frames = []) -> None:  # noqa: B006
        """Tell all who asked. What was refused may be tried again; what was done is remembered."""
        with self._lock:
            known = self._known[command.id]
            askers, known.askers = known.askers, []
            if isinstance(answer, Done):
                known.result, known.frames = answer.result, frames
            else:
                del self._known[command.id]
            self._forget_oldest()
            for asker in askers:
                self._say(asker, answer, frames)

    def _forget_oldest(self) -> None:
        ended = [name for name, known in self._known.items() if known.result is not None]
        size = sum(self._known[name].size for name in ended)
        for at, name in enumerate(ended):
            if len(ended) - at <= REMEMBERED and size <= REMEMBERED_BYTES:
                return
            size -= self._known.pop(name).size

    def _say(self, asker: Asker, answer: Done | Refused | Unsupported, frames: Frames = []) -> None:  # noqa: B006
        address, number = asker
        if address in self._unsent:
            answer = msgspec.structs.replace(answer, request=number)
            self._unsent[address].append((answer, frames))


def _digest(command: Command, frames: Frames) -> bytes:
    """Of all that makes it another command."""
    same = msgspec.structs.replace(command, request=0, deadline=0.0)
    digest = hashlib.blake2b(digest_size=16)
    for frame in wire.encode(same, *frames):
        digest.update(len(frame).to_bytes(8, "little") + frame)
    return digest.digest()
