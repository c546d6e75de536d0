"""`lmkv sim`: a run for each pool size, each with agents and controllers of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from lmkv.core.config import split_address
from lmkv.core.descriptors import allow_descriptors
from lmkv.core.keyfiles import ClientKeys
from lmkv.sim import trace
from lmkv.sim.controllers import ControllerProcess, status
from lmkv.sim.instance import CHUNK, Shape
from lmkv.sim.report import Run
from lmkv.sim.room import make_room
from lmkv.sim.simulation import Plan, Simulation
from lmkv.sim.worker import Rates

ROUTES = ("round_robin", "random", "prefix")
MOST = {"instances": 10_000, "controllers": 16, "pool": 1 << 22}
DESCRIPTORS = 65_536  # that controllers started from here may have
WARMING = "0.2"  # seconds: a run begins when all are registered, however long that takes


class Usage(ValueError):
    """An option that cannot be; one sentence."""


@dataclass
class Options:
    trace: str
    instances: int = 1000
    controllers: str = "1"  # how many to start, or addresses
    seconds: float = 60.0
    rate: float = 1.0
    route: str = "round_robin"
    pool_chunks: str = "4k"
    pull_rate: float = 2.0  # GB/s into an instance
    copy_rate: float = 10.0  # GB/s between pool and blocks
    prefill_rate: float = 8000.0  # tokens/s of an engine
    kv_bytes: int = 131_072  # of a token, over all layers
    seed: int = 1
    keys: ClientKeys | None = None  # of controllers that run already, where they ask for them


def check(options: Options) -> None:
    """Raises Usage."""
    _within("--instances", options.instances, 1, MOST["instances"])
    _within("--seconds", options.seconds, 0.1, 86_400)
    _within("--rate", options.rate, 0.001, 1e6)
    for name in ("pull_rate", "copy_rate"):
        _within("--" + name.replace("_", "-"), getattr(options, name), 0.001, 10_000)
    _within("--prefill-rate", options.prefill_rate, 1, 1e9)
    _within("--kv-bytes", options.kv_bytes, 1, 1 << 30)
    if options.route not in ROUTES:
        raise Usage(f"--route {options.route!r}: allowed is {', '.join(ROUTES)}")
    pools(options.pool_chunks)
    addresses(options.controllers)


def _within(option: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:  # a NaN is not either
        raise Usage(f"{option} {value:g}: allowed is {least:g} to {most:g}")


def pools(text: str) -> list[int]:
    """`1k,4k,16k` to numbers. Raises Usage."""
    found = []
    for word in text.split(","):
        digits = word.strip().lower().removesuffix("k")
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 8):
            raise Usage(f"--pool-chunks: {word!r} is no number of chunks such as 4096 or 4k")
        number = int(digits) * (1024 if word.strip().lower().endswith("k") else 1)
        _within("--pool-chunks", number, 16, MOST["pool"])
        found.append(number)
    return found


def addresses(text: str) -> int | list[str]:
    """How many to start, or where they are. Raises Usage."""
    if text.isascii() and text.isdigit() and len(text) <= 6:
        _within("--controllers", int(text), 1, MOST["controllers"])
        return int(text)
    found = [word.strip() for word in text.split(",") if word.strip()]
    if not found:
        raise Usage(f"--controllers {text!r}: allowed is a number to start, or addresses")
    try:
        for address in found:
            split_address(address)
    except ValueError as error:
        raise Usage(f"--controllers: {error}") from None
    _within("--controllers", len(found), 1, MOST["controllers"])
    return found


def simulate(options: Options, say: Callable[[str], None] = lambda text: None) -> list[Run]:
    """Raises Usage, TraceError, NoController, TooMany."""
    check(options)
    asked = trace.read(options.trace)
    logging.getLogger("lmkv.agent").setLevel(logging.ERROR)  # a thousand would say the same
    where = addresses(options.controllers)
    make_room(options.instances, where if isinstance(where, int) else len(where))
    runs = []
    for pool in pools(options.pool_chunks):
        say(f"{options.instances} instances of {pool} chunks, {len(asked)} requests at hand")
        runs.append(_one(options, asked, pool))
    return runs


def _one(options: Options, asked: list[trace.Asked], pool: int) -> Run:
    where = addresses(options.controllers)
    started: list[ControllerProcess] = []
    simulation: Simulation | None = None
    try:
        if isinstance(where, int):
            allow_descriptors(DESCRIPTORS)  # inherited
            while len(started) < where:
                started.append(ControllerProcess({"warming_least": WARMING}))
            where = [process.address for process in started]
        plan = _plan(options, pool, where, [one.pid for one in started])
        for address in where:
            status(address, keys=plan.keys)
        simulation = Simulation(plan)
        simulation.open()
        simulation.feed(asked, options.rate, options.seconds)
        simulation.settle()
        return simulation.report()
    finally:
        if simulation is not None:
            simulation.close()
        for process in started:
            process.end()


def _plan(options: Options, pool: int, where: list[str], pids: list[int]) -> Plan:
    rates = Rates(options.pull_rate * 1e9, options.copy_rate * 1e9)
    shape = Shape(pool, CHUNK * options.kv_bytes, rates, options.prefill_rate)
    keys = None if pids else options.keys
    return Plan(options.instances, shape, where, pids, options.route, options.seed, keys=keys)
