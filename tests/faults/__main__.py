"""`make faults`: every cell, two tables; exit 1 when any cell is not as it must be."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.faults import controllers, readers
from tests.faults.lab import BOUND_S, Cell, Lab, Outcome, cells
from tests.vllm.engine import EngineError, Zygote
from tests.vllm.models import make_llama

READERS = Cell("tcp", "100 readers", "kill", "in mid-READ")


def kill_readers(model: Path, folder: Path) -> Outcome:
    """Its delay is the longest from a kill to a chunk for the next reader."""
    outcome = Outcome(READERS)
    with Zygote(folder) as zygote, readers.lab(zygote, model, folder) as lab:
        try:
            killed = lab.run(100)
        except EngineError:
            outcome.died = "engine holder"
        except AssertionError as error:
            outcome.failed = 1
            print(error, file=sys.stderr)
        else:
            print(killed, file=sys.stderr)
            outcome.wrong, outcome.left = killed.wrong, killed.left
            outcome.delay_s, outcome.healed_s = max(killed.served_s), killed.served_s[-1]
    return outcome


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


def words(cell: Cell) -> str:
    return f"{cell.transfer} {cell.process} {cell.action} {cell.step}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="faults", description="Faults at every step.")
    parser.add_argument("--only", default="", help="cells whose words contain this")
    wanted = parser.parse_args().only
    chosen = [cell for cell in (*cells(), READERS) if wanted in words(cell)]
    outcomes: list[Outcome] = []
    struck = list(controllers.rows(wanted))
    console = Console(width=None if sys.stdout.isatty() else 170)
    console.print(controllers.table(struck))
    if not chosen:
        return 0 if all(one.good for one in struck) else 1
    folder = Path(tempfile.mkdtemp(prefix="lmkv-faults-"))
    model = make_llama(folder / "llama")
    for tcp in (False, True):
        of_this = [c for c in chosen if (c.transfer == "tcp") == tcp and c != READERS]
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
    if READERS in chosen:
        outcomes.append(kill_readers(model, folder))
    console.print(table(outcomes))
    if not all(each.good for each in (*outcomes, *struck)):
        print(f"the engines' logs are in {folder}", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
