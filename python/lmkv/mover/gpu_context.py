"""`python -m lmkv.mover.gpu_context`: has a context on GPU 0 as it sees it, as a mover will, says
so, and ends when its standard input does. What that takes of the GPU's memory is the asker's to
see (worker/gpu_room.py)."""

from __future__ import annotations

import sys

from lmkv import _native

READY = "ready"


def main() -> None:
    _native.die_with_parent()
    try:
        _native.Gpu(0).memory()
    except RuntimeError as error:
        print(error, flush=True)
        return
    print(READY, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
