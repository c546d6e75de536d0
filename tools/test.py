"""`make test`: the tiers in turn, each with its time; red when any of them is.

`python` has csrc's own tests under sanitizers too; `browser` drives the pages in Chromium; `scalar`
runs the native tests once more with the plain instruction set; `vllm` starts real engines and comes
last; `gpu` is there where a GPU is. The files of `python` and of `browser` run side by side, a
file's tests in turn; engines compute with all cores, so theirs do not.
The last line says whether the GPU kernels, as they are, ever ran on a GPU.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import certified  # tools/certified.py
import gpu_here  # tools/gpu_here.py

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
PYTEST = [sys.executable, "-m", "pytest", "-q"]
# Two on any machine. The slowest files begin first: tests/conftest.py.
SIDE_BY_SIDE = [*PYTEST, "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]
# What an instruction set could change: csrc/isa.h chooses how keys are hashed, and how slots are
# gathered, scattered and digested. csrc's own tests run scalar within `python`.
NATIVE = [
    "tests/unit/test_keys.py",
    "tests/unit/test_mapped.py",
    "tests/unit/test_slot_format.py",
    "tests/property/test_keys_oracle.py",
    "tests/property/test_slots.py",
    "tests/contract/test_copier.py",
    "tests/soak",
]

TIERS: dict[str, list[list[str]]] = {
    "python": [
        [*SIDE_BY_SIDE, "-m", "not gpu and not browser", "--ignore", "tests/vllm", "tests"],
    ],
    "browser": [[*SIDE_BY_SIDE, "-m", "browser", "tests/browser"]],
    "scalar": [[*PYTEST, "-m", "not slow", *NATIVE]],
    "gpu": [[*PYTEST, "-m", "gpu", "tests"]],
    "vllm": [[*PYTEST, "-m", "vllm", "tests/vllm"]],
}


def run(tier: str) -> bool:
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}
    if tier == "scalar":
        environment["LMKV_ISA"] = "scalar"
    for words in TIERS[tier]:
        if subprocess.run(words, cwd=ROOT, env=environment).returncode != 0:
            return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the tests.")
    parser.add_argument("--only", choices=TIERS, action="append", help="one tier; may be repeated")
    tiers = parser.parse_args().only or list(TIERS)
    lines = []
    if "gpu" in tiers and (why := gpu_here.why_not()):
        tiers.remove("gpu")
        print(f"no tests on a GPU: {why}")
    for tier in tiers:
        print(f"\n==== {tier}", flush=True)
        begin = time.monotonic()
        good = run(tier)
        lines.append(
            (good, f"{tier:8} {'green' if good else 'RED':6} {time.monotonic() - begin:5.0f} s")
        )
    print("\n" + "\n".join(line for _, line in lines))
    print(certified.told(certified.load(), certified.digest()))
    return 0 if all(good for good, _ in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
