"""The worker's copy threads: loads first, then stores, each to its end; or a thread for each, where
copies wait for a GPU.

`load()` and `store()` queue; `wait()` blocks until stores have ended, or the engine's own work
comes after what they read (a fence, of copies on a GPU), or gives up those that have not begun.
`after` is what the copiers' mark() has given: the engine's work that a copy comes after. Whatever
happens in a copy, each load is answered once in `take_loads()` and each store once by `on_stored`;
`stop()` answers for what is still queued. The blocks that a load did not fill are told after the
load itself: vLLM must not hear of them a step early.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from lmkv.core.clock import Clock, monotonic
from lmkv.core.messages import PullResult
from lmkv.core.steps import SKIPPED, Load, LoadResult, Store
from lmkv.worker.affinity import unpin

log = logging.getLogger("lmkv.worker")

CopyLoad = Callable[[Load, Any], LoadResult]
Stores = Sequence[tuple[Store, int]]  # with their epochs
CopyStores = Callable[[Stores, Any, Any], Sequence[bool]]


class Once:
    """Logs the first exception of a kind: what fails at each step must not fill a disk."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def exception(self, what: str, error: Exception) -> None:
        kind = f"{what}: {type(error).__name__}"
        if kind not in self._said:
            self._said.add(kind)
            log.error("lmkv: %s; said once", what, exc_info=error)


