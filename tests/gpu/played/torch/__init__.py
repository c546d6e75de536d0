"""torch as a machine with a card has it, played: the real one, built for CPUs, whose "cuda:0" is
the fake driver's device (found as libcuda.so.1). Only what tests/gpu asks of it.

Put this folder's parent on PYTHONPATH; `import torch` then gives the real module with these in it.
Tensors are computed with at once and not in a stream's order; only what sleeps is in it.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PLAYED = str(Path(__file__).resolve().parents[1])
CARD = "cuda:0"
CYCLES_A_SECOND = 2e9
DEADLINE = 30.0

_at = sys.path.index(PLAYED)
del sys.path[_at], sys.modules["torch"]
import torch as real  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

sys.path.insert(_at, PLAYED)

from tests.fakecuda.fake import FakeCuda  # noqa: E402
from tests.fakecuda.raw import Driver, RealCuda  # noqa: E402

fake, driver = FakeCuda(), Driver(RealCuda())
driver.begin()


def on_card(tensor: real.Tensor) -> real.Tensor:
    fake.adopt(tensor)
    return tensor


def zeros(*shape: int, device: str = "cpu", make: Any = real.zeros) -> real.Tensor:
    return on_card(make(*shape)) if device == CARD else make(*shape, device=device)


def to(tensor: real.Tensor, device: str) -> real.Tensor:
    assert device == CARD, device
    return on_card(tensor.clone())


class Stream:
    def __init__(self, handle: int | None = None) -> None:
        self.cuda_stream = driver.stream() if handle is None else handle


streams = [Stream(0)]


@contextmanager
def stream(one: Stream) -> Iterator[None]:
    streams.append(one)
    try:
        yield
    finally:
        streams.pop()


def synchronize() -> None:
    assert fake.drain(DEADLINE), "the card's work does not end"


def sleep(cycles: int) -> None:
    seconds = cycles / CYCLES_A_SECOND
    driver.call(streams[-1].cuda_stream, lambda: time.sleep(seconds))


class CUDAGraph:
    def __init__(self) -> None:
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def replay(self) -> None:
        for function, arguments, more in self.calls:
            function(*arguments, **more)


class Capture(TorchDispatchMode):
    """Of operations in place: they are kept, and not done."""

    def __init__(self, calls: list[Any]) -> None:
        super().__init__()
        self.calls = calls

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.calls.append((function, args, kwargs or {}))
        return args[0]


@contextmanager
def graph(cuda_graph: CUDAGraph) -> Iterator[None]:
    """What disturbs a capture, as torch makes it, is refused while it is made."""
    synchronize()
    fake.set(capturing=1)
    try:
        with Capture(cuda_graph.calls):
            yield
    finally:
        fake.set(capturing=0)


def complain() -> None:
    if wrong := fake.complaints():
        print("\n".join(wrong), file=sys.stderr, flush=True)
        os._exit(1)


atexit.register(complain)
real.zeros, real.Tensor.to = zeros, to
for name, value in {
    "is_available": lambda: True,
    "synchronize": synchronize,
    "current_stream": lambda: streams[-1],
    "_sleep": sleep,
    **{each.__name__: each for each in (Stream, stream, CUDAGraph, graph)},
}.items():
    assert hasattr(real.cuda, name), name
    setattr(real.cuda, name, value)
