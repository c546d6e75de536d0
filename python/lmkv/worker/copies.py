"""The worker's copy thread: loads first, then stores, each to its end.

`load()` and `store()` queue; `wait()` blocks until stores have ended or gives up those that have
not begun. Whatever happens in a copy, each load is answered once in `take_loads()` and each store
once by `on_stored`.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic

from lmkv.core.messages import PullResult
from lmkv.core.steps import SKIPPED, Load, LoadResult, Store

log = logging.getLogger("lmkv.worker")

CopyLoad = Callable[[Load], LoadResult]
CopyStore = Callable[[Store, int], bool]  # with the plan's epoch


class Copies:
    def __init__(
        self,
        copy_load: CopyLoad,
        copy_store: CopyStore,
        on_stored: Callable[[Store, bool, float], None],
        load_deadline: float,
    ) -> None:
        self._copy_load = copy_load
        self._copy_store = copy_store
        self._on_stored = on_stored
        self._load_deadline = load_deadline
        self._condition = threading.Condition()
        self._loads: deque[tuple[Load, float]] = deque()
        self._stores: deque[tuple[Store, int]] = deque()
        self._running = 0  # job of the store being copied
        self._ended: dict[str, LoadResult] = {}
        self._failed_blocks: set[int] = set()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="lmkv-copies", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, deadline: float) -> None:
        with self._condition:
            self._stopping = True
            self._condition.notify_all()
        if self._thread.is_alive():
            self._thread.join(deadline)

    # ------------------------------------------------------------ vLLM's thread

    def load(self, load: Load) -> None:
        with self._condition:
            self._loads.append((load, monotonic() + self._load_deadline))
            self._condition.notify_all()

    def store(self, store: Store, epoch: int) -> None:
        with self._condition:
            self._stores.append((store, epoch))
            self._condition.notify_all()

    def wait(self, jobs: list[int], deadline: float) -> None:
        """Until none of these stores reads a block any more. Those that have not begun after
        `deadline` seconds are given up; one that runs is waited for to its end."""
        wanted, end = set(jobs), monotonic() + deadline

        def pending() -> bool:
            return self._running in wanted or any(s.job in wanted for s, _ in self._stores)

        with self._condition:
            while pending() and (left := end - monotonic()) > 0:
                self._condition.wait(left)
            given_up = [entry for entry in self._stores if entry[0].job in wanted]
            for entry in given_up:
                self._stores.remove(entry)
            while self._running in wanted:
                self._condition.wait()
        for store, _ in given_up:
            self._on_stored(store, False, 0.0)

    def take_loads(self) -> dict[str, LoadResult]:
        with self._condition:
            ended, self._ended = self._ended, {}
            return ended

    def take_failed_blocks(self) -> set[int]:
        with self._condition:
            failed, self._failed_blocks = self._failed_blocks, set()
            return failed

    # ------------------------------------------------------------ the copy thread

    def _run(self) -> None:
        while True:
            with self._condition:
                while not (self._loads or self._stores or self._stopping):
                    self._condition.wait()
                if self._stopping:
                    return
                load = self._loads.popleft() if self._loads else None
                store = None if load else self._stores.popleft()
                self._running = store[0].job if store else 0
            if load:
                self._do_load(*load)
            elif store:
                self._do_store(*store)

    def _do_load(self, load: Load, begin_by: float) -> None:
        began = monotonic()
        if began > begin_by:
            result = LoadResult(0, PullResult.TIMEOUT)
        else:
            try:
                result = self._copy_load(load)
            except Exception:
                log.exception("lmkv: a load failed")
                result = LoadResult(0, PullResult.MOVER_DOWN)
        result.seconds = monotonic() - began
        failed = {b for chunk in load.chunks[result.good :] for b in chunk.blocks if b != SKIPPED}
        with self._condition:
            self._ended[load.request] = result
            self._failed_blocks |= failed

    def _do_store(self, store: Store, epoch: int) -> None:
        began = monotonic()
        try:
            good = self._copy_store(store, epoch)
        except Exception:
            log.exception("lmkv: a store failed")
            good = False
        with self._condition:
            self._running = 0
            self._condition.notify_all()
        self._on_stored(store, good, monotonic() - began)
