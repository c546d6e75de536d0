"""`make gpu-check`: everything that needs a card, on the card at hand, in under 8 minutes.

`python3 -m tools.gpu_check`, by any Python that has MODULES: the extension and the kernels are
built into a folder of their own (build/gpu-check), so that what is checked is this tree. Then the
tests that are marked `gpu`, part by part, each in a process of its own, so that one that ends or
hangs leaves the others their say; then rates (tests/gpu/rates.py): one table and gpu-report.json.
The last lines say of each part what failed in it. When every test of the kernels' parts ran and
passed and no bytes were wrong, tests/gpu/certified.json names the card. Each step has a deadline.
Where this Python has vLLM too, the demo comes last (tools/run_demo.py), in minutes of its own.

Only Python's own library is used here; what is missing is said in a sentence.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree as ET

from tools import certified
from tools.gpu_here import no_gpu

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
LOOK_S, BUILD_S, TESTS_S, RATES_S = 90, 120, 115, 150  # 475 s in all
PART_S = 70  # of TESTS_S, at most
BEGIN_S = 25  # of RATES_S: torch's import, the worlds, and what a measurement has begun
DEMO_S = 900


def missing() -> list[str]:
    """What this machine, or this Python, lacks; a sentence each."""
    if sentence := no_gpu():
        return [sentence]
    lacks = [
        f"{name} is missing in {sys.executable}" for name in MODULES if find_spec(name) is None
    ]
    if not lacks and (sentence := torch_lacks()):
        lacks.append(sentence)
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        lacks.append(f"Python.h is missing for {sys.executable}")
    if shutil.which("cmake", path=search_path()) is None:
        lacks.append("cmake is missing")
    if shutil.which("g++") is None and shutil.which("c++") is None:
        lacks.append("a C++ compiler is missing")
    return lacks


def torch_lacks() -> str | None:
    """By a process of its own: where nothing of torch was read yet, its import may take long."""
    words = [sys.executable, "-m", "tools.gpu_here"]
    try:
        ran = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=LOOK_S)
    except subprocess.TimeoutExpired:
        return f"torch does not say within {LOOK_S:g} s whether it finds a GPU"
    if ran.returncode == 0:
        return None
    said = (ran.stdout + ran.stderr).strip().splitlines() or ["nothing"]
    return f"torch cannot use the GPU: {said[-1]}"


def search_path() -> str:
    """With this Python's own programs, as pip installs cmake and ninja, even when it is called by
    its path."""
    folders = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    return os.pathsep.join(folders)


def step(name: str, deadline_s: float, *commands: list[str], here: bool = True) -> bool:
    """Runs them in turn; all that they have started ends at the deadline. `here`: with SITE."""
    print(f"==== {name} (at most {deadline_s:g} s)", flush=True)
    begin = time.monotonic()
    environment = os.environ | {"PATH": search_path()}
    if here:
        folders = [str(SITE), str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, folders))
        # Plugins of whatever else is installed cost seconds, and may fail.
        environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
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
    ninja = ["-G", "Ninja"] if shutil.which("ninja", path=search_path()) else []
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
    words += ["-W", "ignore::pytest.PytestConfigWarning"]  # of plugins' settings
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


def rates(*more: str) -> bool:
    REPORT.unlink(missing_ok=True)
    deadline = str(RATES_S - BEGIN_S)  # so that the table is there in any case
    words = [sys.executable, "-m", "tests.gpu", "--report", str(REPORT), "--deadline", deadline]
    return step("rates", RATES_S, [*words, *more])


def demo() -> bool | None:
    """None: without vLLM there is none."""
    if find_spec("vllm") is None:
        return None
    return step("demo", DEMO_S, [sys.executable, "tools/run_demo.py"], here=False)


def main() -> int:
    if lacks := missing():
        print("\n".join(lacks), file=sys.stderr)
        return 1
    if not build():
        return 1
    found = test()  # rates are of use beside a red test, too
    right = rates()
    shown = demo()
    print("\n==== summary")
    for name, wrong in found.items():
        print("\n    ".join([f"{name}: {'passed' if not wrong else wrong[0]}", *wrong[1:]]))
    print(f"rates: {'measured' if right else 'not all measured, or wrong bytes: see above'}")
    if shown is not None:
        print(f"demo: {'answers equal, chunks pulled' if shown else 'failed: see above'}")
    good = right and not any(found[name] for name in PARTS)
    if good:
        report = json.loads(REPORT.read_text())
        certified.record(report["card"], report["date"])
        print(f"recorded in {certified.CERTIFIED.relative_to(ROOT)}")
    else:
        print("not certified: a part above failed, was skipped or did not end", file=sys.stderr)
    print(certified.told(certified.load(), certified.digest()))
    failed = any(line.startswith(("failure", "error")) for line in found["NIXL"])
    return 0 if good and not failed and shown is not False else 1


if __name__ == "__main__":
    sys.exit(main())
