"""`make gpu-check`: everything that needs a card, on the card at hand, in under 8 minutes.

`python3 -m tools.gpu_check`, by any Python that has MODULES: the extension and the kernels are
built into a folder of their own (build/gpu-check), so that what is checked is this tree. Then the
tests that are marked `gpu`, then rates (tests/gpu/rates.py): one table and gpu-report.json. When
every test ran and passed and no bytes were wrong, tests/gpu/certified.json names the card. Each
step has a deadline.

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
RESULTS = BUILD / "results.xml"
REPORT = ROOT / "gpu-report.json"
TESTS = ("tests/gpu", "tests/contract/test_gpu_copier.py", "tests/contract/test_gpu_pool.py")
MODULES = ("nanobind", "numpy", "torch", "cupy", "pytest", "hypothesis")
BUILD_S, TESTS_S, RATES_S = 170, 120, 175  # 465 s in all


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


def all_passed(results: Path = RESULTS) -> str | None:
    """What pytest's XML has against it, in a sentence; a test that was skipped has not passed."""
    counts = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    for suite in ET.parse(results).getroot().iter("testsuite"):
        for name in counts:
            counts[name] += int(suite.get(name, "0"))
    if counts["tests"] == 0:
        return "no test ran"
    wrong = [f"{count} {name}" for name, count in counts.items() if name != "tests" and count]
    return ", ".join(wrong) or None


def test() -> bool:
    RESULTS.unlink(missing_ok=True)
    words = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", f"--junitxml={RESULTS}", *TESTS]
    return step("tests", TESTS_S, words)


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
    passed = test()  # rates are of use beside a red test, too
    right = rates()
    against = all_passed() if RESULTS.exists() else "the tests did not end"
    if passed and right and against is None:
        report = json.loads(REPORT.read_text())
        certified.record(report["card"], report["date"])
        print(f"recorded in {certified.CERTIFIED.relative_to(ROOT)}")
    else:
        print(f"not certified: {against or 'see above'}", file=sys.stderr)
    print(certified.told(certified.load(), certified.digest()))
    return 0 if passed and right and against is None else 1


if __name__ == "__main__":
    sys.exit(main())
