"""A target, driven by hypothesis: any bytes, and good inputs that are cut and changed."""

from __future__ import annotations

import random
import time

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS, seeds


@st.composite
def changed(draw: st.DrawFn, good: list[bytes]) -> bytes:
    data = bytearray(draw(st.sampled_from(good)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=6))
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


def run(name: str, examples: int, number: int) -> None:
    """Raises what the target raises, with the smallest input that hypothesis finds."""
    target = TARGETS[name]

    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.binary(max_size=300) | changed(seeds(name)))
    def any_bytes(data: bytes) -> None:
        target(data)

    any_bytes()


def run_for(name: str, seconds: float) -> str:
    end, tried = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        run(name, 500, random.getrandbits(32))
        tried += 500
    return f"{tried} inputs"
