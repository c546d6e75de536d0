"""Where lmkv's threads and movers run.

vLLM pins a CPU worker to the cores of its OpenMP threads, and the worker's main thread spins there
while a load is awaited. Threads and children inherit that; copies on a spinning core take twice as
long, so they go where the process that started the worker may run.
"""

from __future__ import annotations

import os
from contextlib import suppress


def unpin() -> None:
    """Let the calling thread, and what it starts, use the cores of the parent process."""
    with suppress(OSError):  # the parent has just ended, or the system does not allow it
        os.sched_setaffinity(0, os.sched_getaffinity(os.getppid()))
