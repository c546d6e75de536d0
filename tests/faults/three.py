"""Three real controllers, a fleet of instances that asks without pause, and what happens to one.

With network namespaces each controller has a host of its own, whose link can be cut in either
direction; without, all are on the loopback device, and only processes can be struck.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from lmkv.sim.controllers import ControllerProcess
from typing_extensions import Self

from tests.faults.networks import PORT, Networks, why_not

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 60.0  # of anything that is waited for
SETTINGS = {
    "heartbeat": "0.2",
    "warming_least": "0.5",
    # Instances that a busy machine keeps waiting for a second are not dead.
    "suspect_after_beats": "60",
    "dead_after_beats": "75",
}
FAULTS = ("killed", "stopped", "blackholed", "questions lost", "answers lost")
NEED_A_LINK = FAULTS[2:]


class Three:
    """`instances` of the fleet have `settings`; `late`: the last controller is not there yet."""

    def __init__(self, instances: int, settings: dict[str, Any], late: bool = False) -> None:
        self.controllers: list[ControllerProcess | None] = [None] * 3
        self._fleet: subprocess.Popen[str] | None = None
        self.networks = None if why_not() else Networks(3)
        self._ports = [PORT] * 3
        try:
            if self.networks is None:
                from tests.ports import free_port

                self._ports = [free_port() for _ in range(3)]
            for i in range(2 if late else 3):
                self.start(i)
            self._begin(instances, settings, 2 if late else 3)
        except BaseException:
            self.close()
            raise

    def address(self, i: int) -> str:
        host = self.networks.host(i) if self.networks else "127.0.0.1"
        return f"tcp://{host}:{self._ports[i]}"

    def start(self, i: int) -> None:
        settings, before = dict(SETTINGS), []
        if self.networks is not None:
            settings["host"] = self.networks.host(i)
            before = self.networks.inside(self.networks.controller(i))
        self.controllers[i] = ControllerProcess(settings, self._ports[i], before)

    # ------------------------------------------------------------ the fleet

    def _begin(self, instances: int, settings: dict[str, Any], whole: int) -> None:
        before = self.networks.inside(self.networks.agents) if self.networks else []
        addresses = [self.address(i) for i in range(3)]
        words = [*before, sys.executable, "-m", "tests.faults.fleet", ",".join(addresses)]
        words += [str(instances), json.dumps(settings), str(whole)]
        path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        self._fleet = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path},
        )
        self._hear()

    def _hear(self) -> Any:
        assert self._fleet is not None and self._fleet.stdout is not None
        if not select.select([self._fleet.stdout], [], [], 2 * DEADLINE)[0]:
            raise RuntimeError("the fleet does not answer")
        line = self._fleet.stdout.readline()
        if not line:
            raise RuntimeError("the fleet has ended")
        return json.loads(line)

    def fleet(self, command: str) -> Any:
        assert self._fleet is not None and self._fleet.stdin is not None
        self._fleet.stdin.write(command + "\n")
        self._fleet.stdin.flush()
        return self._hear()

    def until(self, good: Callable[[Any], bool], command: str = "tell") -> Any:
        """The first answer to `command` that is."""
        end = time.monotonic() + DEADLINE
        while True:
            told = self.fleet(command)
            if good(told):
                return told
            assert time.monotonic() < end, told
            time.sleep(0.05)

    def ask_more(self, requests: int) -> Any:
        """That many more have begun and ended."""
        begun = self.fleet("tell")["begun"]
        return self.until(lambda told: told["ended"] >= begun + requests)

    def all_ask(self, *controllers: int) -> Any:
        """Until all instances would ask these, and no others."""
        wanted = {self.address(i) for i in controllers}
        return self.until(
            lambda told: set(told["asked"]) == wanted and len(set(told["asked"].values())) <= 1
        )

    def all_agree(self) -> Any:
        """At rest: every controller is ready, and has exactly what the slot tables have."""

        def same(told: Any) -> bool:
            states = told["controllers"].values()
            return all(each == ["ready", told["keys"], 0] for each in states)

        return self.until(same, "agree")

    # ------------------------------------------------------------ faults

    def first(self) -> int:
        """The controller that most instances ask first: the nearest, by their heartbeats."""
        told = self.fleet("tell")["first"]
        return max(range(3), key=lambda i: told.get(self.address(i), 0))

    def strike(self, fault: str, i: int) -> None:
        controller = self.controllers[i]
        assert controller is not None
        if fault == "killed":
            os.kill(controller.pid, signal.SIGKILL)
            controller.end()
        elif fault == "stopped":
            os.kill(controller.pid, signal.SIGSTOP)
        else:
            assert self.networks is not None
            questions, answers = fault != "answers lost", fault != "questions lost"
            self.networks.cut(i, questions, answers)

    def heal(self, fault: str, i: int) -> None:
        controller = self.controllers[i]
        assert controller is not None
        if fault == "killed":
            self.start(i)
        elif fault == "stopped":
            os.kill(controller.pid, signal.SIGCONT)
        else:
            assert self.networks is not None
            self.networks.heal(i)

    def close(self) -> None:
        if self._fleet is not None:
            assert self._fleet.stdin is not None and self._fleet.stdout is not None
            with suppress(OSError):
                self._fleet.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                self._fleet.wait(5)
            self._fleet.kill()
            self._fleet.wait()
            self._fleet.stdout.close()
        for controller in self.controllers:
            if controller is not None:
                with suppress(OSError):
                    os.kill(controller.pid, signal.SIGCONT)
                controller.end()
        if self.networks is not None:
            self.networks.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
