"""The requests that ended last, and why their tokens hit or missed: add() -> the command `why`.

A bounded ring. Names of requests stand in no metric and no log; here whoever may ask an instance
finds them.
"""

from __future__ import annotations

import threading
from collections import deque
from itertools import islice

from lmkv.agent.commands import Failed, Frames, number
from lmkv.agent.request import RequestState
from lmkv.core.clock import Clock, Deadline
from lmkv.core.messages import Command, WhyEntry, WhyResult

KEPT = 256
LAST = 20  # where no number is given
NAME = 128  # characters of a request's name that are kept


class Ended:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: deque[tuple[float, WhyEntry]] = deque(maxlen=KEPT)

    def add(self, state: RequestState) -> None:
        """Its tokens have been accounted for."""
        entry = WhyEntry(
            state.id[:NAME],
            state.prompt_tokens,
            sum(state.hits.values()),
            {cause: tokens for cause, tokens in state.hits.items() if tokens},
            {cause: tokens for cause, tokens in state.misses.items() if tokens},
            dict(state.brought),
            round(state.pull_seconds * 1000, 3),
            differs=state.differs,
            opted_out=state.opted_out[:NAME],
        )
        with self._lock:
            self._kept.append((self._clock(), entry))

    def why(self, command: Command, frames: Frames, until: Deadline) -> tuple[WhyResult, Frames]:
        last = number(command, "last", LAST, 1, KEPT)
        wanted, now = command.arguments.get("request", ""), self._clock()
        with self._lock:
            kept = list(reversed(self._kept))
        # vLLM gives a client's name an end of its own: `cmpl-NAME-0`.
        found = ((at, entry) for at, entry in kept if wanted in entry.request)
        entries = list(islice(found, last))
        if wanted and not entries:
            text = f"request {wanted!r}: it is not among the last {KEPT} that ended here"
            raise Failed("unknown_request", text, "request")
        for at, entry in entries:
            entry.age = now - at
        return WhyResult([entry for _, entry in entries], KEPT), []
