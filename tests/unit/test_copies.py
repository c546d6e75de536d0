"""The copy thread's order and answers, with scripted copies and a clock that is moved by hand."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
from lmkv.core.clock import ManualClock
from lmkv.core.messages import PullResult
from lmkv.core.steps import SKIPPED, Load, LoadChunk, LoadResult, Store
from lmkv.worker import copiers
from lmkv.worker.copiers import HostCopiers, Slot
from lmkv.worker.copies import Copies

if TYPE_CHECKING:
    from lmkv.worker.page_layout import PageLayout

DEADLINE = 60.0


class Script:
    """Copies whose every copy waits until `go`; `log` says what began, in order."""

    def __init__(self, at_once: int = 1, apart: bool = False) -> None:
        self.log: list[str] = []
        self.stored: list[tuple[int, bool]] = []
        self.go = threading.Event()
        self.fail: set[str] = set()
        self.good = 1
        self.clock = ManualClock()
        self.copies = Copies(
            self._load, self._stores, self._on_stored, 5.0, at_once, apart, self.clock
        )

    def _load(self, load: Load, after: object) -> LoadResult:
        self._copy(load.request)
        return LoadResult(self.good, PullResult.GOOD if self.good > 1 else PullResult.DIGEST)

    def _stores(
        self, stores: Sequence[tuple[Store, int]], after: object, fence: object
    ) -> list[bool]:
        behind = "" if after is None else f" after {after}"
        self._copy(f"store {', '.join(str(store.job) for store, _ in stores)}{behind}")
        return [True] * len(stores)

    def _copy(self, name: str) -> None:
        self.log.append(name)
        assert self.go.wait(DEADLINE)
        if name in self.fail:
            raise OSError("scripted")

    def _on_stored(self, store: Store, good: bool, seconds: float) -> None:
        self.stored.append((store.job, good))

    def until(self, condition) -> None:
        end = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < end, (self.log, self.stored)
            time.sleep(0.001)


@pytest.fixture
def script() -> Iterator[Script]:
    script = Script()
    yield script
    script.go.set()
    assert script.copies.stop(DEADLINE)


def a_load(name: str) -> Load:
    chunks = [LoadChunk(b"k", b"p", 1, [1, 2]), LoadChunk(b"k", b"p", 1, [3, SKIPPED])]
    return Load(name, chunks)


def a_store(job: int) -> Store:
    return Store(job, b"k", b"p", 1, [])


def test_loads_go_before_stores(script: Script) -> None:
    for job in (1, 2):
        script.copies.store(a_store(job), 0)
    script.copies.load(a_load("r"))
    script.go.set()
    script.copies.start()
    script.until(lambda: len(script.stored) == 2)
    assert script.log == ["r", "store 1", "store 2"]


def test_failed_blocks_are_told_after_their_load_and_not_before(script: Script) -> None:
    script.go.set()
    script.copies.start()
    script.copies.load(a_load("r"))
    script.until(lambda: script.copies._ended)
    assert script.copies.take_failed_blocks() == set()
    assert script.copies.take_loads()["r"].good == 1
    assert script.copies.take_failed_blocks() == {3}
    assert script.copies.take_failed_blocks() == set()


def test_a_load_that_waited_too_long_is_not_begun(script: Script) -> None:
    script.copies.load(a_load("r"))
    script.clock.advance(5.1)
    script.go.set()
    script.copies.start()
    script.until(lambda: script.copies._ended)
    assert script.copies.take_loads()["r"].result == PullResult.TIMEOUT
    assert script.copies.take_failed_blocks() == {1, 2, 3}
    assert script.log == []


def test_what_raises_is_answered_all_the_same(script: Script, caplog) -> None:
    script.fail = {"r", "s", "store 1"}
    script.go.set()
    script.copies.start()
    script.copies.load(a_load("r"))
    script.copies.load(a_load("s"))
    script.copies.store(a_store(1), 0)
    script.until(lambda: script.stored)
    assert {n: r.result for n, r in script.copies.take_loads().items()} == {
        "r": PullResult.MOVER_DOWN,
        "s": PullResult.MOVER_DOWN,
    }
    assert script.stored == [(1, False)]
    assert [r.message for r in caplog.records] == [
        "lmkv: a load failed; said once",
        "lmkv: a store failed; said once",
    ]


def test_stop_answers_for_what_is_queued(script: Script) -> None:
    script.copies.load(a_load("r"))
    script.copies.store(a_store(1), 0)
    assert script.copies.stop(DEADLINE)
    script.copies.store(a_store(2), 0)
    assert script.copies.take_loads()["r"].good == 0
    assert script.stored == [(1, False), (2, False)]
    script.copies.wait([1, 2], DEADLINE)


def test_wait_gives_up_what_has_not_begun(script: Script) -> None:
    for job in (1, 2):
        script.copies.store(a_store(job), 0)
    script.copies.wait([1], 0.0)
    assert script.stored == [(1, False)]
    script.go.set()
    script.copies.start()
    script.until(lambda: len(script.stored) == 2)
    assert script.log == ["store 2"]


def test_a_batch_of_stores_comes_after_the_last_ones_mark() -> None:
    script = Script(at_once=2)
    script.go.set()
    for job in (1, 2, 3):
        script.copies.store(a_store(job), 0, f"step {job}")
    script.copies.start()
    script.until(lambda: len(script.stored) == 3)
    assert script.log == ["store 1, 2 after step 2", "store 3 after step 3"]
    assert script.stored == [(1, True), (2, True), (3, True)]
    assert script.copies.stop(DEADLINE)


def test_apart_a_load_does_not_wait_for_a_store() -> None:
    script = Script(apart=True)
    script.copies.store(a_store(1), 0)
    script.copies.start()
    script.until(lambda: script.log == ["store 1"])
    script.copies.load(a_load("r"))
    script.until(lambda: script.log == ["store 1", "r"])
    script.go.set()
    script.until(lambda: script.copies._ended and script.stored)
    assert script.copies.stop(DEADLINE)


class Fence:
    ended = False

    def end(self) -> None:
        self.ended = True


def test_a_store_under_a_fence_is_not_waited_for_where_the_engine_comes_after_it() -> None:
    script, fence = Script(), Fence()
    script.copies._make_fence = lambda stores: fence
    held: list[object] = []

    def hold(of: object, seconds: float) -> bool:
        held.append(of)
        assert 0 < seconds <= 7.0
        return True

    script.copies.start()
    script.copies.store(a_store(1), 0)
    script.until(lambda: script.log)
    script.copies.wait([1], 7.0, hold)  # it goes on
    assert held == [fence] and not fence.ended and not script.stored
    script.go.set()
    script.until(lambda: script.stored == [(1, True)])
    assert fence.ended
    assert script.copies.stop(DEADLINE)


@pytest.mark.parametrize("why", ["it is not held", "there is no fence", "the fence failed"])
def test_else_it_is_waited_for_to_its_end(why: str) -> None:
    script = Script()

    def fence(stores: object) -> Fence | None:
        if why == "the fence failed":
            raise RuntimeError(why)
        return Fence() if why == "it is not held" else None

    script.copies._make_fence = fence
    script.copies.start()
    script.copies.store(a_store(1), 0)
    script.until(lambda: script.log or script.stored)
    waiting = threading.Thread(
        target=script.copies.wait, args=([1], 1e9, lambda fence, seconds: False)
    )
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive() == (why != "the fence failed")
    script.go.set()
    waiting.join(DEADLINE)
    assert not waiting.is_alive()
    script.until(lambda: script.stored == [(1, why != "the fence failed")])
    assert script.copies.stop(DEADLINE)


def test_one_that_has_not_begun_is_held_when_it_has() -> None:
    script = Script()
    script.copies._make_fence = lambda stores: Fence()
    script.copies.start()
    script.copies.store(a_store(1), 0)
    script.until(lambda: script.log)
    script.copies.store(a_store(2), 0)
    waiting = threading.Thread(
        target=script.copies.wait, args=([2], 1e9, lambda fence, seconds: True)
    )
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()  # the first one has its thread
    script.go.set()
    waiting.join(DEADLINE)
    assert not waiting.is_alive()
    script.until(lambda: len(script.stored) == 2)
    assert script.copies.stop(DEADLINE)


def test_what_decodes_has_ended_when_a_load_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks may be another request's from then on: nothing may be written to them later."""
    begun, log = threading.Event(), list[int]()

    class Copier:
        def scatter(self, address: int, *_: object) -> int:
            if address == 64:
                assert begun.wait(DEADLINE)
                raise MemoryError
            begun.set()
            time.sleep(0.05)
            log.append(address)
            return PullResult.GOOD

    monkeypatch.setattr(copiers, "DECODERS", 2)
    pages = SimpleNamespace(copier=Copier, slot=None)
    host = HostCopiers([cast("PageLayout", pages)])
    slots = [Slot(64 * n, bytes(16), n, [], room=4096) for n in range(1, 9)]
    with pytest.raises(MemoryError):
        host.scatter(0, slots)
    written = len(log)
    assert written >= 1
    assert host.scatter(0, slots[1:3]) == [PullResult.GOOD] * 2
    assert len(log) == written + 2  # what had not begun never does
