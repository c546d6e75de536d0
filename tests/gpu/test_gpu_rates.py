"""The rates' code walks on a fake driver, whose times say nothing; and how a report looks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.harness import Figure
from tests.fakecuda.build import COMPILER
from tests.gpu import rates as measuring
from tests.gpu.__main__ import measured
from tests.gpu.cards import FakeCards
from tests.gpu.rates import KIB, SMALL, WrongBytes
from tests.gpu.report import Rate, table, told

needs_fake = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler for the fake driver")


@needs_fake
def test_every_rate_is_taken_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "gpu-report.json"
    with FakeCards().fresh() as device:
        assert measured(device, SMALL, report, 100)
    found = json.loads(report.read_text())
    rows = [
        (row["slots"], row["run"], row["multiprocessors"], row["copy"]) for row in found["rates"]
    ]
    assert found["wrong"] is None
    assert len(set(rows)) == len(rows) == 2 * 2 + 2 * 2 * 2 + 2 * 2
    assert all(row["lmkv"]["median"] > 0 and row["limit"]["median"] > 0 for row in found["rates"])
    shown = capsys.readouterr().out
    assert shown.count("on the card") == 4 and shown.count("of the link") == 2


@needs_fake
def test_it_ends_at_its_deadline_with_what_it_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "gpu-report.json"
    with FakeCards().fresh() as device:
        assert not measured(device, SMALL, report, 0)
    assert "stopped after 0 s" in capsys.readouterr().err
    assert len(json.loads(report.read_text())["rates"]) == 1


@needs_fake
def test_wrong_bytes_have_no_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(what: str, *_: object) -> None:
        raise WrongBytes(what)

    monkeypatch.setattr(measuring, "equal", fail)
    with FakeCards().fresh() as device:
        assert not measured(device, SMALL, tmp_path / "gpu-report.json", 100)
    assert "WRONG BYTES: gather on the card" in capsys.readouterr().err


def rate(copy: str, slots: str, run: int, ratio: float, multiprocessors: int = 8) -> Rate:
    limit, target = Figure(100, 90, 110), 0.9 if slots == "on the card" else None
    lmkv = Figure(100 * ratio, 1, 200)
    return Rate(copy, slots, run, multiprocessors, "GB/s", lmkv, limit, target)


def test_a_table() -> None:
    rows = [
        rate("gather", "staged", 8 * KIB, 0.95, 32),
        rate("scatter", "on the card", 16 * KIB, 0.8, 132),
    ]
    assert table(rows).splitlines() == [
        "slots        run     SMs  copy     unit  lmkv         limit          ratio  target",
        "staged       8 KiB   32   gather   GB/s  95 [1..200]  100 [90..110]  0.950",
        "on the card  16 KiB  132  scatter  GB/s  80 [1..200]  100 [90..110]  0.800  missed: 0.9",
    ]


def test_the_targets_are_of_long_runs_the_faster_path_and_the_default() -> None:
    rows = [
        rate("gather", "on the card", KIB, 0.1, 132),  # short
        rate("gather", "on the card", 8 * KIB, 0.93, 132),
        rate("gather", "on the card", 64 * KIB, 0.95, 132),
        rate("gather", "direct", 8 * KIB, 0.4),
        rate("gather", "staged", 8 * KIB, 0.96),
        rate("gather", "direct", 64 * KIB, 0.7),
        rate("gather", "staged", 64 * KIB, 0.6),
        rate("gather", "direct", 64 * KIB, 0.99, 32),  # more than is taken by default
        rate("scatter", "direct, one chunk", 8 * KIB, 0.1),
    ]
    assert told(rows) == [
        "gather: at least 0.930 of a device copy (target 0.9: met)",
        "gather: at least 0.700 of the link (target 0.9: MISSED)",
    ]
