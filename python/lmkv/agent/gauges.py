"""How an instance stands, for its gauges: looked at once a second, by whoever takes its stats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lmkv import _native
from lmkv.agent.jobs import Jobs
from lmkv.agent.locator import Locator
from lmkv.agent.pins import Pins
from lmkv.agent.pulls import Pulls
from lmkv.agent.rates import Rates
from lmkv.agent.streams import Streams

EVERY = 1.0  # seconds


class Gauges:
    """By the keys of `core/metrics.py`. For the scheduler thread."""

    def __init__(
        self,
        instance: str,
        table: _native.SlotTable,
        streams: Streams,
        locator: Locator,
        pulls: Pulls,
        rates: Rates,
        pins: Pins,
        jobs: Jobs,
        clock: Callable[[], float],
    ) -> None:
        self._instance = instance
        self._table = table
        self._streams = streams
        self._locator = locator
        self._pulls = pulls
        self._rates = rates
        self._pins = pins
        self._jobs = jobs
        self._clock = clock
        self._next = float("-inf")

    def take(self) -> dict[str, Any]:
        """Empty while the last ones are young."""
        if self._clock() < self._next:
            return {}
        self._next = self._clock() + EVERY
        return {
            "instance_info": {self._instance: 1},
            "pool_granules": self._table.granules(),
            "open_pulls": self._pulls.open,
            "avoided_peers": len(self._locator.avoided()),
            "prefill_tokens_per_second": self._rates.prefill.rate or 0.0,
            "pins": len(self._pins),
            "pinned_granules": self._pins.granules,
            "jobs": self._jobs.states(),
            **self._streams.gauges(),
        }
