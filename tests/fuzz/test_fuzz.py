"""A short round of `make fuzz`."""

from __future__ import annotations

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


def test_rest() -> None:
    pytest.importorskip("schemathesis")
    with rest.served() as web:
        assert rest.run(web, 3, number=1) >= 10


def test_a_defect_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """By each of them: a check that would let a slot of another key through."""
    monkeypatch.setattr(targets._native, "check_slot", lambda *_: targets._native.SlotStatus.GOOD)
    with pytest.raises(AssertionError):
        by_hypothesis.run("slots", 500, number=1)
