"""One controller and one browser for all tests of the pages; a tab each."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser.browser import CHROMIUM, Tab, chromium
from tests.browser.browser import tab as new_tab

if TYPE_CHECKING:
    from tests.web import Web

NEEDS = {
    "chromium (apt-get install chromium)": CHROMIUM is not None,
    "playwright": find_spec("playwright") is not None,
    "nicegui": find_spec("nicegui") is not None,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = [name for name, there in NEEDS.items() if not there]
    for item in items:
        if "tests/browser/" in str(item.path):
            item.add_marker(pytest.mark.browser)
            if missing:
                item.add_marker(pytest.mark.skip(reason=f"not here: {', '.join(missing)}"))


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    from tests.web import lasting

    with lasting() as running:
        yield running


@pytest.fixture
def tab(browser: Any) -> Iterator[Tab]:
    """Whatever a test does, the console stays clean and no other host is asked."""
    with new_tab(browser) as made:
        yield made
        assert made.said == []
        assert len(made.asked) == 1, made.asked