class Copies:
    """`on_stored(store, good, seconds)` is called from a copy thread, or from `wait` and `stop`
    for stores that were given up. `copy_stores` gets `stores_at_once` at most; `apart`: stores have
    a thread of their own."""

    def __init__(
        self,
        copy_load: CopyLoad,
        copy_stores: CopyStores,
        on_stored: Callable[[Store, bool, float], None],
        load_deadline: float,
        stores_at_once: int = 1,
        apart: bool = False,
        clock: Clock = monotonic,
        fence: Callable[[Stores], Any] = lambda stores: None,
    ) -> None:
        """`fence(stores)`, by the copy thread, is what `copy_stores` gets of them and `wait` may be
        held by; None: it waits to their end."""
        self._make_fence = fence
        self._fence: Any = None  # of the stores that are being copied, once it is there
        self._copy_load = copy_load
        self._copy_stores = copy_stores
        self._on_stored = on_stored
        self._load_deadline = load_deadline
        self._stores_at_once = stores_at_once
        self._clock = clock
        self._once = Once()
        self._condition = threading.Condition()
        self._loads: deque[tuple[Load, Any, float]] = deque()
        self._stores: deque[tuple[Store, int, Any]] = deque()
        self._running: set[int] = set()  # jobs of the stores being copied
        self._begins = False  # whether they have a fence is not known yet
        self._ended: dict[str, LoadResult] = {}
        self._unfilled: dict[str, set[int]] = {}  # blocks of loads that ended, not yet told
        self._failed_blocks: set[int] = set()  # of loads that were told
        self._stopping = False
        which = ((True, False), (False, True)) if apart else ((True, True),)
        self._threads = [
            threading.Thread(target=self._run, args=both, name="lmkv-copies", daemon=True)
            for both in which
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self, deadline: float) -> bool:
        """Ends after the copies under way; False if one takes longer than `deadline` seconds."""
        with self._condition:
            self._stopping = True
            loads, stores = list(self._loads), list(self._stores)
            self._loads.clear()
            self._stores.clear()
            self._condition.notify_all()
        for load, _, _ in loads:
            self._end_load(load, LoadResult(0, PullResult.MOVER_DOWN))
        self._give_up([store for store, _, _ in stores])
        for thread in self._threads:
            if thread.is_alive():
                thread.join(deadline)
        return not any(thread.is_alive() for thread in self._threads)

    # ------------------------------------------------------------ vLLM's thread

    def load(self, load: Load, after: Any = None) -> None:
        with self._condition:
            if not self._stopping:
                self._loads.append((load, after, self._clock() + self._load_deadline))
                self._condition.notify_all()
                return
        self._end_load(load, LoadResult(0, PullResult.MOVER_DOWN))

    def store(self, store: Store, epoch: int, after: Any = None) -> None:
        with self._condition:
            if not self._stopping:
                self._stores.append((store, epoch, after))
                self._condition.notify_all()
                return
        self._give_up([store])

    def wait(
        self,
        jobs: list[int],
        deadline: float,
        hold: Callable[[Any, float], bool] = lambda fence, seconds: False,
    ) -> None:
        """Until none of these stores reads a block any more, or, where `hold(fence, seconds)` says
        so, the engine's work comes after that. Those that have not begun after `deadline` seconds
        are given up; one that runs is waited for to its end, always: its slot would be sealed over
        bytes of another request."""
        wanted, end = set(jobs), self._clock() + deadline
        tried: set[int] = set()
        while (running := self._fenced(wanted, tried, end)) is not None:
            fence, under_it = running
            tried |= under_it
            if hold(fence, end - self._clock()):
                wanted -= under_it

        def pending() -> bool:
            return bool(self._running & wanted) or any(e[0].job in wanted for e in self._stores)

        with self._condition:
            while pending() and (left := end - self._clock()) > 0:
                self._condition.wait(left)
            given_up = [store for store, _, _ in self._stores if store.job in wanted]
            if given_up:
                self._stores = deque(e for e in self._stores if e[0].job not in wanted)
            while self._running & wanted:
                self._condition.wait()
        self._give_up(given_up)

    def _fenced(self, wanted: set[int], tried: set[int], end: float) -> tuple[Any, set[int]] | None:
        """The fence of wanted stores that run, and which these are; None: there is none to come, or
        it is late."""

        def here() -> bool:
            return self._fence is not None and bool(self._running & wanted - tried)

        def to_come() -> bool:
            begin = self._running & wanted - tried and self._begins
            return bool(begin) or any(e[0].job in wanted for e in self._stores)

        with self._condition:
            while not here() and to_come() and (left := end - self._clock()) > 0:
                self._condition.wait(left)
            return (self._fence, set(self._running)) if here() else None

    def take_loads(self) -> dict[str, LoadResult]:
        with self._condition:
            ended, self._ended = self._ended, {}
            self._failed_blocks = self._failed_blocks.union(*self._unfilled.values())
            self._unfilled = {}
            return ended

    def take_failed_blocks(self) -> set[int]:
        """Blocks that the loads which `take_loads` has told did not fill."""
        with self._condition:
            failed, self._failed_blocks = self._failed_blocks, set()
            return failed

    # ------------------------------------------------------------ the copy threads

    def _run(self, loads: bool, stores: bool) -> None:
        unpin()
        while (copy := self._next(loads, stores)) is not None:
            copy()

    def _next(self, loads: bool, stores: bool) -> Callable[[], None] | None:
        """Begins a copy: what is returned carries it out. None: stop."""
        with self._condition:
            while not (self._stopping or (loads and self._loads) or (stores and self._stores)):
                self._condition.wait()
            if self._stopping:
                return None
            if loads and self._loads:
                return partial(self._do_load, *self._loads.popleft())
            count = min(self._stores_at_once, len(self._stores))
            batch = [self._stores.popleft() for _ in range(count)]
            self._running, self._begins = {store.job for store, _, _ in batch}, True
            return partial(self._do_stores, batch)

    def _do_load(self, load: Load, after: Any, begin_by: float) -> None:
        began = self._clock()
        if began > begin_by:
            result = LoadResult(0, PullResult.TIMEOUT)
        else:
            try:
                result = self._copy_load(load, after)
            except Exception as error:
                self._once.exception("a load failed", error)
                result = LoadResult(0, PullResult.MOVER_DOWN)
        result.seconds = self._clock() - began
        self._end_load(load, result)

    def _end_load(self, load: Load, result: LoadResult) -> None:
        failed = {b for chunk in load.chunks[result.good :] for b in chunk.blocks if b != SKIPPED}
        with self._condition:
            self._ended[load.request] = result
            self._unfilled[load.request] = failed

    def _do_stores(self, batch: list[tuple[Store, int, Any]]) -> None:
        began = self._clock()
        after = batch[-1][2]  # the engine's work is in order: the last comes after all
        stores = [(store, epoch) for store, epoch, _ in batch]
        fence = None
        try:
            fence = self._make_fence(stores)
            self._begun(fence)
            good = self._copy_stores(stores, after, fence)
        except Exception as error:
            self._once.exception("a store failed", error)
            good = [False] * len(batch)
        if fence is not None:
            fence.end()
        with self._condition:
            self._running, self._begins, self._fence = set(), False, None
            self._condition.notify_all()
        each = (self._clock() - began) / len(batch)
        for (store, _, _), well in zip(batch, good, strict=True):
            self._answer(store, well, each)

    def _begun(self, fence: Any) -> None:
        with self._condition:
            self._begins, self._fence = False, fence
            self._condition.notify_all()

    def _give_up(self, stores: list[Store]) -> None:
        for store in stores:
            self._answer(store, False, 0.0)

    def _answer(self, store: Store, good: bool, seconds: float) -> None:
        try:
            self._on_stored(store, good, seconds)
        except Exception as error:  # the thread must live on
            self._once.exception("a store cannot be reported", error)
