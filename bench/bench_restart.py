"""A controller is restarted under 1,000 instances of 32 k slots each (DESIGN.md 11).

The agents are the simulator's, in this process; their slot tables are full of random keys. Rows:
seconds from the new controller's first word until it is whole, and the p99 of locates that a
prober process asks meanwhile, and when all is at rest. The prober is an instance of its own that
registers anew like all others; until it is, it is refused, and that is no answer. It asks for short
turns as the controller does, since how long it waits itself for a processor among 1,000 simulated
agents says nothing of a controller. All limits are DESIGN's numbers: 10 s, 5 ms, 5 ms.

`RESTART_INSTANCES` and `RESTART_SLOTS` make it smaller. A machine of two cores runs the controller,
the 1,000 agents and the prober on them, so that they share what there is: the first row's note says
whose CPU seconds they were, and how many full syncs the instances made (one each).

Profile (perf, and the CPU of each thread, of a restart with 31.8 M keys on two cores that others
used too, where a second is about half of a quiet one): the controller 15 s, all agents 11 s, the
prober 1.4 s. Of the controller's 4.6 s are the system's clearing of 1.2 GiB in the directory's
own thread (in a virtual machine whose host takes free memory back, 6 to 8 ms for 2 MiB; on others
0.2); 7.3 s are its main thread, of which the directory is more than half, 110 to 130 ns a key;
3.3 s are ZMQ's threads. Of the directory's time half is page walks: in a virtual machine each
key's is nested. Of the agents' time slices are a quarter, the rest is turns: 45 us each, two a
heartbeat.

What was slow and is not any more: growing by quarters, with 4.5 moves a key and two pages of the
system's touched for each; clearing memory between two locates; all new keys of a slice as Python's
bytes; an exception for each look at an empty socket, here and in the agents; a copy of the list of
waiting syncs for each message; a call for each instance four times a second; heartbeats that all
came in the same instant; slices that grew nine sub-tables and cleared slabs for them (one in 1,000
took 50 ms of the directory's time, now 2 to 3); keys in the order in which they come (a quarter
more than sub-table by sub-table, whose page walks share their upper levels); pings of ZMQ's each
second on three connections an instance (at rest a quarter of all CPU); a third turn a heartbeat in
which an agent had nothing to do. No difference made glibc's trimming of message buffers.
At rest the controller's own thread takes 80 us a heartbeat, of which sending the answer is half.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from lmkv.sim.controllers import ControllerProcess, usage
from lmkv.sim.instance import Instance, Shape
from lmkv.sim.room import make_room
from lmkv.sim.simulation import Plan, Simulation
from lmkv.sim.worker import Rates

from bench.harness import Figure, Row

INSTANCES = int(os.environ.get("RESTART_INSTANCES", "1000"))
SLOTS = int(os.environ.get("RESTART_SLOTS", "32768"))
STEADY = 10.0  # seconds
PIECE = 4096
FEW = 8
KEYS = 64  # of a question
DEADLINE = 180.0

# argv: state address, query address. Asks every 2 ms for keys of the first instance, `w` and `s` on
# stdin end a phase: its p50, p99 and greatest milliseconds are printed, and how many answers.
PROBER = """
import os, select, sys, time
from lmkv.core.client import Client, Unreachable
from lmkv.core.messages import (Heartbeat, HostIdentity, Locate, Located, RankInfo, Register,
                                Resync, SyncEnd, Welcome)
from lmkv.core import wire
from lmkv._native import set_turn
from lmkv.controller.main import TURN
from lmkv.sim.instance import CHUNK, LAYOUT, NAMESPACE, SPECS
state_address, query_address, keys = sys.argv[1], sys.argv[2], bytes.fromhex(sys.argv[3])
register = Register(1, 1, "default", "prober", 1, NAMESPACE, [LAYOUT], CHUNK,
                    [RankInfo(0, HostIdentity("prober", 1, 1))], model="simulated",
                    group_specs=SPECS)
set_turn(TURN)
state, query = Client(state_address, 0.5), Client(query_address, 0.5)
seq, request, found, registered, next_beat = 0, 0, [], False, 0.0
def hear():
    global registered, seq
    while state._socket.poll(0):
        message, _ = state.receive()
        if isinstance(message, Welcome):
            registered, seq = True, 1
            state.send(SyncEnd(1, 1, 0))
        elif isinstance(message, Resync):
            seq += 1
            state.send(SyncEnd(1, seq, message.sync))
        elif type(message).__name__ == "Refused":
            registered = False
print("ready", flush=True)
while True:
    try:
        if time.monotonic() >= next_beat:
            next_beat = time.monotonic() + 1.0
            if registered:
                seq += 1
                state.send(Heartbeat(1, seq, 0, 0, 0))
            else:
                state.send(register)
        hear()
        if registered:
            request += 1
            began = time.perf_counter()
            answer, _ = query.ask(Locate(request, "default", "prober", 1), keys)
            if isinstance(answer, Located):
                found.append(time.perf_counter() - began)
            else:
                registered = False
    except Unreachable:
        registered = False
    if select.select([sys.stdin], [], [], 0.002)[0]:
        if not sys.stdin.readline():
            break
        found.sort()
        n = len(found)
        at = lambda share: 1000 * found[min(n - 1, int(share * n))] if n else -1.0
        print(at(0.5), at(0.99), at(1.0), n, flush=True)
        found.clear()
