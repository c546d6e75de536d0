"""The microbenchmark harness: a bench file has `rows() -> list[Row]` and is run by `make bench`.

A row's figure stands beside a physical limit that is measured in the same run: `measure()` calls
the functions in turn, round by round (A B A B), after each has been checked once, and keeps the
median with its spread. Timing never decides a test.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from time import perf_counter


@dataclass
class Figure:
    """Median [min..max] of the rounds, in the row's unit."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.4g} [{self.low:.4g}..{self.high:.4g}]"


@dataclass
class Row:
    """One line of the table. `target` is DESIGN's ratio; `at_least` says on which side."""

    name: str
    unit: str
    lmkv: Figure
    limit: Figure
    target: float
    at_least: bool = True
    note: str = ""

    @property
    def ratio(self) -> float:
        return self.lmkv.median / self.limit.median

    @property
    def met(self) -> bool:
        return self.ratio >= self.target if self.at_least else self.ratio <= self.target

    def report(self) -> dict[str, object]:
        """The row as `bench-report.json` has it."""
        return {
            "name": self.name,
            "unit": self.unit,
            "lmkv": asdict(self.lmkv),
            "limit": asdict(self.limit),
            "ratio_to_limit": self.ratio,
            "target": self.target,
            "met": self.met,
            "note": self.note,
        }


def wall_seconds(function: Callable[[], object]) -> float:
    begin = perf_counter()
    function()
    return perf_counter() - begin


def measure(
    *functions: Callable[[], object],
    rounds: int = 11,
    figure: Callable[[float], float] = lambda seconds: seconds,
    clock: Callable[[Callable[[], object]], float] = wall_seconds,
) -> list[Figure]:
    """Time each function once a round, in turn; `figure` turns seconds into the row's unit, and
    `clock` takes the time of one function."""
    for function in functions:
        function()
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for function, times in zip(functions, seconds):
            times.append(clock(function))
    values = [[figure(t) for t in times] for times in seconds]
    return [Figure(statistics.median(v), min(v), max(v)) for v in values]
