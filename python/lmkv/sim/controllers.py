"""The controllers of a simulation: processes that it starts, or that run already."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from lmkv.core.client import Client, Unreachable
from lmkv.core.descriptors import readable
from lmkv.core.keyfiles import ClientKeys
from lmkv.core.messages import Status, StatusInfo

STARTED = 20.0  # seconds that one has to listen
ENDED = 5.0


class NoController(Exception):
    """One sentence."""


class ControllerProcess:
    """A real controller without web, at any free ports; `settings` are ControllerConfig's, those of
    the environment do not count, and `before` is put before its command line."""

    def __init__(
        self, settings: dict[str, str] | None = None, port: int = 0, before: Sequence[str] = ()
    ) -> None:
        words = [*before, sys.executable, "-m", "lmkv.controller.main", "--port", str(port)]
        for name, value in {"web": "false", **(settings or {})}.items():
            words += [f"--{name.replace('_', '-')}", value]
        own = {k: v for k, v in os.environ.items() if not k.startswith("LMKV_") or k == "LMKV_ISA"}
        self._process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=own)
        line = self._line()
        if "listening at " not in line:
            self.end()
            raise NoController(f"a controller could not be started: {line.strip() or 'no answer'}")
        self.address = line.partition("listening at ")[2].partition(",")[0]
        self.query = line.partition("queries at ")[2].strip()
        self.pid = self._process.pid

    def _line(self) -> str:
        assert self._process.stderr is not None
        ready = readable(self._process.stderr.fileno(), STARTED)
        return self._process.stderr.readline() if ready else ""

    def end(self) -> None:
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(ENDED)
        self._process.kill()
        self._process.wait()
        assert self._process.stderr is not None
        self._process.stderr.close()


@dataclass
class Usage:
    cpu_seconds: float
    rss_mib: float


def usage(pid: int) -> Usage:
    """Of a process, by /proc."""
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    pages = int(fields[21])
    return Usage(ticks / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20))


def status(address: str, deadline: float = 5.0, keys: ClientKeys | None = None) -> StatusInfo:
    """Raises NoController."""
    try:
        with Client(address, deadline, keys) as client:
            info, _ = client.ask(Status(1, brief=True))
    except (Unreachable, ValueError) as error:
        raise NoController(str(error)) from None
    if not isinstance(info, StatusInfo):
        raise NoController(f"{address} answered {type(info).__name__}")
    return info


def whole(
    addresses: Sequence[str], instances: int, least: int = 0, keys: ClientKeys | None = None
) -> bool:
    """Whether each is ready and has all of so many instances, none in a sync. One that does not
    answer at once is not."""
    for address in addresses:
        try:
            info = status(address, 1.0, keys)
        except NoController:
            return False
        alive = sum(info.states.get(state, 0) for state in ("live", "incompatible"))
        if info.state != "ready" or alive < instances or info.syncs or info.keys < least:
            return False
    return True
