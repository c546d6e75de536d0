"""Faults at every step of a request between two real engines, and what they cost.

A cell is a process (or the link to the controller), what happens to it, and the step of reader b at
which it happens. Holder a computes a prompt; b asks for it, the fault strikes, b answers all the
same: with a's tokens, within the deadlines. Then what was broken is healed, and at rest every count
of b (pins, limbo, maps, descriptors, children) is what it was before.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from tests.faults.link import ACTIONS, Link
from tests.vllm.cluster import Cluster
from tests.vllm.engine import Engine, EngineError, Zygote
from tests.vllm.models import prompt

CONTROLLER, HOLDER, HOLDERS_MOVER, READERS_MOVER, LINK = (
    "controller", "holder", "holder's mover", "reader's mover", "link to controller",
)  # fmt: skip
WAKE_S = 8.0  # a stopped process sleeps longer than every deadline
TRIES = 10
WHOLE = 512  # tokens of a prompt of 700 that can hit
REST_S = 40.0  # a peer that failed is avoided, a mover restarted, a controller warmed up by then
# What lmkv may add to a request, by the default deadlines: locate, connect to the peer's share
# socket or fetch its details, and one pull; and a second for two busy cores.
BOUND_S = 0.02 + 1.0 + 0.25 + 0.05 + 1.0 + 1.0
LOCATING = ("before the locate", "after the locate")
PULLING = (*LOCATING, "before the pull", "after the pull", "before the load")
MAPPING = (*LOCATING, "before the load", "inside the load")
STORING = ("before a store", "after a store")


@dataclass(frozen=True)
class Cell:
    transfer: str  # mapped, nixl (cross-memory attach), tcp
    process: str
    action: str  # kill, stop, or one of the link's
    step: str


@dataclass
class Outcome:
    cell: Cell
    failed: int = 0
    wrong: int = 0
    delay_s: float = 0.0
    hit_tokens: int = 0
    died: str = ""  # other processes
    left: dict[str, int] = field(default_factory=dict)  # counts that differ at rest
    healed_s: float | None = None  # until the next prompt hits; None: it did not

    @property
    def good(self) -> bool:
        return (
            not (self.failed or self.wrong or self.died or self.left)
            and self.delay_s <= BOUND_S
            and self.healed_s is not None
        )


def cells() -> Iterator[Cell]:
    for transfer in ("mapped", "nixl", "tcp"):
        for step in MAPPING if transfer == "mapped" else PULLING:
            for process in (HOLDER, HOLDERS_MOVER, READERS_MOVER):
                for action in ("kill", "stop"):
                    yield Cell(transfer, process, action, step)
    for step in (*PULLING, *STORING):
        for action in ("kill", "stop"):
            yield Cell("nixl", CONTROLLER, action, step)
    for action in ACTIONS:
        yield Cell("mapped", LINK, action, "before the locate")


class Lab:
    """Engines a (holder) and b (reader) behind a link to one controller; tcp or not."""

    def __init__(self, zygote: Zygote, model: Path, folder: Path, tcp: bool) -> None:
        self._settings: dict[str, Any] = {"nixl_tls": "tcp"} if tcp else {}
        self._cluster = Cluster(zygote, model, folder)
        self._link = Link("127.0.0.2", self._cluster.ports)
        self._seeds = count(1000)
        self.a, self.b = self._start("a"), self._start("b")
        self._cluster.wait_ready(self.a, self.b)
        self._transfers = ("nixl",) if tcp else ("mapped", "nixl")
        self._hit_all()
        self._before = self.b.call("tests.faults.at_steps:counts")

    def _start(self, name: str) -> Engine:
        settings = {
            "pool_gib": 0.3,
            "instance_id": name,
            "controllers": f"tcp://127.0.0.2:{self._cluster.ports[0]}",
            "pull": "always",  # also from a peer that a fault has made slow
            **self._settings,
        }
        return self._cluster.start(name, only=settings)

    # ------------------------------------------------------------ a cell

    def run(self, cell: Cell) -> Outcome:
        outcome = Outcome(cell)
        self._strike(cell, self.a if cell.step in STORING else self.b)
        for _ in range(TRIES):  # a locate that passes its 20 ms takes no further step
            self._ask(cell, outcome)
            if outcome.failed or self._struck(cell):
                break
        else:
            raise RuntimeError(f"{cell}: its step was not taken")
        try:
            self._heal(cell, outcome)
        except AssertionError:  # not ready in time
            return outcome
        outcome.healed_s = self._until_hit("mapped" if cell.transfer == "mapped" else "nixl")
        self._hit_all()
        outcome.left = self._at_rest()
        return outcome

    def _ask(self, cell: Cell, outcome: Outcome) -> None:
        tokens = prompt(next(self._seeds), 700)
        expected = self.a.generate(tokens).tokens
        self._cluster.settle(self.a)
        began = time.monotonic()
        try:
            answer = self.b.generate(tokens, kv_transfer_params=_wish(cell.transfer))
            outcome.delay_s = time.monotonic() - began
            outcome.wrong = int(answer.tokens != expected)
            outcome.hit_tokens = answer.num_cached_tokens
        except EngineError:
            outcome.failed = 1

    def _struck(self, cell: Cell) -> bool:
        if cell.process == LINK:
            return True
        engine = self.a if cell.step in STORING else self.b
        return not engine.call("tests.faults.at_steps:armed")

    def _strike(self, cell: Cell, engine: Engine) -> None:
        if cell.process == LINK:
            self._link.set(cell.action)
            return
        pids = {
            CONTROLLER: lambda: self._cluster.controller.pid,
            HOLDER: lambda: -self.a.pid,
            HOLDERS_MOVER: lambda: self.a.call("tests.vllm.inside:mover_pid"),
            READERS_MOVER: lambda: self.b.call("tests.vllm.inside:mover_pid"),
        }
        number = signal.SIGKILL if cell.action == "kill" else signal.SIGSTOP
        pid = pids[cell.process]()
        engine.call("tests.faults.at_steps:arm", cell.step, int(number), [pid], WAKE_S)

    def _heal(self, cell: Cell, outcome: Outcome) -> None:
        """Start again what this cell killed; everything else must have lived on."""
        if cell.process == LINK:
            time.sleep(4)  # longer than a controller's silence is borne
            self._link.set("")
        if cell.action == "stop":
            time.sleep(WAKE_S)
        if (cell.process, cell.action) == (CONTROLLER, "kill"):
            self._cluster.controller.wait(10)
            self._cluster.start_controller()
        if (cell.process, cell.action) == (HOLDER, "kill"):
            self.a.kill()  # waits for its end
            self.a = self._start("a")
        if self._cluster.controller.poll() is not None:
            outcome.died += "controller "
            self._cluster.start_controller()
        for name in ("a", "b"):
            engine: Engine = getattr(self, name)
            if not engine.alive():
                outcome.died += f"engine {name} "
                engine.kill()
                setattr(self, name, self._start(name))
        self._cluster.wait_ready(self.a, self.b)

    def _hit_all(self) -> None:
        """Maps and connections are made, descriptors open, also those that a fault has ended."""
        for transfer in self._transfers:
            self._until_hit(transfer)

    def _until_hit(self, transfer: str) -> float | None:
        """Seconds until b hits what a has just computed."""
        began = time.monotonic()
        while time.monotonic() < began + REST_S:
            tokens = prompt(next(self._seeds), 700)
            self.a.generate(tokens)
            self._cluster.settle(self.a)
            if (
                self.b.generate(tokens, kv_transfer_params=_wish(transfer)).num_cached_tokens
                == WHOLE
            ):
                return time.monotonic() - began
            time.sleep(0.5)
        return None

    def _at_rest(self) -> dict[str, int]:
        """What is more than before, once nothing changes any more."""
        end = time.monotonic() + REST_S
        while True:
            now = self.b.call("tests.faults.at_steps:counts")
            more = {k: n - self._before[k] for k, n in now.items() if n != self._before[k]}
            if not more or time.monotonic() > end:
                return more
            time.sleep(0.5)

    def close(self) -> None:
        self._link.close()
        self._cluster.__exit__()


def _wish(transfer: str) -> dict[str, Any]:
    return {"lmkv": {"transfer": "mapped" if transfer == "mapped" else "nixl"}}
