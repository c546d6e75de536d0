"""A network namespace for the agents and one for each controller, joined by veth pairs.

Controllers bind to loopback addresses only, so here those are on the pairs: in a namespace whose
own loopback device is down, 127.N.0.2 is a neighbour like any other (`route_localnet`). A direction
is cut by a neighbour entry that leads nowhere: frames go out and nobody takes them, as when a host
is gone, and no connection is told.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from itertools import count
from pathlib import Path

PREFIX = "lmkv-test-"
NOBODY = "02:00:00:00:00:99"
PORT = 7550


@functools.cache
def why_not() -> str:
    """Why this machine makes no namespaces; "" where it does."""
    if shutil.which("ip") is None:
        return "no namespaces: there is no `ip` (iproute2)"
    try:
        probe = Networks(1)
    except RuntimeError as error:
        return f"no namespaces: {error}"
    probe.close()
    return ""


class Networks:
    """Raises RuntimeError where the system does not let."""

    _numbers = count(1)  # in this process

    def __init__(self, controllers: int) -> None:
        sweep()
        self._base = f"{PREFIX}{os.getpid()}-{next(self._numbers)}"
        self._namespaces: list[str] = []
        try:
            self._add(self.agents)
            for i in range(controllers):
                self._join(i)
        except BaseException:
            self.close()
            raise

    @property
    def agents(self) -> str:
        return f"{self._base}-agents"

    def controller(self, i: int) -> str:
        return f"{self._base}-c{i}"

    @staticmethod
    def host(i: int) -> str:
        return f"127.{10 + i}.0.2"

    def address(self, i: int) -> str:
        return f"tcp://{self.host(i)}:{PORT}"

    @staticmethod
    def inside(namespace: str) -> list[str]:
        """Before a command line."""
        return ["ip", "netns", "exec", namespace]

    def _add(self, namespace: str) -> None:
        _run("ip", "netns", "add", namespace)
        self._namespaces.append(namespace)
        for which in ("all", "default"):
            setting = f"net.ipv4.conf.{which}.route_localnet=1"
            _run(*self.inside(namespace), "sysctl", "-qw", setting)

    def _join(self, i: int) -> None:
        there = self.controller(i)
        self._add(there)
        _run("ip", "-n", self.agents, "link", "add", f"to{i}", "type", "veth",
             "peer", "name", "to", "netns", there)  # fmt: skip
        for namespace, device, last in ((self.agents, f"to{i}", 1), (there, "to", 2)):
            _run("ip", "-n", namespace, "addr", "add", f"127.{10 + i}.0.{last}/24", "dev", device)
            _run("ip", "-n", namespace, "link", "set", device, "up")

    # ------------------------------------------------------------ faults

    def cut(self, i: int, questions: bool = True, answers: bool = True) -> None:
        """What agents send to a controller, what it sends to them, or both, is lost."""
        if questions:
            self._lead_nowhere(self.agents, f"to{i}", self.host(i))
        if answers:
            self._lead_nowhere(self.controller(i), "to", f"127.{10 + i}.0.1")

    def heal(self, i: int) -> None:
        for namespace, device, host in (
            (self.agents, f"to{i}", self.host(i)),
            (self.controller(i), "to", f"127.{10 + i}.0.1"),
        ):
            words = ["ip", "-n", namespace, "neigh", "del", host, "dev", device]
            subprocess.run(words, stderr=subprocess.DEVNULL)

    @staticmethod
    def _lead_nowhere(namespace: str, device: str, host: str) -> None:
        _run("ip", "-n", namespace, "neigh", "replace", host, "lladdr", NOBODY,
             "dev", device, "nud", "permanent")  # fmt: skip

    def close(self) -> None:
        for namespace in self._namespaces:
            subprocess.run(["ip", "netns", "del", namespace], stderr=subprocess.DEVNULL)


def sweep() -> None:
    """Remove what processes have left that were killed."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    for line in listed.splitlines():
        made = re.match(rf"{PREFIX}(\d+)-\d+-\w+", line)
        if made and not Path(f"/proc/{made[1]}").exists():
            subprocess.run(["ip", "netns", "del", made[0]], stderr=subprocess.DEVNULL)


def _run(*words: str) -> None:
    ran = subprocess.run(words, capture_output=True, text=True)
    if ran.returncode != 0:
        raise RuntimeError(f"{_told(words)}: {ran.stderr.strip() or ran.returncode}")


def _told(words: Sequence[str]) -> str:
    return " ".join(words[:3])
