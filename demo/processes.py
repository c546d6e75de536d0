"""Processes that end with the demo: each leads a group, and the group is ended, by its id.

`Processes` is a context manager; it ends what it started, last first, also when ctrl-C interrupts.
A child is told to die with the demo too (PR_SET_PDEATHSIG), for when that is killed outright.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PR_SET_PDEATHSIG = 1


def free_ports(count: int) -> int:
    """The first of `count` consecutive free ports of the loopback interface."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            first = probe.getsockname()[1]
        if first + count > 65535:
            continue
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first


@dataclass
class Process:
    name: str
    popen: subprocess.Popen[bytes]
    log: Path

    def log_end(self, lines: int = 15) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def wait_until(self, ready: Callable[[], bool], seconds: float) -> None:
        """RuntimeError with the log's end when it exits, or is not ready in time."""
        deadline = time.monotonic() + seconds
        while not ready():
            status = self.popen.poll()
            if status is not None:
                raise RuntimeError(f"{self.name} ended with {status}:\n{self.log_end()}")
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"{self.name} is not ready after {seconds:.0f} s:\n{self.log_end()}"
                )
            time.sleep(0.2)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Processes:
    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.running: list[Process] = []

    def start(self, name: str, words: Sequence[str], environment: Mapping[str, str]) -> Process:
        log = self.logs / f"{name}.log"
        with open(log, "wb") as out:
            popen = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=os.environ | dict(environment),
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 (the demo has one thread here)
            )
        process = Process(name, popen, log)
        self.running.append(process)
        return process

    def stop(self, processes: Sequence[Process] | None = None, seconds: float = 4) -> None:
        """End these (all) and all that they started: SIGTERM, then SIGKILL to what is left.

        A server with a request in flight would wait for its end.
        """
        ending = list(self.running if processes is None else processes)[::-1]
        for process in ending:
            self._signal(process, signal.SIGTERM)
        deadline = time.monotonic() + seconds
        for process in ending:
            while time.monotonic() < deadline and self._alive(process):
                time.sleep(0.05)
            self._signal(process, signal.SIGKILL)
            process.popen.wait()
            self.running.remove(process)

    @staticmethod
    def _signal(process: Process, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.popen.pid, number)

    @staticmethod
    def _alive(process: Process) -> bool:
        """Whether anyone of the group runs; who has ended but is not yet waited for does not."""
        process.popen.poll()
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                state, _, group = stat.read_text().rpartition(") ")[2].split()[:3]
                if int(group) == process.popen.pid and state not in "ZX":
                    return True
        return False

    def __enter__(self) -> Processes:  # noqa: PYI034 (Self is of 3.11)
        return self

    def __exit__(self, *_: object) -> None:
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second ctrl-C would leave some
        try:
            self.stop()
        finally:
            signal.signal(signal.SIGINT, previous)
