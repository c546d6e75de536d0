"""A short round of `make fuzz`."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.fuzz import __main__ as fuzz
from tests.fuzz import by_hypothesis, rest, targets
from tests.fuzz.targets import TARGETS, seeds


@pytest.mark.parametrize("name", TARGETS)
def test_a_target(name: str) -> None:
    for data in seeds(name):
        TARGETS[name](data)
    by_hypothesis.run(name, 150, number=1)


@pytest.mark.parametrize("name", ["wire", "keys"])
def test_atheris(name: str) -> None:
    pytest.importorskip("atheris")
    assert "Done" in fuzz.by_atheris(name, 2)


def python(text: str) -> str:
    """What it says, as a program that knows what MIB is."""
    words = [sys.executable, "-c", f"from tests.fuzz import by_atheris\nMIB = 1 << 20\n{text}"]
    ran = subprocess.run(words, cwd=fuzz.ROOT, capture_output=True, text=True, timeout=60)
    return ran.stdout + ran.stderr


def test_atheris_bounds_a_targets_memory() -> None:
    """And not that of who starts it, however much that had."""
    pytest.importorskip("atheris")
    had = "had = b'x' * MIB * (by_atheris.MOST_MIB + 99)"
    said = python(f"{had}\nfrom tests.fuzz import __main__\nprint(__main__.by_atheris('keys', 1))")
    assert said.startswith("Done"), said
    kept = "lambda data: kept.append(b'x' * MIB)"
    hungry = f"from tests.fuzz import targets\nkept = []\ntargets.TARGETS['keys'] = {kept}\n"
    assert "libFuzzer: out-of-memory" in python(f"{hungry}by_atheris.main('keys', '20')")


def test_rest() -> None:
    pytest.importorskip("schemathesis")
    with rest.served() as web:
        assert rest.run(web, 3, number=1) >= 10


def test_a_defect_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """By each of them: a check that would let a slot of another key through."""
    monkeypatch.setattr(targets._native, "check_slot", lambda *_: targets._native.SlotStatus.GOOD)
    with pytest.raises(AssertionError):
        by_hypothesis.run("slots", 500, number=1)
