"""What the tests of the web process share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.web import Web


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    """Instances only come to it and leave in order; dead is who was silent for minutes."""
    from tests.web import Web

    running = Web("--dead-after-beats", "1000", "--suspect-after-beats", "999")
    running.up()
    yield running
    assert running.end() == (0, "")
