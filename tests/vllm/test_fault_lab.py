"""A few cells of the fault lab (`make faults` runs them all): nothing fails, nothing is left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.lab import CONTROLLER, HOLDER, HOLDERS_MOVER, LINK, READERS_MOVER, Cell, Lab


@pytest.fixture(scope="module")
def lab(zygote: Any, llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(zygote, llama, tmp_path_factory.mktemp("lab"), tcp=False)
    yield lab
    lab.close()


@pytest.mark.parametrize(
    "cell",
    [
        Cell("nixl", CONTROLLER, "kill", "after a store"),
        Cell("nixl", HOLDERS_MOVER, "kill", "after the pull"),
        Cell("nixl", READERS_MOVER, "stop", "after the locate"),
        Cell("mapped", LINK, "garbage", "before the locate"),
        Cell("mapped", HOLDER, "kill", "before the load"),
    ],
    ids=lambda cell: f"{cell.process} {cell.action}",
)
def test_a_fault_costs_a_deadline_and_nothing_else(lab: Lab, cell: Cell) -> None:
    outcome = lab.run(cell)
    assert outcome.good, outcome
