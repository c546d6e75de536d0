"""What a simulation has found: plain data, for JSON and for a table."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field


@dataclass
class Latency:
    """Milliseconds."""

    count: int
    p50: float
    p99: float
    most: float


def latency(seconds: Collection[float]) -> Latency:
    ordered = sorted(seconds)
    if not ordered:
        return Latency(0, 0.0, 0.0, 0.0)

    def at(share: float) -> float:
        return round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3)

    return Latency(len(ordered), at(0.5), at(0.99), at(1.0))


@dataclass
class ControllerUse:
    """CPU is of one core, over the run; None where the simulator did not start the process."""

    address: str
    state: str
    keys: int
    instances: int
    drifts: int
    resyncs: int
    lag: float
    cpu_percent: float | None = None
    rss_mib: float | None = None


@dataclass
class Run:
    """One pool size."""

    pool_chunks: int
    instances: int
    seconds: float
    requests: int  # that came
    unfinished: int  # of them, when the run was over: none is lost, they are late
    hit_rate: float  # of prompt tokens
    hit_tokens: dict[str, int]
    miss_tokens: dict[str, int]
    pulled_chunks: dict[str, int]  # by result
    announced_chunks: int
    retracted_chunks: int
    locates: int  # sent
    resent: int  # of them, to the next controller, as one did not answer in its part of the time
    late: int  # of them, answered after the deadline of all: when is not known
    locate: Latency  # from a question, first sent, to its answer
    switched: Latency  # of those that were resent
    known: Latency  # from a request's arrival until it is known what is loaded
    visible: Latency  # from a stored chunk until a controller names its holder
    never_visible: int
    controllers: list[ControllerUse] = field(default_factory=list)
    simulator_cpu_percent: float = 0.0
    simulator_rss_mib: float = 0.0
    simulator_late: Latency = field(default_factory=lambda: latency(()))  # its own timers
