"""What the tests of every folder share."""

import tempfile
from collections.abc import Iterator

import pytest


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
