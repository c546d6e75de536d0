"""What an instance counts, by the keys of `core/metrics.py`. Taken by steps, told in heartbeats.

A count is a number, or by labels: `{"pull_bytes": 512, "hit_tokens": {"hit_peer": 256}}`; observed
values, of histograms, are lists. Plain data: vLLM carries it between processes.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from typing import Any

from lmkv.core.clock import Clock, monotonic
from lmkv.core.metrics import AGES
from lmkv.core.peer_labels import PeerLabels

KEPT = 1024  # observed values between two steps; of more, the last ones


class Stats:
    """Thread-safe counters: `take()` gives each count once, `totals()` tokens since the start."""

    def __init__(self, clock: Clock = monotonic) -> None:
        self._lock = threading.Lock()
        self._peers = PeerLabels(clock)
        self._peer_bytes: Counter[str] = Counter()
        self._counts = _none()
        self._observed: dict[str, deque[float]] = {}
        self._totals: dict[str, Counter[str]] = {"hit": Counter(), "miss": Counter()}
        self._ages = [0] * (len(AGES) + 1)  # slots retired for room, by age
        self._age_sum = 0.0

    def count(self, key: str, *labels: str, by: float = 1) -> None:
        names = (key, *labels)
        with self._lock:
            self._counts[names] += by

    def observe(self, key: str, value: float) -> None:
        with self._lock:
            self._observed.setdefault(key, deque(maxlen=KEPT)).append(value)

    def tokens(self, cause: str, tokens: int, peer: str = "") -> None:
        """`peer`: who brought them, or had announced what was then computed."""
        if tokens <= 0:
            return
        kind = "hit" if cause.startswith("hit_") else "miss"
        with self._lock:
            self._totals[kind][cause] += tokens
            self._counts[f"{kind}_tokens", cause] += tokens
            if peer:
                self._counts[f"peer_{kind}_tokens", peer, cause] += tokens

    def pull(self, peer: str, seconds: float, pulled: int) -> None:
        """One that brought something."""
        self.observe("pull_seconds", seconds)
        if seconds > 0:
            self.observe("pull_bytes_per_second", pulled / seconds)
        self.count("pull_bytes", by=pulled)
        self.count("peer_pull_bytes", peer, by=pulled)
        self.count("peer_pull_seconds", peer, by=seconds)
        self.came(peer, pulled)

    def came(self, peer: str, size: int) -> None:
        """Bytes from a peer's memory, pulled or mapped."""
        with self._lock:
            self._peer_bytes[self._peers.of(peer)] += size
            for label in self._peers.take_gone():
                self._peer_bytes.pop(label, None)

    def retired(self, ages: Sequence[float]) -> None:
        """Slots of these ages, in seconds, were retired for room."""
        for age in ages:
            self.observe("retired_age_seconds", age)
        with self._lock:
            for age in ages:
                self._ages[bisect_left(AGES, age)] += 1
            self._age_sum += sum(ages)

    def ages(self) -> tuple[list[int], float]:
        """Slots retired for room since the start, by age, and the sum of their ages."""
        with self._lock:
            return list(self._ages), self._age_sum

    def alarm(self, kind: str) -> None:
        self.count("alarms", kind)

    def totals(self) -> dict[str, Counter[str]]:
        """`hit` and `miss` tokens by cause."""
        with self._lock:
            return {kind: counts.copy() for kind, counts in self._totals.items()}

    def peer_bytes(self) -> Counter[str]:
        """Bytes that came since the start, by peer; of those that brought some lately."""
        with self._lock:
            return self._peer_bytes.copy()

    def take(self) -> dict[str, Any]:
        """Counts since the last call; empty dict when there are none."""
        with self._lock:
            counts, self._counts = self._counts, _none()
            observed, self._observed = self._observed, {}
        taken: dict[str, Any] = {key: list(values) for key, values in observed.items()}
        for (key, *labels), amount in counts.items():
            at, names = taken, [key, *labels]
            for name in names[:-1]:
                at = at.setdefault(name, {})
            at[names[-1]] = amount
        return taken


def _none() -> defaultdict[tuple[str, ...], float]:
    """Counts by key and labels."""
    return defaultdict(int)
