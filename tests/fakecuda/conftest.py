"""A fresh fake for each test, and its functions."""

from collections.abc import Iterator

import pytest

from tests.fakecuda import build
from tests.fakecuda.fake import FakeCuda
from tests.fakecuda.raw import Driver


@pytest.fixture
def fake() -> Iterator[FakeCuda]:
    if build.COMPILER is None:
        pytest.skip("no C++ compiler for the fake")
    with FakeCuda() as fake:
        yield fake


@pytest.fixture
def driver(fake: FakeCuda) -> Iterator[Driver]:
    """With the context of device 0 current; the test releases what it makes beside it."""
    driver = Driver(fake)
    driver.begin()
    yield driver
    if fake.live():
        driver.primary_release(0)
