"""What the tests of the web process share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.contract.test_controller import Instance
    from tests.scripted_jobs import Worker
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


@pytest.fixture
def a(web: Web) -> Iterator[Worker]:
    """Takes jobs, and holds `KEYS`."""
    from tests.contract.test_controller import until
    from tests.scripted_jobs import KEYS, Worker, holders

    with Worker("a", [web], 1) as worker:
        worker.store(KEYS)
        until(lambda: holders(web) == ["a"])
        yield worker


@pytest.fixture
def b(web: Web) -> Iterator[Worker]:
    """Takes jobs, and holds nothing."""
    from tests.contract.test_controller import until
    from tests.scripted_jobs import Worker
    from tests.stub_instance import HOST_B

    with Worker("b", [web], 2, host=HOST_B) as worker:
        until(lambda: web.ask("/v1/instances/b").json.get("state") == "live")
        yield worker
