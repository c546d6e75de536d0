"""A job until it has ended: bars on a terminal, else a line for each state it comes to.

It is asked for again and again, so that a controller that is gone for a while costs nothing: the
job goes on without it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from lmkv.cli.common import FAILED, UNREACHABLE, Trouble, ending, question, say
from lmkv.core.clock import Deadline
from lmkv.core.text import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID
    from typing_extensions import Self

    from lmkv.core.messages import JobState

LOOK = 0.3  # seconds between two looks
SILENT = 60.0  # without an answer after which nobody is waited for
BARS = 16  # parts that have one


def follow(controller: str, job: JobState, timeout: float = 0.0) -> JobState:
    """As it is when it has ended; ends the command after `timeout` seconds, where it is not 0."""
    from lmkv.core.messages import ENDED

    until = Deadline(timeout or 1e9)
    ask = _Asking(controller, job.id)
    try:
        with ending(), _shown() as shown:
            shown.show(job)
            while job.state not in ENDED:
                if until.over:
                    text = f"job {job.id} is {job.state} after {timeout:g} s; it goes on"
                    raise Trouble(text, FAILED)
                time.sleep(min(LOOK, until.left()))
                job = ask() or job
                shown.show(job)
    except KeyboardInterrupt:
        say(f"job {job.id} goes on: lmkv jobs wait {job.id}, or cancel")
        raise
    return job


class _Asking:
    def __init__(self, controller: str, name: str) -> None:
        self._controller, self._name = controller, name
        self._silent: Deadline | None = None  # since nobody answers

    def __call__(self) -> JobState | None:
        """None: nobody answers now, or one that has just begun and has not heard of it."""
        from lmkv.core.messages import AskJob, JobInfo

        try:
            found = question(self._controller, AskJob(1, self._name), JobInfo).job
        except Trouble as trouble:
            if self._silent is not None and self._silent.over:
                raise
            if self._silent is None:
                if trouble.status != UNREACHABLE:
                    raise
                say(f"{trouble}; waiting for it")
                self._silent = Deadline(SILENT)
            return None
        self._silent = None
        return found


class _Shown(Protocol):
    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...
    def show(self, job: JobState) -> None: ...


def _shown() -> _Shown:
    from rich.console import Console

    out = Console(stderr=True, markup=False, highlight=False, emoji=False)
    return _Bars(out) if out.is_terminal else _Lines(say)


class _Lines:
    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._last = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def show(self, job: JobState) -> None:
        from lmkv.core.messages import ENDED

        if job.state != self._last and job.state not in ENDED:
            self._say(f"job {job.id}: {job.operation} is {job.state}")
        self._last = job.state


class _Bars:
    """One of the whole job; where several instances have their part, one of each of the first."""

    def __init__(self, out: Console) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[moved]}", markup=False),
            TextColumn("{task.fields[left]}", markup=False),
            console=out,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def show(self, job: JobState) -> None:
        from lmkv.cli.tables import size, span

        rate = f", {size(int(job.rate))}/s" if job.rate else ""
        left = f"{span(job.eta)} left" if job.eta else job.state
        moved = size(job.bytes) + rate
        self._set("", job.operation, job.chunks, job.chunks_total, moved, left)
        if job.instances > 1:
            for part in job.parts[:BARS]:
                self._set(
                    part.instance, f"  {part.instance}", part.chunks, part.chunks_total,
                    size(part.bytes), part.reason[:40] or part.state,
                )  # fmt: skip

    def _set(self, name: str, words: str, done: int, whole: int, moved: str, left: str) -> None:
        fields = {"moved": moved, "left": printable(left)}
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(printable(words), total=None, **fields)  # type: ignore[arg-type]
        self._bars.update(
            self._tasks[name],
            completed=done,
            total=whole or None,
            **fields,  # type: ignore[arg-type]
        )
