"""What an agent hears and cannot believe: each is counted, and each kind of it is one line.

The senders are a controller, a peer by way of one, or this instance's own workers and movers; none
of them may fill a log, so a sentence is said once, whatever its numbers are, but for audits.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable

from lmkv.agent.stats import Stats
from lmkv.core.causes import ALARMS

log = logging.getLogger("lmkv.agent")

SENTENCES = 1024  # that are remembered; beyond them only the count goes on

Refuse = Callable[[str, str], None]  # kind of alarm, sentence


def ignore(kind: str, sentence: str) -> None:
    """For parts that are used without an agent."""


class Refusals:
    """Thread-safe."""

    def __init__(self, stats: Stats) -> None:
        self._stats = stats
        self._lock = threading.Lock()
        self._said: set[str] = set()

    def __call__(self, kind: str, sentence: str) -> None:
        self._stats.alarm(kind if kind in ALARMS else "message")
        without_numbers = re.sub(r"\b(0x)?[0-9a-f]*\d[0-9a-f]*\b", "n", sentence)[:256]
        with self._lock:
            known = without_numbers in self._said or len(self._said) >= SENTENCES
            if not known:
                self._said.add(without_numbers)
        if kind == "audit":  # rare by nature, and each one counts
            log.error("lmkv: %s: %s", kind, sentence)
        elif not known:
            log.warning("lmkv: %s: %s; said once", kind, sentence[:1000])
