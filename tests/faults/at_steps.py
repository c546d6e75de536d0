"""Hooks that run inside an engine's process: a fault at a step, and what a request left behind.

`arm` waits for the next time that a step is taken, and then sends the signal; a stopped process is
woken by a timer of this engine. `counts` are numbers that must be the same again at rest.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.vllm.inside import _connector, _worker

# (owner, method, whether the fault comes before the call or after it)
STEPS: dict[str, Callable[[Any, Any], tuple[Any, str, bool]]] = {
    "before the locate": lambda agent, worker: (agent.locator, "ask", True),
    "after the locate": lambda agent, worker: (agent.locator, "ask", False),
    "before the pull": lambda agent, worker: (agent.pulls, "post", True),
    "after the pull": lambda agent, worker: (agent.pulls, "post", False),
    "before the load": lambda agent, worker: (worker, "submit_loads", True),
    "inside the load": lambda agent, worker: (worker._loader, "_scatter", False),
    "before a store": lambda agent, worker: (worker._copies, "_copy_stores", True),
    "after a store": lambda agent, worker: (worker._copies, "_copy_stores", False),
}
_armed: list[str] = []  # steps that have not been taken yet


def arm(llm: Any, step: str, number: int, pids: list[int], wake_s: float) -> None:
    """At the next `step`, once: signal `number` to `pids` (negative: groups)."""
    owner, name, before = STEPS[step](_connector(llm)._agent, _worker(llm))
    original = getattr(owner, name)
    _armed.append(step)

    def stepped(*args: Any, **kwargs: Any) -> Any:
        setattr(owner, name, original)
        _armed.remove(step)
        if before:
            _send(number, pids, wake_s)
        answer = original(*args, **kwargs)
        if not before:
            _send(number, pids, wake_s)
        return answer

    setattr(owner, name, stepped)


def armed(llm: Any) -> list[str]:
    return list(_armed)


def _send(number: int, pids: list[int], wake_s: float) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    if number == signal.SIGSTOP:
        timer = threading.Timer(wake_s, _send, (signal.SIGCONT, pids, 0.0))
        timer.daemon = True
        timer.start()


def counts(llm: Any) -> dict[str, int]:
    """Of this process, its agent and its worker. Each is what it was once all is at rest."""
    agent, worker = _connector(llm)._agent, _worker(llm)
    granules = agent.table.granules()
    links = Counter(_kind(link) for link in Path("/proc/self/fd").iterdir())
    maps = Path("/proc/self/maps").read_text().count("memfd:lmkv-pool")
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return {
        **{f"pending {name}": n for name, n in agent.pending.items()},
        **{state: granules[state] for state in ("reserved", "pinned", "limbo")},
        "mapped peers": len(worker._mapped),
        "pool maps": maps,
        "children": len(children),
        "threads": len(os.listdir("/proc/self/task")),
        **{f"{kind} fds": links[kind] for kind in ("socket", "memfd", "pipe")},
    }


def _kind(link: Path) -> str:
    try:
        target = os.readlink(link)
    except OSError:  # the directory's own descriptor
        return "none"
    return "memfd" if "memfd:" in target else target.partition(":")[0]


def mover_pid(llm: Any) -> int:
    return _worker(llm).supervisor.pid


def mover_generation(llm: Any) -> int:
    return _worker(llm).supervisor.generation


def slots(llm: Any) -> tuple[str, bytes, bytes, bytes, list[bytes]]:
    """Layout, and keys, places, counters and payloads of all that is readable."""
    agent, worker = _connector(llm)._agent, _worker(llm)
    keys, places, counters = agent.table.slice(0, agent.table.usable * 16)
    group = worker._pages[0]
    slot = group.slot
    payloads = []
    for at in range(0, len(places), 8):
        address = worker.pool.slot_address(places[at : at + 8]) + slot.payload_offset
        payloads.append(ctypes.string_at(address, slot.payload_bytes))
    return group.layout, keys, places, counters, payloads
