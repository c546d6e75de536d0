"""Where the controllers are: configured addresses, and what the names among them stand for.

`tcp://HOST:PORT` is one controller. `dns+tcp://NAME:PORT` is one at each A and AAAA record of NAME,
looked up again every few seconds. A lookup may take as long as the system's resolver likes, so it
runs in a thread of its own, one at a time; `turn()` returns at once with what is known.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence

from lmkv.core.config import NAMES, split_address
from lmkv.core.records import records

log = logging.getLogger("lmkv.agent")

AGAIN = 5.0  # seconds between two lookups
MOST = 16  # controllers of one name

Lookup = Callable[[str, int], list[str]]  # name, port -> addresses; OSError


def in_a_thread(job: Callable[[], None]) -> None:
    threading.Thread(target=job, name="lmkv-names", daemon=True).start()


class Addresses:
    """`run` runs a lookup, and may return before its end."""

    def __init__(
        self,
        configured: Sequence[str],
        clock: Callable[[], float],
        lookup: Lookup = records,
        run: Callable[[Callable[[], None]], None] = in_a_thread,
    ) -> None:
        self._configured = configured
        self._clock = clock
        self._lookup = lookup
        self._run = run
        self._names = [a for a in configured if a.startswith(NAMES)]
        self._known: dict[str, list[str]] = {}
        self._said: dict[str, str] = {}  # name -> why it was not found
        self._found: queue.SimpleQueue[dict[str, list[str] | OSError]] = queue.SimpleQueue()
        self._running = False
        self._next = clock()

    def turn(self) -> list[str]:
        """The addresses now, each once, in the order of the configuration."""
        while not self._found.empty():
            self._running = False
            self._next = self._clock() + AGAIN
            self._take(self._found.get())
        if self._names and not self._running and self._clock() >= self._next:
            self._running = True
            self._run(self._look)
        now: dict[str, None] = {}
        for address in self._configured:
            now.update(dict.fromkeys(self._known.get(address, [])))
            if address not in self._names:
                now[address] = None
        return list(now)

    def _look(self) -> None:
        """In another thread: touches nothing but the queue."""
        self._found.put({address: self._addresses(address) for address in self._names})

    def _addresses(self, address: str) -> list[str] | OSError:
        try:
            return self._lookup(*split_address(address.removeprefix(NAMES)))
        except (OSError, UnicodeError) as error:
            return OSError(str(error))

    def _take(self, found: dict[str, list[str] | OSError]) -> None:
        """What was known of a name stays while it is not found."""
        for address, result in found.items():
            if isinstance(result, OSError):
                if self._said.get(address) != str(result):
                    self._said[address] = str(result)
                    log.warning("lmkv: %s has no address: %s", address, result)
                continue
            self._said.pop(address, None)
            if len(result) > MOST:
                log.warning(
                    "lmkv: %s has %d addresses: the first %d are used", address, len(result), MOST
                )
            self._known[address] = result[:MOST]
