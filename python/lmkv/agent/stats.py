"""What an instance counts: tokens by cause, pulls, room. Taken by steps and heartbeats."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any


class Stats:
    """Thread-safe counters with two readers, each of which sees every count once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readers: dict[str, dict[str, Any]] = {"vllm": _empty(), "controller": _empty()}

    def tokens(self, cause: str, tokens: int) -> None:
        if tokens <= 0:
            return
        kind = "hit" if cause.startswith("hit_") else "miss"
        with self._lock:
            for reader in self._readers.values():
                reader[kind][cause] += tokens

    def pull(self, seconds: float, pulled: int) -> None:
        with self._lock:
            for reader in self._readers.values():
                reader["pull_seconds"].append(seconds)
                reader["pull_bytes"] += pulled

    def take(self, reader: str) -> dict[str, Any]:
        """Counts since this reader's last call; empty dict when there are none."""
        with self._lock:
            taken, self._readers[reader] = self._readers[reader], _empty()
        if not (taken["hit"] or taken["miss"] or taken["pull_seconds"]):
            return {}
        return {**taken, "hit": dict(taken["hit"]), "miss": dict(taken["miss"])}


def _empty() -> dict[str, Any]:
    return {"hit": Counter(), "miss": Counter(), "pull_seconds": [], "pull_bytes": 0}
