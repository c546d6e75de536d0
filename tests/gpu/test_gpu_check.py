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
from tools.gpu_check import against
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


def suite(*cases: str, **counts: int) -> str:
    numbers = {"tests": 3, "failures": 0, "errors": 0, "skipped": 0} | counts
    attributes = " ".join(f'{name}="{count}"' for name, count in numbers.items())
    return f"<testsuites><testsuite {attributes}>{''.join(cases)}</testsuite></testsuites>"


FAILED = '<testcase classname="t" name="a"><failure message="assert 1 == 2&#10;more"/></testcase>'
SKIPPED = '<testcase classname="t" name="b"><skipped message="no CuPy"/></testcase>'


def test_what_a_part_has_against_it(tmp_path: Path) -> None:
    results = tmp_path / "results.xml"
    results.write_text(suite(FAILED, SKIPPED, skipped=1, failures=1))
    assert against(results) == [
        "1 failures, 1 skipped of 3 tests",
        "failure: t::a: assert 1 == 2",
        "skipped: t::b: no CuPy",
    ]
    results.write_text(suite(tests=0))
    assert against(results) == ["no test ran"]
    results.write_text(suite())
    assert against(results) == []


def test_each_part_has_its_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that ends without results, and one that fails, do not keep the others from it."""
    ran: list[tuple[str, float]] = []

    def step(name: str, deadline_s: float, words: list[str]) -> bool:
        ran.append((name, deadline_s))
        (results,) = [word.partition("=")[2] for word in words if word.startswith("--junitxml")]
        if name != "copies":
            Path(results).write_text(suite(FAILED, failures=1) if name == "pools" else suite())
        return name not in ("copies", "pools")

    monkeypatch.setattr(gpu_check, "BUILD", tmp_path)
    monkeypatch.setattr(gpu_check, "step", step)
    found = gpu_check.test()
    assert [name for name, _ in ran] == [*gpu_check.PARTS, "NIXL"]
    assert all(0 < seconds <= gpu_check.PART_S for _, seconds in ran)
    assert found.pop("copies") == ["its process ended, or was ended, without results"]
    assert found.pop("pools")[0] == "1 failures of 3 tests"
    assert not any(found.values())
    monkeypatch.setattr(gpu_check, "TESTS_S", 1)
    assert gpu_check.test()["kernels"] == ["no time was left for it"]


def test_all_of_its_time_is_under_8_minutes() -> None:
    steps = (gpu_check.LOOK_S, gpu_check.BUILD_S, gpu_check.TESTS_S, gpu_check.RATES_S)
    assert sum(steps) < 480


def test_every_test_of_a_card_is_in_a_part() -> None:
    here = {f"tests/gpu/{path.name}" for path in Path(__file__).parent.glob("test_*.py")}
    alone = {f"tests/gpu/test_gpu_{name}.py" for name in ("check", "check_played", "rates")}
    assert here - alone <= {*gpu_check.PARTS.values(), gpu_check.NIXL}


def test_what_is_certified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded: list[tuple[str, str]] = []
    report = tmp_path / "gpu-report.json"
    report.write_text('{"card": "NVIDIA H100", "date": "2027-01-31"}')
    right = {name: [] for name in (*gpu_check.PARTS, "NIXL")}
    for name, value in {
        "missing": list,
        "REPORT": report,
        "build": lambda: True,
        "test": lambda: right,
        "rates": lambda: True,
        "demo": lambda: None,
    }.items():
        monkeypatch.setattr(gpu_check, name, value)
    monkeypatch.setattr(gpu_check.certified, "record", lambda *what: recorded.append(what))
    assert gpu_check.main() == 0
    assert recorded == [("NVIDIA H100", "2027-01-31")]
    skipped = {"NIXL": ["1 skipped of 1 tests", "skipped: t::a: NIXL is not here: why"]}
    monkeypatch.setattr(gpu_check, "test", lambda: right | skipped)
    assert gpu_check.main() == 0  # the kernels are what is certified
    assert "skipped: t::a: NIXL is not here: why" in capsys.readouterr().out
    monkeypatch.setattr(
        gpu_check, "test", lambda: right | {"NIXL": ["1 of 1", "failure: t::a: no"]}
    )
    assert gpu_check.main() == 1
    assert len(recorded) == 3
    for name in gpu_check.PARTS:
        monkeypatch.setattr(gpu_check, "test", lambda name=name: right | {name: ["1 skipped"]})
        assert gpu_check.main() == 1
    monkeypatch.setattr(gpu_check, "test", lambda: right)
    monkeypatch.setattr(gpu_check, "rates", lambda: False)
    assert gpu_check.main() == 1
    assert len(recorded) == 3
    monkeypatch.setattr(gpu_check, "rates", lambda: True)
    monkeypatch.setattr(gpu_check, "demo", lambda: False)
    assert gpu_check.main() == 1  # the kernels are certified all the same
    assert len(recorded) == 4


def test_the_demo_comes_where_vllm_is(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[object, ...]] = []
    monkeypatch.setattr(gpu_check, "step", lambda *words, here: ran.append((*words, here)) or True)
    monkeypatch.setattr(gpu_check, "find_spec", lambda name: None)
    assert gpu_check.demo() is None
    monkeypatch.setattr(gpu_check, "find_spec", lambda name: name == "vllm")
    assert gpu_check.demo() is True
    words = [sys.executable, "tools/run_demo.py"]
    assert ran == [("demo", gpu_check.DEMO_S, words, False)]


def test_what_torch_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho warning\necho no GPU at all >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(gpu_check.sys, "executable", str(python))
    assert gpu_check.torch_lacks() == "torch cannot use the GPU: no GPU at all"
    python.write_text("#!/bin/sh\nexit 0\n")
    assert gpu_check.torch_lacks() is None
    python.write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(gpu_check, "LOOK_S", 0.5)
    said = "torch does not say within 0.5 s whether it finds a GPU"
    assert gpu_check.torch_lacks() == said


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
    words = [sys.executable, "-c", BARE, *gpu_check.PARTS.values(), gpu_check.NIXL]
    ran = subprocess.run(words, cwd=gpu_check.ROOT, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for path in (*gpu_check.PARTS.values(), gpu_check.NIXL):
        assert path in ran.stdout
