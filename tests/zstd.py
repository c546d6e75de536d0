"""Python's own zstd, an oracle for the extension's use of the C library."""

import sys
from typing import Any


def decompress(data: bytes) -> bytes:
    module: Any
    if sys.version_info >= (3, 14):
        from compression import zstd as module
    else:
        from backports import zstd as module
    return bytes(module.decompress(data))
