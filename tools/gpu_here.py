"""Whether this machine has a GPU that tests can use, or why not, in a sentence.

`python -m tools.gpu_here` says it, and returns 1 then.
"""

from __future__ import annotations

import ctypes
import functools
import sys


def no_gpu(library: str = "libcuda.so.1") -> str | None:
    """Of the driver alone; None: there is one."""
    try:
        cuda = ctypes.CDLL(library)
    except OSError as error:
        return f"there is no CUDA driver: {error}"
    if (result := cuda.cuInit(0)) != 0:
        return f"the CUDA driver finds no GPU (cuInit returns {result})"
    count = ctypes.c_int()
    if cuda.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return "the CUDA driver has no GPU"
    return None


@functools.cache
def why_not() -> str | None:
    """None: this Python's torch can use a GPU."""
    if sentence := no_gpu():
        return sentence
    try:
        import torch
    except ImportError as error:
        return f"torch is missing: {error}"
    return None if torch.cuda.is_available() else f"torch {torch.__version__} finds no GPU"


if __name__ == "__main__":
    sys.exit(why_not())
