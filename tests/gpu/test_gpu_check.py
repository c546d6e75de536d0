"""`make gpu-check` says in a sentence what is missing, ends a step at its deadline, and certifies
only what ran and passed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fakecuda.build import COMPILER
from tests.fakecuda.fake import FakeCuda
from tests.fakecuda.raw import NUMBERS
from tools import gpu_check
from tools.gpu_check import all_passed
from tools.gpu_here import no_gpu


def test_no_driver() -> None:
    assert (no_gpu("/nowhere/libcuda.so.1") or "").startswith("there is no CUDA driver: /nowhere")


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler for the fake driver")
def test_a_driver_with_a_gpu_and_without() -> None:
    with FakeCuda() as fake:
        assert no_gpu(str(fake.path)) is None
        fake.fail("init", 1, NUMBERS["NO_DEVICE"])
        assert no_gpu(str(fake.path)) == "the CUDA driver finds no GPU (cuInit returns 100)"
        fake.fail("device_count", 1, NUMBERS["NO_DEVICE"])
        assert no_gpu(str(fake.path)) == "the CUDA driver has no GPU"


def test_nothing_is_tried_without_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_check, "no_gpu", lambda: "there is no GPU")
    monkeypatch.setattr(gpu_check, "step", None)
    assert gpu_check.main() == 1
    assert capsys.readouterr().err == "there is no GPU\n"


def test_a_module_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "no_gpu", lambda: None)
    monkeypatch.setattr(gpu_check, "MODULES", ("pytest", "nobodys_module"))
    monkeypatch.setattr(gpu_check.sys, "executable", "/this/python")
    assert "nobodys_module is missing in /this/python" in gpu_check.missing()
    assert not any(sentence.startswith("pytest") for sentence in gpu_check.missing())


def test_a_step_ends_with_all_that_it_started(capsys: pytest.CaptureFixture[str]) -> None:
    begin = time.monotonic()
    assert not gpu_check.step("a step", 0.5, ["true"], ["sh", "-c", "sleep 60 & sleep 60"])
    assert time.monotonic() - begin < 20
    assert not gpu_check.step("another", 10, ["false"], ["sleep", "60"])
    assert gpu_check.step("a third", 10, ["true"])
    said = capsys.readouterr().err
    assert said == "a step: not done after 0.5 s\nanother: false returned 1\n"


def suite(**counts: int) -> str:
    numbers = {"tests": 3, "failures": 0, "errors": 0, "skipped": 0} | counts
    attributes = " ".join(f'{name}="{count}"' for name, count in numbers.items())
    return f"<testsuites><testsuite {attributes}/></testsuites>"


def test_what_is_certified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results, recorded = tmp_path / "results.xml", []
    results.write_text(suite(skipped=2, failures=1))
    assert all_passed(results) == "1 failures, 2 skipped"
    results.write_text(suite(tests=0))
    assert all_passed(results) == "no test ran"
    results.write_text(suite())
    assert all_passed(results) is None

    report = tmp_path / "gpu-report.json"
    report.write_text('{"card": "NVIDIA H100", "date": "2027-01-31"}')
    good = dict.fromkeys(("build", "test", "rates"), lambda: True)
    patched = {"missing": list, "REPORT": report, "RESULTS": results, **good}
    for name, value in patched.items():
        monkeypatch.setattr(gpu_check, name, value)
    monkeypatch.setattr(gpu_check, "all_passed", lambda: all_passed(results))
    monkeypatch.setattr(gpu_check.certified, "record", lambda *what: recorded.append(what))
    assert gpu_check.main() == 0
    assert recorded == [("NVIDIA H100", "2027-01-31")]
    for what in ("test", "rates"):
        monkeypatch.setattr(gpu_check, what, lambda: False)
        assert gpu_check.main() == 1
        monkeypatch.setattr(gpu_check, what, lambda: True)
    results.write_text(suite(skipped=1))
    assert gpu_check.main() == 1
    assert len(recorded) == 1


BARE = """
import sys
import pytest
for name in ("msgspec", "zmq", "typer", "blake3", "fastapi", "vllm", "nixl"):
    sys.modules[name] = None
import tests.gpu.__main__
words = ["-q", "--collect-only", "-m", "gpu", "-p", "no:cacheprovider"]
sys.exit(pytest.main([*words, *sys.argv[1:]]))
"""


def test_a_card_is_tested_without_what_lmkv_runs_with() -> None:
    """A machine with a card has MODULES, and need not have the package's dependencies."""
    words = [sys.executable, "-c", BARE, *gpu_check.TESTS]
    ran = subprocess.run(words, cwd=gpu_check.ROOT, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "test_gpu_copier.py" in ran.stdout and "test_engine.py" in ran.stdout
