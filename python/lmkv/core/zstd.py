"""The zstd library of compressed slots: load() -> its version, or a sentence on what to install.

It is the one inside Python's own module `_zstd` (3.14) or inside its backport, the package
`backports.zstd`, which is found and not imported; else the system's. The extension calls its C
functions, so that neither a load nor a mover needs Python for the bytes.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from lmkv import _native

INSTALL = "pip install backports.zstd"


class ZstdError(RuntimeError):
    """There is none; the text is for people."""


def load() -> str:
    """The version of the library that is loaded now. Raises ZstdError."""
    why = ""
    for path in _libraries():
        if version := _native.zstd_version():
            return version
        try:
            _native.load_zstd(path)
        except RuntimeError as error:
            why = why or f": {error}"
    if version := _native.zstd_version():
        return version
    raise ZstdError(
        f"no zstd library is found, so compressed chunks cannot be used{why}: {INSTALL}"
    )


def _libraries() -> Iterator[str]:
    backports = importlib.util.find_spec("backports")
    folders = list(backports.submodule_search_locations or ()) if backports else []
    for folder in folders:
        yield from map(str, sorted(Path(folder, "zstd").glob("_zstd.*.so")))
    built_in = importlib.util.find_spec("_zstd")
    if built_in is not None and built_in.origin and built_in.origin.endswith(".so"):
        yield built_in.origin
    yield "libzstd.so.1"
