"""What the tests of the web process share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.contract.test_controller import Instance
    from tests.web import Web


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    from tests.web import lasting

    with lasting() as running:
        yield running


@pytest.fixture
def pair(web: Web) -> Iterator[tuple[Instance, Instance]]:
    from tests.web import pair_at

    with pair_at(web) as both:
        yield both
