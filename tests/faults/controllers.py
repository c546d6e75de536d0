"""One of three controllers is struck while 50 instances ask, with the deadlines that users have.

What a locate cost that had to go on to the next controller is told by the clock; tests count
instead (tests/contract/test_three_controllers.py).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from rich.table import Table

from tests.faults.networks import why_not
from tests.faults.three import FAULTS, NEED_A_LINK, Three

INSTANCES = 50
MORE = 300  # requests, 50 a second
SWITCH_MS = 25.0
BY_CONTROLLERS = {"locate_timeout", "no_controller", "peer_dead"}


@dataclass
class Struck:
    fault: str
    unfinished: int = 0
    resent: int = 0
    switched: list[float] = field(default_factory=list)  # how many; ms p50, p99, most
    missed: dict[str, int] = field(default_factory=dict)  # tokens by cause
    back_s: float = 0.0  # from its return until all ask it again
    differ: int = 0  # keys of which a controller tells otherwise than the tables, at rest

    @property
    def good(self) -> bool:
        slow = self.switched[2] > SWITCH_MS if self.switched and self.switched[0] else False
        return not (self.unfinished or self.missed or self.differ or slow)


def run(fault: str) -> Struck:
    with Three(INSTANCES, {"pull": "always"}) as three:
        three.all_ask(0, 1, 2)
        before = three.ask_more(MORE)
        lost = three.first()
        three.strike(fault, lost)
        three.ask_more(MORE)
        three.all_ask(*{0, 1, 2} - {lost})
        three.ask_more(MORE)
        three.heal(fault, lost)
        began = time.monotonic()
        three.all_ask(0, 1, 2)
        back = time.monotonic() - began
        told = three.fleet("rest")
        agreed = three.all_agree()
        return Struck(
            fault,
            told["begun"] - told["ended"],
            told["resent"] - before["resent"],
            told["switched"],
            {cause: n for cause, n in told["causes"].items() if cause in BY_CONTROLLERS},
            back,
            sum(differ for _, _, differ in agreed["controllers"].values()),
        )


def rows(wanted: str) -> Iterator[Struck]:
    """Of the faults whose words contain `wanted`, as `controllers blackholed`."""
    for fault in FAULTS:
        if wanted not in f"controllers {fault}":
            continue
        if fault in NEED_A_LINK and why_not():
            print(f"skipped: a controller {fault}: {why_not()}", file=sys.stderr)
            continue
        yield run(fault)


def table(struck: list[Struck]) -> Table:
    out = Table(
        title=f"One of three controllers: locates go on within {SWITCH_MS:g} ms, nothing is missed"
    )
    for name in ("what", "unfinished", "resent", "switched ms p50 / p99 / most", "missed tokens",
                 "asked again after", "directories differ in"):  # fmt: skip
        out.add_column(name)
    for one in struck:
        missed = ", ".join(f"{cause} {n}" for cause, n in one.missed.items()) or "0"
        took = " / ".join(f"{ms:g}" for ms in one.switched[1:]) if one.resent else "-"
        out.add_row(
            one.fault, str(one.unfinished), str(one.resent), took, missed, f"{one.back_s:.1f} s",
            f"{one.differ} keys", style="" if one.good else "red",
        )  # fmt: skip
    return out
