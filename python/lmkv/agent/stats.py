"""What an instance counts: tokens by cause, pulls, alarms. Taken by steps, told in heartbeats."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any


class Stats:
    """Thread-safe counters: `take()` gives each count once, `totals()` tokens since the start."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = _empty()
        self._totals: dict[str, Counter[str]] = {"hit": Counter(), "miss": Counter()}

    def tokens(self, cause: str, tokens: int) -> None:
        if tokens <= 0:
            return
        kind = "hit" if cause.startswith("hit_") else "miss"
        with self._lock:
            self._counts[kind][cause] += tokens
            self._totals[kind][cause] += tokens

    def pull(self, seconds: float, pulled: int) -> None:
        with self._lock:
            self._counts["pull_seconds"].append(seconds)
            self._counts["pull_bytes"] += pulled

    def alarm(self, kind: str) -> None:
        with self._lock:
            self._counts["alarms"][kind] += 1

    def totals(self) -> dict[str, Counter[str]]:
        """`hit` and `miss` tokens by cause."""
        with self._lock:
            return {kind: counts.copy() for kind, counts in self._totals.items()}

    def take(self) -> dict[str, Any]:
        """Counts since the last call; empty dict when there are none."""
        with self._lock:
            taken, self._counts = self._counts, _empty()
        if not (taken["hit"] or taken["miss"] or taken["pull_seconds"] or taken["alarms"]):
            return {}
        return {**taken, **{kind: dict(taken[kind]) for kind in ("hit", "miss", "alarms")}}


def _empty() -> dict[str, Any]:
    counted = {"hit": Counter[str](), "miss": Counter[str](), "alarms": Counter[str]()}
    return {**counted, "pull_seconds": [], "pull_bytes": 0}
