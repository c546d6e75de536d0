"""`make bench`: the rows of every bench/bench_*.py, one table, `bench-report.json`.

`python -m bench keys copy` runs only those. A file that fails is named, the others go on, and the
exit status is 1; a missed target is shown and is no failure (machines differ).
"""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.harness import Row

HERE = Path(__file__).resolve().parent
REPORT = HERE.parent / "bench-report.json"


def names() -> list[str]:
    return sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))


def table(rows: list[Row]) -> Table:
    shown = Table(title=r"median \[min..max]; the limit is measured in the same rounds")
    for column in ("", "unit", "lmkv", "limit", "ratio", "target", "", "note"):
        shown.add_column(column, overflow="fold")
    for row in rows:
        target = f"{'>=' if row.at_least else '<='} {row.target:g}"
        met = "[green]met[/]" if row.met else "[red]missed[/]"
        ratio = f"{row.ratio:.3g}"
        figures = (escape(str(figure)) for figure in (row.lmkv, row.limit))
        shown.add_row(row.name, row.unit, *figures, ratio, target, met, escape(row.note))
    return shown


def main(wanted: list[str]) -> int:
    unknown = set(wanted) - set(names())
    if unknown:
        print(f"no such bench: {', '.join(sorted(unknown))}; there are {', '.join(names())}")
        return 2
    rows: list[Row] = []
    failed: list[str] = []
    for name in wanted or names():
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            rows += importlib.import_module(f"bench.bench_{name}").rows()
        except Exception:
            traceback.print_exc()
            failed.append(name)
    console = Console()
    (console if console.is_terminal else Console(width=160)).print(table(rows))
    REPORT.write_text(json.dumps([row.report() for row in rows], indent=2) + "\n")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
