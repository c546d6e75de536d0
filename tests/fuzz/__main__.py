"""`python -m tests.fuzz [--minutes 10]`: each target by hypothesis and by atheris, then REST.

Red with the input that was found. Without atheris (it has no wheel everywhere) hypothesis has its
time too; the last table says which was there.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from tests.fuzz import by_hypothesis, rest
from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).resolve().parents[2]
REST_EXAMPLES = 30  # of each operation and mode in a round


def by_atheris(name: str, seconds: float) -> str:
    words = [sys.executable, "-m", "tests.fuzz.by_atheris", name, str(max(1, int(seconds)))]
    ran = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, errors="replace")
    lines = ran.stderr.splitlines() or [""]
    if ran.returncode:
        raise AssertionError("\n".join(lines[-40:]))
    return next((line for line in reversed(lines) if line.startswith("Done")), lines[-1])


def by_schemathesis(seconds: float) -> str:
    end, rounds, operations = time.monotonic() + seconds, 0, 0
    with rest.served() as web:
        while rounds == 0 or time.monotonic() < end:
            operations = rest.run(web, REST_EXAMPLES)
            rounds += 1
    return f"{operations} operations, {rounds} rounds of {REST_EXAMPLES} in two modes"


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz everything that reads bytes.")
    parser.add_argument("--minutes", type=float, default=10.0)
    seconds = 60 * parser.parse_args().minutes
    lacking = [each for each in ("atheris", "schemathesis") if find_spec(each) is None]
    jobs: list[tuple[str, Callable[[float], str]]] = []
    for name in TARGETS:
        jobs.append((f"{name}, hypothesis", partial(by_hypothesis.run_for, name)))
        if "atheris" not in lacking:
            jobs.append((f"{name}, atheris", partial(by_atheris, name)))
    if "schemathesis" not in lacking:
        jobs.append(("REST, schemathesis", by_schemathesis))
    red = 0
    for what, job in jobs:
        begin = time.monotonic()
        try:
            said = job(seconds / len(jobs))
        except Exception:
            red += 1
            said = "RED\n" + traceback.format_exc()
        print(f"{what:24} {time.monotonic() - begin:5.0f} s  {said}", flush=True)
    for name in lacking:
        print(f"{name} is not installed: it fuzzed nothing")
    print("red" if red else "clean")
    return 1 if red else 0


if __name__ == "__main__":
    sys.exit(main())
