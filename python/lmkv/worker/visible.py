"""Of the GPUs of a machine, the one that a process of the worker's is to see."""

from __future__ import annotations

import os
from collections.abc import Mapping

VISIBLE = "CUDA_VISIBLE_DEVICES"


def one_gpu(ordinal: int, base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What to set: GPU `ordinal` of those that are seen here is GPU 0 there."""
    listed = [name for name in base.get(VISIBLE, "").split(",") if name]
    return {VISIBLE: listed[ordinal] if listed else str(ordinal)}
