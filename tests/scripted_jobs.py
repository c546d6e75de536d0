"""An instance that takes jobs and tells of them as a test says, over the wire, to real controllers.

It has no pool: it counts. `hold` keeps jobs running at their first chunk until `release`; `fails`
is how the next ones end. `run` is its one thread. What real instances do is the agent's, and has
tests of its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import msgspec
from lmkv.core.client import Unreachable
from lmkv.core.keyfiles import ClientKeys
from lmkv.core.messages import (
    OPERATIONS,
    Command,
    Done,
    Job,
    Leave,
    Message,
    Part,
    PinsHeld,
    PinState,
    Refused,
    Unsupported,
    Welcome,
)
from msgspec.structs import replace
from typing_extensions import Self

from tests.contract.test_controller import BEAT, Controller, Instance
from tests.stub_instance import StubInstance
from tests.web import TOKENS, Web, prompt_keys

KEYS = prompt_keys(TOKENS)  # two chunks
WHOLE = 8  # chunks of everything that it has
CHUNK_BYTES = 1000


class Worker:
    def __init__(
        self,
        name: str,
        controllers: Sequence[Controller],
        epoch: int = 7,
        keys: ClientKeys | None = None,
        **stub: Any,
    ) -> None:
        self.name, self.epoch = name, epoch
        self.links = [
            Instance(StubInstance(name, epoch, **stub), each, keys) for each in controllers
        ]
        self.parts: dict[str, Part] = {}
        self.pins: dict[str, PinState] = {}
        self.commands: list[Command] = []
        self.keys: dict[str, bytes] = {}  # of each job
        self.fails: tuple[str, str] | None = None  # code and reason
        self.refuses: Refused | Unsupported | None = None
        self._go = threading.Event()
        self._go.set()
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        for link in self.links:
            self._join(link)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        for link in self.links:
            link.tell((Leave(self.epoch), ()))
            link.__exit__()

    def stop(self) -> None:
        """It says nothing more."""
        self._stopping.set()
        self._thread.join()

    def _join(self, link: Instance) -> None:
        link.join()
        link.beat()
        self._tell_all([link])

    def store(self, *keys: bytes) -> None:
        """Everybody who asks finds it here."""
        with self._lock:
            for link in self.links:
                reserved = link.stub.table.reserve(b"".join(keys), 0.0)
                assert reserved is not None
                link.stub.table.admit(*reserved)
                link.tell(*link.stub.changes())

    def lose(self, number: int) -> None:
        """That controller is no concern of its any more."""
        with self._lock:
            self.links.pop(number).__exit__()

    def hold(self) -> None:
        self._go.clear()

    def release(self) -> None:
        self._go.set()

    # ------------------------------------------------------------ its thread

    def _run(self) -> None:
        beat = 0.0
        while not self._stopping.is_set():
            with self._lock:
                for link in self.links:
                    self._hear(link)
                if time.monotonic() >= beat:
                    beat = time.monotonic() + BEAT
                    for link in self.links:
                        link.tell(link.stub.heartbeat())
            self._go_on()
            time.sleep(BEAT / 20)

    def _hear(self, link: Instance) -> None:
        link.state.deadline = 0.0
        try:
            while True:
                message, frames = link.state.receive()
                self._take(link, message, frames)
        except Unreachable:
            pass
        finally:
            link.state.deadline = 20.0

    def _take(self, link: Instance, message: Message, frames: list[bytes]) -> None:
        if isinstance(message, Refused) and message.code == "not_registered":
            link.tell((link.stub.registration, ()))
        elif isinstance(message, Welcome):
            link.stub.seq = 0
            link.tell(*link.stub.sync())
            self._tell_all([link])
        elif isinstance(message, Command):
            self.commands.append(message)
            answer = self.refuses or self._do(message, frames)
            link.tell((replace(answer, request=message.request), ()))

    def _do(self, command: Command, frames: list[bytes]) -> Done | Refused | Unsupported:
        if command.operation in OPERATIONS:
            part = self.parts.get(command.id) or self._begin(command, frames)
        elif command.operation in ("cancel", "retry"):
            part = self.parts.get(command.arguments["job"])
            if part is None:
                return Refused("unknown_job", f"job {command.arguments['job']} is not known", "job")
            open_ = part.state in ("queued", "running")
            if (command.operation == "cancel") != open_:
                return Refused("ended", f"job {part.id} is {part.state}", "job")
            if open_:
                part = replace(part, state="cancelled")
            else:
                part = replace(part, state="queued", attempt=part.attempt + 1, chunks=0, code="",
                               reason="")  # fmt: skip
            self.parts[part.id] = part
        else:
            return Unsupported(command.operation)
        self._tell(part)
        return Done(0, command.id, msgspec.msgpack.encode(part))

    def _begin(self, command: Command, frames: list[bytes]) -> Part:
        given = command.arguments
        self.keys[command.id] = b"".join(frames)
        chunks = len(self.keys[command.id]) // 16 or WHOLE
        part = self.parts[command.id] = Part(
            command.id,
            command.operation,
            self.name,
            source=given.get("source", ""),
            chunks_total=chunks,
            bytes_total=chunks * CHUNK_BYTES,
            asked_by=given.get("asked_by", ""),
            parts=int(given.get("parts", "1")),
            command=given.get("command", ""),
            owner=given.get("owner", ""),
            ttl=float(given.get("ttl", "0")),
        )
        return part

    def _go_on(self) -> None:
        """Every job takes its next step."""
        with self._lock:
            for name, part in list(self.parts.items()):
                if part.state == "queued":
                    self._set(replace(part, state="running", chunks=1, bytes=CHUNK_BYTES))
                elif part.state == "running" and self._go.is_set():
                    self._end(name, part)

    def _end(self, name: str, part: Part) -> None:
        if self.fails is not None:
            code, reason = self.fails
            self._set(replace(part, state="failed", code=code, reason=reason))
            return
        whole = part.chunks_total
        self._set(replace(part, state="done", chunks=whole, bytes=whole * CHUNK_BYTES))
        if part.operation == "pin":
            first = self.keys[name][:16].hex()
            self.pins[name] = PinState(
                name, self.name, part.owner, part.ttl, whole, whole * CHUNK_BYTES, first
            )
        elif part.operation == "unpin":
            self.pins.clear()
        self._tell_pins(self.links)

    def _set(self, part: Part) -> None:
        self.parts[part.id] = part
        self._tell(part)

    def _tell(self, part: Part) -> None:
        for link in self.links:
            link.tell((Job(self.epoch, part), ()))

    def _tell_all(self, links: list[Instance]) -> None:
        """What a controller that has just welcomed it must know."""
        for link in links:
            for part in self.parts.values():
                link.tell((Job(self.epoch, part), ()))
        self._tell_pins(links)

    def _tell_pins(self, links: list[Instance]) -> None:
        for link in links:
            held = PinsHeld(self.epoch, list(self.pins.values()), len(self.pins))
            link.tell((held, ()))


def holders(web: Web) -> list[str]:
    """Of `KEYS`."""
    answer = web.ask("/v1/lookup", {"keys": [KEYS[:16].hex(), KEYS[16:].hex()]})
    return sorted({name for names in answer.json["holders"] for name in names})
