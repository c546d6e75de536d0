"""The soak of `make soak`, small: no slot is accepted wrong, each refusal has its cause."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from tests.soak.corruption import KINDS
from tests.soak.run import PARTS, SMALL, Printed, over_nixl
from tests.soak.tally import CAUSES, DIGEST, GOOD, Tally

SEED = 20261


def soaked(part, plan=SMALL, seed: int = SEED) -> Tally:
    tally = Tally()
    logging.getLogger("lmkv").setLevel(logging.ERROR)
    try:
        part(plan, seed, tally, lambda *_: None)
    finally:
        logging.getLogger("lmkv").setLevel(logging.NOTSET)
    return tally


@pytest.mark.parametrize(
    "part",
    [pytest.param(p, marks=[pytest.mark.nixl] if p is over_nixl else []) for p in PARTS],
    ids=lambda part: part.__name__,
)
def test_nothing_is_accepted_wrong(part) -> None:
    tally = soaked(part)
    assert not tally.wrong, tally.examples
    seen = {cause for counts in tally.results.values() for cause in counts}
    assert GOOD in seen and len(seen) >= 3, [CAUSES[cause] for cause in seen]


def test_every_corruption_is_tried_and_the_same_seed_is_the_same_run() -> None:
    plan = replace(SMALL, pulls=3_000, mapped=1_500)
    for part in PARTS[:2]:
        first = soaked(part, plan)
        assert {row for row, _ in first.results} >= set(KINDS)
        ending = "mover ends in the middle"  # of how many chunks, is for the threads to say
        results = {row: counts for row, counts in first.results.items() if row[0] != ending}
        again = soaked(part, plan).results
        assert again.items() >= results.items()


def test_a_verdict_that_is_not_as_it_must_be_is_counted() -> None:
    tally = Tally()
    tally.count(("torn", "mapped"), GOOD, right=False, expected=frozenset({GOOD}))
    tally.count(("torn", "mapped"), DIGEST, right=True, expected=frozenset({GOOD}))
    tally.count(("torn", "mapped"), DIGEST, right=True, expected=frozenset({DIGEST}))
    assert (tally.tries, tally.wrong) == (3, 2)
    assert tally.examples == [
        "mapped, torn: wrong bytes, good, not good",
        "mapped, torn: digest, not good",
    ]


def test_progress_is_a_line_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Printed, "EVERY", 0.0)
    lines: list[str] = []
    progress = Printed(100, lines.append)
    progress("mapped", 60)
    progress("mapped", 40)
    assert [line.split("s", 1)[1].split() for line in lines] == [
        ["60", "of", "100", "mapped"],
        ["100", "of", "100", "mapped"],
    ]
