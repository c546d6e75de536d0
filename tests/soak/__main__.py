"""`make soak`: a million pulls and mapped loads of slots to which everything has happened.

None may be accepted with other bytes than the chunk's, and each refusal must have its cause; one
table at the end, exit 1 when anything is wrong. `--seed` repeats a run: what stands still while it
is read is then the same to the last verdict.
"""

from __future__ import annotations

import argparse
import logging
import secrets
import sys
import time
from dataclasses import replace

from rich.console import Console

from tests.soak.run import FULL, PARTS, Plan, Printed
from tests.soak.tally import Tally


def scaled(plan: Plan, share: float) -> Plan:
    names = ("pulls", "mapped", "changing", "nixl")
    return replace(plan, **{name: int(getattr(plan, name) * share) for name in names})


def main() -> int:
    parser = argparse.ArgumentParser(prog="soak", description=__doc__)
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    parser.add_argument("--share", type=float, default=1.0, help="of a million tries")
    parser.add_argument("--only", default="", help="parts whose name contains this")
    arguments = parser.parse_args()
    logging.getLogger("lmkv").setLevel(logging.ERROR)  # each refused load is a line otherwise
    plan, tally, begin = scaled(FULL, arguments.share), Tally(), time.monotonic()
    print(f"soak: seed {arguments.seed}, {plan}", file=sys.stderr, flush=True)
    progress = Printed(plan.tries, lambda line: print(line, file=sys.stderr, flush=True))
    for part in PARTS:
        if arguments.only in part.__name__:
            part(plan, arguments.seed, tally, progress)
    title = (
        f"Soak: {tally.tries:,} tries in {time.monotonic() - begin:.0f} s, seed {arguments.seed}, "
        f"{tally.wrong} wrong"
    )
    Console(width=None if sys.stdout.isatty() else 170).print(tally.table(title))
    for shape, cuts in tally.cuts.items():
        print(f"slots of {shape}: torn at {len(cuts)} places, each a multiple of 64 bytes")
    for example in tally.examples:
        print(example)
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
