"""`make faults`: every cell, one table; exit 1 when any cell is not as it must be."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.faults.lab import BOUND_S, Lab, Outcome, cells
from tests.vllm.engine import Zygote
from tests.vllm.models import make_llama


def table(outcomes: list[Outcome]) -> Table:
    title = (
        f"Faults: longest allowed delay {BOUND_S:.1f} s; leftovers are counts of the reader at rest"
    )
    out = Table(title=title)
    for name in ("by", "process", "action", "step", "failed", "wrong", "delay", "hit", "died",
                 "leftovers", "hits again"):  # fmt: skip
        out.add_column(name)
    for o in outcomes:
        left = ", ".join(f"{k} {n:+}" for k, n in o.left.items()) or "0"
        out.add_row(
            o.cell.transfer, o.cell.process, o.cell.action, o.cell.step, str(o.failed),
            str(o.wrong), f"{o.delay_s:.2f} s", str(o.hit_tokens), o.died or "0", left,
            "never" if o.healed_s is None else f"{o.healed_s:.1f} s",
            style="" if o.good else "red",
        )  # fmt: skip
    return out


def main() -> int:
    parser = argparse.ArgumentParser(prog="faults", description="Faults at every step.")
    parser.add_argument("--only", default="", help="cells whose words contain this")
    wanted = parser.parse_args().only
    chosen = [c for c in cells() if wanted in f"{c.transfer} {c.process} {c.action} {c.step}"]
    outcomes: list[Outcome] = []
    folder = Path(tempfile.mkdtemp(prefix="lmkv-faults-"))
    model = make_llama(folder / "llama")
    for tcp in (False, True):
        of_this = [cell for cell in chosen if (cell.transfer == "tcp") == tcp]
        if not of_this:
            continue
        with Zygote(folder) as zygote:
            lab = Lab(zygote, model, folder, tcp)
            try:
                for number, cell in enumerate(of_this, 1):
                    outcomes.append(lab.run(cell))
                    o = outcomes[-1]
                    word = "good" if o.good else "BAD "
                    print(f"{word} {number}/{len(of_this)} {o}", file=sys.stderr, flush=True)
                    if o.healed_s is None:  # not fit for another cell
                        lab.close()
                        lab = Lab(zygote, model, folder, tcp)
            finally:
                lab.close()
    Console(width=None if sys.stdout.isatty() else 170).print(table(outcomes))
    if not all(outcome.good for outcome in outcomes):
        print(f"the engines' logs are in {folder}", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
