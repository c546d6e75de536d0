"""What the tests of every folder share."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.gpu.cards import FakeCards, OnFake, OnReal, RealCards


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with a slow test first: where files run side by side, none is waited for at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """What was imported stays: tests that collect garbage need not look at all of it each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def run_dir() -> Iterator[str]:
    """For sockets: their paths (108 bytes) are shorter than pytest's temporary folders may be."""
    with tempfile.TemporaryDirectory(prefix="lmkv-", dir="/tmp") as path:
        yield path


@pytest.fixture(autouse=True)
def nixl(request: pytest.FixtureRequest) -> None:
    """What is marked `nixl` is skipped, with the reason, where that library is not; a test of just
    that takes `without_nixl`."""
    if request.node.get_closest_marker("nixl") is None or "without_nixl" in request.fixturenames:
        return
    from lmkv.mover.transport import NixlError, find_library

    try:
        find_library()
    except NixlError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def real_cards() -> RealCards:
    """tests/gpu/cards.py"""
    from tests.gpu.cards import RealCards
    from tools.gpu_here import why_not

    if why := why_not():
        pytest.skip(why)
    return RealCards()


@pytest.fixture(scope="session", params=["fake", pytest.param("real", marks=pytest.mark.gpu)])
def cards(request: pytest.FixtureRequest) -> FakeCards | RealCards:
    from tests.fakecuda.build import COMPILER
    from tests.gpu.cards import FakeCards

    if request.param == "real":
        return request.getfixturevalue("real_cards")
    if COMPILER is None:
        pytest.skip("no C++ compiler for the fake driver")
    return FakeCards()


@pytest.fixture
def device(cards: FakeCards | RealCards) -> Iterator[OnFake | OnReal]:
    with cards.fresh() as device:
        yield device
