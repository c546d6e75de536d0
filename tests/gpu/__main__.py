"""`python -m tests.gpu`: the copies' rates on GPU 0, one table and gpu-report.json.

`make gpu-check` runs it after the tests.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from datetime import datetime, timezone
from pathlib import Path

from tests.gpu.cards import ROOT, OnFake, OnReal, RealCards
from tests.gpu.rates import SMALL, Sizes, WrongBytes, rates
from tests.gpu.report import Rate, table, told
from tools import certified
from tools.gpu_here import why_not

REPORT = ROOT / "gpu-report.json"


def measured(device: OnFake | OnReal, sizes: Sizes, report: Path, deadline_s: float) -> bool:
    """Prints and writes what it has. False: not all is there, as bytes were wrong, the driver
    failed, or it took longer than `deadline_s`."""
    gpu, begin = device.gpu(), time.monotonic()
    found: list[Rate] = []
    wrong = ""
    try:
        for rate in rates(device, sizes):
            found.append(rate)
            print(f"{rate.copy}, slots {rate.slots}, runs of {rate.run} bytes", file=sys.stderr)
            if time.monotonic() - begin > deadline_s:
                wrong = f"stopped after {deadline_s:g} s: not everything is measured"
                break
    except WrongBytes as error:
        wrong = f"WRONG BYTES: {error}"
    except (RuntimeError, AssertionError) as error:  # AssertionError: of the launches, by ctypes
        traceback.print_exc()
        wrong = f"ended by {error!r}"
    print(f"{gpu.name}, driver for CUDA {gpu.driver_version / 1000:g}; median [min..max]")
    print(table(found))
    print("\n".join(told(found)))
    about = {
        "card": gpu.name,
        "driver_version": gpu.driver_version,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "kernels": certified.digest(),
        "wrong": wrong or None,
        "rates": [rate.report() for rate in found],
    }
    report.write_text(json.dumps(about, indent=2) + "\n")
    if wrong:
        print(wrong, file=sys.stderr)
    return not wrong


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    parser.add_argument("--report", type=Path, default=REPORT)
    parser.add_argument("--deadline", type=float, default=160.0, help="seconds")
    parser.add_argument("--small", action="store_true", help="sizes for a card that is played")
    options = parser.parse_args(words)
    sizes = SMALL if options.small else Sizes()
    if why := why_not():
        print(why, file=sys.stderr)
        return 1
    with RealCards().fresh() as device:
        return 0 if measured(device, sizes, options.report, options.deadline) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
