"""`make gpu-check`: everything that needs a card, on the card at hand, in under 8 minutes.

`python3 -m tools.gpu_check`, by any Python that has MODULES: the extension and the kernels are
built into a folder of their own (build/gpu-check), so that what is checked is this tree. Then the
tests that are marked `gpu`, part by part, each in a process of its own, so that one that ends or
hangs leaves the others their say; then rates (tests/gpu/rates.py): one table and gpu-report.json.
The last lines say of each part what failed in it. When every test of the kernels' parts ran and
passed and no bytes were wrong, tests/gpu/certified.json names the card. Each step has a deadline.

Only Python's own library is used here; what is missing is said in a sentence.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from xml.etree import ElementTree as ET

from tools import certified
from tools.gpu_here import no_gpu, why_not

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build/gpu-check"
SITE = BUILD / "site"
REPORT = ROOT / "gpu-report.json"
PARTS = {  # of what is certified
    "kernels": "tests/gpu/test_kernels.py",
    "copies": "tests/contract/test_gpu_copier.py",
    "pools": "tests/contract/test_gpu_pool.py",
    "beside torch": "tests/gpu/test_engine.py",
    "CuPy": "tests/gpu/test_fallback.py",
}
NIXL = "tests/gpu/test_gpu_nixl.py"  # where the wheel allows; its skip says why it does not
MODULES = ("nanobind", "numpy", "torch", "cupy", "pytest", "hypothesis")
BUILD_S, TESTS_S, RATES_S = 170, 125, 175  # 470 s in all
PART_S = 70  # of TESTS_S, at most


def missing() -> list[str]:
    """What this machine, or this Python, lacks; a sentence each."""
    if sentence := no_gpu():
        return [sentence]
    lacks = [
        f"{name} is missing in {sys.executable}"
        for name in MODULES
        if importlib.util.find_spec(name) is None
    ]
    if not lacks and (sentence := why_not()):
        lacks.append(sentence)
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        lacks.append(f"Python.h is missing for {sys.executable}")
    if shutil.which("cmake") is None:
        lacks.append("cmake is missing")
    if shutil.which("g++") is None and shutil.which("c++") is None:
        lacks.append("a C++ compiler is missing")
    return lacks


def step(name: str, deadline_s: float, *commands: list[str]) -> bool:
    """Runs them in turn; all that they have started ends at the deadline."""
    print(f"==== {name} (at most {deadline_s:g} s)", flush=True)
    begin = time.monotonic()
    folders = [str(SITE), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, folders))}
    for words in commands:
        with subprocess.Popen(words, cwd=ROOT, env=environment, start_new_session=True) as process:
            try:
                status = process.wait(deadline_s - (time.monotonic() - begin))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                print(f"{name}: not done after {deadline_s:g} s", file=sys.stderr)
                return False
        if status != 0:
            print(f"{name}: {words[0]} returned {status}", file=sys.stderr)
            return False
    print(f"==== {name}: {time.monotonic() - begin:.0f} s", flush=True)
    return True


def build() -> bool:
    """SITE is the package as an installation has it: Python, extension, kernels."""
    shutil.rmtree(SITE, ignore_errors=True)
    ours = shutil.ignore_patterns("*.so", "__pycache__", "kernels")
    shutil.copytree(ROOT / "python/lmkv", SITE / "lmkv", ignore=ours)
    ninja = ["-G", "Ninja"] if shutil.which("ninja") else []
    python = ["-Unanobind_DIR", f"-DPython_EXECUTABLE={sys.executable}"]
    good = step(
        "build",
        BUILD_S,
        ["cmake", "-S", ".", "-B", str(BUILD), *ninja, *python, "--log-level=NOTICE"],
        ["cmake", "--build", str(BUILD), "-j", str(os.cpu_count() or 1)],
        ["cmake", "--install", str(BUILD), "--prefix", str(SITE)],
    )
    if good and not (SITE / "lmkv/kernels/lmkv.fatbin").exists():
        print("nvcc is missing, or too old: CuPy compiles the kernels")
    return good


def against(results: Path) -> list[str]:
    """What pytest's XML has against it, a line for each test and one with the counts; [] : nothing.
    A test that was skipped has not passed."""
    counts = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    lines = []
    for suite in ET.parse(results).getroot().iter("testsuite"):
        for name in counts:
            counts[name] += int(suite.get(name, "0"))
    for case in ET.parse(results).getroot().iter("testcase"):
        for what in case:
            if what.tag in ("failure", "error", "skipped"):
                why = (what.get("message") or what.text or "").strip().partition("\n")[0]
                lines.append(
                    f"{what.tag}: {case.get('classname')}::{case.get('name')}: {why[:200]}"
                )
    if counts["tests"] == 0:
        return ["no test ran"]
    wrong = [f"{count} {name}" for name, count in counts.items() if name != "tests" and count]
    return [f"{', '.join(wrong)} of {counts['tests']} tests", *lines] if wrong else []


def part(name: str, path: str, deadline_s: float) -> list[str]:
    """Of one part of the tests, what `against` says."""
    results = BUILD / f"{name.replace(' ', '-')}.xml"
    results.unlink(missing_ok=True)
    words = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-rs", "--tb=short"]
    ended = step(name, deadline_s, [*words, f"--junitxml={results}", path])
    if not results.exists():
        return ["its process ended, or was ended, without results"]
    return against(results) or ([] if ended else ["pytest failed after its tests"])


def test() -> dict[str, list[str]]:
    """By part."""
    end, found = time.monotonic() + TESTS_S, {}
    for name, path in (PARTS | {"NIXL": NIXL}).items():
        left = min(PART_S, end - time.monotonic())
        found[name] = part(name, path, left) if left > 5 else ["no time was left for it"]
    return found


def rates() -> bool:
    deadline = str(RATES_S - 15)  # so that the table is there in any case
    words = [sys.executable, "-m", "tests.gpu", "--report", str(REPORT), "--deadline", deadline]
    return step("rates", RATES_S, words)


def main() -> int:
    if lacks := missing():
        print("\n".join(lacks), file=sys.stderr)
        return 1
    if not build():
        return 1
    found = test()  # rates are of use beside a red test, too
    right = rates()
    print("\n==== summary")
    for name, wrong in found.items():
        print("\n    ".join([f"{name}: {'passed' if not wrong else wrong[0]}", *wrong[1:]]))
    print(f"rates: {'measured' if right else 'not all measured, or wrong bytes: see above'}")
    good = right and not any(found[name] for name in PARTS)
    if good:
        report = json.loads(REPORT.read_text())
        certified.record(report["card"], report["date"])
        print(f"recorded in {certified.CERTIFIED.relative_to(ROOT)}")
    else:
        print("not certified: a part above failed, was skipped or did not end", file=sys.stderr)
    print(certified.told(certified.load(), certified.digest()))
    return (
        0
        if good and not any(line.startswith(("failure", "error")) for line in found["NIXL"])
        else 1
    )


if __name__ == "__main__":
    sys.exit(main())