"""


class Prober:
    def __init__(self, state: str, query: str, keys: bytes) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROBER, state, query, keys.hex()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout and self._process.stdout.readline() == "ready\n"

    @property
    def pid(self) -> int:
        return self._process.pid

    def phase(self) -> tuple[list[float], int]:
        """Milliseconds p50, p99, greatest of the locates since the last call, and their number."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        *figures, n = self._process.stdout.readline().split()
        return [float(x) for x in figures], int(n)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def fill(instance: Instance) -> bytes:
    """All slots but those that are kept free; the first keys."""
    table, first = instance.agent.table, b""
    while (n := min(PIECE, table.granules()["free"] // 16)) > 0:
        keys = os.urandom(16 * n)
        room = table.reserve(keys, 0.0)
        if room is None:
            break
        table.admit(*room)
        first = first or keys
    return first[: 16 * KEYS]


def fill_all(simulation: Simulation) -> list[bytes]:
    """A few at a time, so that what is announced is not more than controllers take."""
    found = []
    for instance in simulation.instances:
        found.append(fill(instance))
        instance.agent.background.turn()
        simulation.run_for(0.02)  # the others' heartbeats
        wait(simulation, lambda: told(simulation.instances[: len(found)][-FEW:]), 0.005)
    return found


def told(instances: list[Instance]) -> bool:
    return not any(each.agent.streams.gauges()["outbox_messages"] for each in instances)


def wait(simulation: Simulation, good: Callable[[], bool], every: float = 0.25) -> float:
    """Run until it is; the seconds."""
    began = time.monotonic()
    while not good():
        assert time.monotonic() - began < DEADLINE, "it does not end"
        simulation.run_for(every)
    return time.monotonic() - began


def rows() -> list[Row]:
    logging.getLogger("lmkv.agent").setLevel(logging.ERROR)  # each says that it is silent
    make_room(INSTANCES, 1)
    controller = ControllerProcess()
    shape = Shape(SLOTS, 1 << 20, Rates(1e9, 1e9), 1e4)
    simulation = Simulation(Plan(INSTANCES, shape, [controller.address], []))
    port = int(controller.address.rpartition(":")[2])
    prober: Prober | None = None
    try:
        simulation.open()
        found = fill_all(simulation)
        wait(simulation, lambda: simulation.whole(filled(simulation)))
        keys = filled(simulation)
        query = controller.query
        prober = Prober(controller.address, query, found[0])
        simulation.run_for(2.0)
        prober.phase()
        simulation.run_for(STEADY)
        steady, steady_n = prober.phase()
        os.kill(controller.pid, signal.SIGKILL)
        controller.end()
        settings = {"query_port": query.rpartition(":")[2]}
        controller = ControllerProcess(settings, port)
        full_syncs(simulation)
        pids = controller.pid, os.getpid(), prober.pid
        before = [0.0, *map(cpu, pids[1:])]
        seconds = wait(simulation, lambda: simulation.whole(keys))
        used = [cpu(pid) - then for pid, then in zip(pids, before)]
        syncs = full_syncs(simulation)
        busy, busy_n = prober.phase()
    finally:
        if prober is not None:
            prober.end()
        simulation.close()
        controller.end()
    size = f"{INSTANCES} instances, {keys / 1e6:.1f} M keys"
    spent = (
        "CPU: controller {:.1f} s, all agents {:.1f} s, prober {:.1f} s".format(*used)
        + f" of {os.cpu_count()} x {seconds:.1f} s; {syncs} full syncs"
    )
    return [
        _row("controller restart, whole again", "s", [seconds] * 3, 10.0, f"{size}; {spent}"),
        _row("locate p99 meanwhile", "ms", busy, 5.0, f"{busy_n} locates"),
        _row("locate p99, steady", "ms", steady, 5.0, f"{steady_n} locates, {size}"),
    ]


def cpu(pid: int) -> float:
    """Seconds that a process has computed."""
    return usage(pid).cpu_seconds


def full_syncs(simulation: Simulation) -> int:
    """That the instances have begun since the last call."""
    taken = [instance.agent.stats.take().get("syncs", {}) for instance in simulation.instances]
    return sum(int(n) for counts in taken for n in counts.values())


def filled(simulation: Simulation) -> int:
    """Readable slots, announced or not."""
    tables = (instance.agent.table for instance in simulation.instances)
    return sum(table.granules()["readable"] // 16 for table in tables)


def _row(name: str, unit: str, figures: list[float], target: float, note: str) -> Row:
    """`figures` are p50, p99 and the greatest; p99 counts."""
    low, middle, high = figures
    limit = Figure(target, target, target)
    return Row(name, unit, Figure(middle, low, high), limit, 1.0, False, f"limit: DESIGN's; {note}")
