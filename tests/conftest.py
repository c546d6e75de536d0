"""Sockets need short paths (108 bytes), shorter than pytest's temporary folders may be."""

import tempfile
from collections.abc import Iterator

import pytest


@pytest.fixture
def run_dir() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="lmkv-", dir="/tmp") as path:
        yield path
