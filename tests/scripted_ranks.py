"""Workers without vLLM: the real copies, copier and pool around a numpy "KV cache".

One layer, one head, 16 bytes a token, which are a hash of the token, the bytes before it *in the
cache* (so that what is wrong stays wrong) and the weights. The copy thread is stepped: one `step()`
begins a copy, the next ends it, and whoever waits for it lets it go on.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
from lmkv import _native
from lmkv.core.messages import PullResult, Stored
from lmkv.core.steps import SKIPPED, Load, LoadResult
from lmkv.worker.copiers import HostCopiers, Slot
from lmkv.worker.copies import Copies
from lmkv.worker.loader import Loader
from lmkv.worker.worker import Worker, _no_stats

from tests.fake_links import BLOCK, CHUNK, World

TOKEN = 16  # bytes of KV
PER = CHUNK // BLOCK


def token_bytes(before: bytes, token: int, weights: int, rank: int) -> bytes:
    text = before + bytes([token, weights, rank])
    return hashlib.blake2b(text, digest_size=TOKEN).digest()


def oracle(tokens: list[int], weights: int, rank: int) -> bytes:
    """The KV of these tokens, one after the other."""
    kv, last = b"", b""
    for token in tokens:
        last = token_bytes(last, token, weights, rank)
        kv += last
    return kv


class Stepped:
    """A condition of one thread: to wait is to let the copy thread go on."""

    def __init__(self) -> None:
        self.turn: Callable[[float | None], None] = lambda timeout: None

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def notify_all(self) -> None:
        pass

    def wait(self, timeout: float | None = None) -> None:
        self.turn(timeout)


class Wrong(list[str]):
    """What went wrong in a rank; a copy that was scripted to fail did not."""

    def exception(self, what: str, error: Exception) -> None:
        if str(error) != "scripted":
            self.append(f"{what}: {error!r}")


class Failing(HostCopiers):
    """Copiers whose next gather or scatter fails when the rank says so."""

    def __init__(self, rank: Rank) -> None:
        super().__init__(rank._pages)
        self._rank = rank

    def gather(self, *arguments: Any) -> None:
        if "gather" in self._rank.fails:
            self._rank.fails.discard("gather")
            raise OSError("scripted")
        super().gather(*arguments)

    def scatter(self, group: int, slots: Sequence[Slot], *more: Any) -> list[int]:
        if "scatter" in self._rank.fails:
            self._rank.fails.discard("scatter")
            half = [b for slot in slots for b in slot.blocks if b != SKIPPED]
            self._rank.kv[half] ^= 0xFF  # half written
            return [PullResult.DIGEST] * len(slots)
        return super().scatter(group, slots, *more)


class Rank(Worker):
    """A worker whose copy thread is stepped: begun by one `step()`, ended by the next."""

    def __init__(self, rank: int, blocks: int, world: World) -> None:
        self._rank, self.world = rank, world
        self.kv = np.zeros((blocks, BLOCK * TOKEN), np.uint8)
        pages = _native.Pages([self.kv.ctypes.data], blocks, 1, 1, BLOCK * TOKEN, BLOCK * TOKEN, 0)
        layout = _native.SlotLayout(1, pages.segment_bytes(PER), 2, 0xABC)
        slots = world.agent.table.capacity
        self.pool = _native.Pool(layout.granule_bytes, slots, slots)
        self.pool.add_segment()
        copier = _native.Copier(layout, pages, PER)
        self._pages = [SimpleNamespace(slot=layout, copier=lambda: copier)]  # type: ignore[list-item]
        self._copiers = Failing(self)
        self._config: Any = SimpleNamespace(audit_every=0, copy_deadline=10.0)
        self._copies = Copies(
            self._copy_load, self._copy_stores, self._stored, 10.0, clock=world.clock
        )
        self._condition = self._copies._condition = Stepped()  # type: ignore[assignment]
        self._condition.turn = self._while_waited_for
        self._control: Any = SimpleNamespace(report=self._report)
        self._lock, self._gathers = Stepped(), 0  # type: ignore[assignment]
        self._once = self._copies._once = self.wrong = Wrong()  # type: ignore[assignment]
        self._before = None
        unused: Any = None
        self._loader = Loader(self.pool, unused, self._pages, unused, self._copiers, self._once)
        self._stats = _no_stats()
        self.copy: partial[None] | None = None  # the one under way
        self.hangs = False  # no copy begins or ends while it is waited for with a deadline
        self.fails: set[str] = set()  # "gather" or "scatter": the next one does
        self.answers: Counter[int] = Counter()  # by job

    def step(self) -> None:
        if self.copy is not None:
            copy, self.copy = self.copy, None
            copy()
        elif self._copies._loads or self._copies._stores:
            self.copy = self._copies._next(True, True)  # type: ignore[assignment]

    def busy(self) -> bool:
        return bool(self.copy or self._copies._loads or self._copies._stores or self._copies._ended)

    def _while_waited_for(self, timeout: float | None) -> None:
        if self.hangs and timeout is not None:
            self.world.clock.advance(timeout)
        else:
            self.step()

    def reading(self) -> set[int]:
        """Blocks that a store has yet to read."""
        queued = [store for store, _, _ in self._copies._stores]
        if self.copy is not None and isinstance(self.copy.args[0], list):
            queued += [store for store, _, _ in self.copy.args[0]]
        return {block for store in queued for block in store.blocks}

    def write(self, block: int, at: int, data: bytes) -> None:
        assert block not in self.reading(), f"block {block} is overwritten before its gather"
        self.kv[block, at : at + len(data)] = np.frombuffer(data, np.uint8)

    def token(self, blocks: list[int], position: int) -> bytes:
        at = position % BLOCK * TOKEN
        return self.kv[blocks[position // BLOCK], at : at + TOKEN].tobytes()

    def payload(self, place: bytes) -> bytes:
        at = self.pool.slot_address(place) + self._pages[0].slot.payload_offset
        return ctypes.string_at(at, CHUNK * TOKEN)

    def _copy_load(self, load: Load, after: Any) -> LoadResult:
        written = {b for chunk in load.chunks for b in chunk.blocks if b != SKIPPED}
        assert not written & self.reading(), "a load overwrites blocks before their gather"
        return super()._copy_load(load, after)

    def _report(self, job: int, message: Stored, *frames: bytes) -> None:
        self.answers[job] += 1
        self.world.at(f"ipc://worker{self._rank}").say(message, *frames)
