"""Limbo with real movers: what a woken peer still writes never lands in a slot that is in use.

The holder's mover is stopped while it is being read, and the READ times out; its slots are in limbo
in the reader's slot table. Requests that want room get none of them; the bytes of every slot that
is in use are watched while the peer wakes up and the rest of the READ lands.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from lmkv import _native
from lmkv.agent.links import Link
from lmkv.agent.pulls import Job, Pulls
from lmkv.core.messages import Attach, Ping, PullResult
from mover_instance import (
    SEGMENT_SLOTS,
    SLOTS,
    TEXT,
    Instance,
    alive,
    counters,
    key,
    payload,
    place,
    stop,
)

GOOD, TIMEOUT = PullResult.GOOD, PullResult.TIMEOUT
CHUNKS = 8  # that the holder has
NOBODY = 1000  # chunks from here on are only the reader's
DEADLINE = 60.0
pytestmark = pytest.mark.nixl


class Reader:
    """Instance b and its agent's part: slot table, pulls, and the links to its movers."""

    def __init__(self, run_dir: str, **settings: object) -> None:
        limits = {"limbo_seconds": 60.0, "limbo_share": 0.5, **settings}
        self.instance = Instance("b", run_dir, **limits)
        self.table = _native.SlotTable(SLOTS, SEGMENT_SLOTS)
        self.table.grow(SLOTS)
        self.ended: list[Job] = []
        self.pulls = Pulls(
            self.table,
            [[self.instance.layout.fingerprint]],
            Link,
            time.monotonic,
            self.ended.append,
            limits["limbo_seconds"],
            limits["limbo_share"] * SLOTS,
        )
        self._heard = 0
        self._next = NOBODY
        self.watched: dict[int, np.ndarray] = {}  # slot -> its bytes

    def __enter__(self) -> Reader:
        self.instance.__enter__()
        self.pulls.attach(Attach("b", self.instance.epoch))
        self.turn()
        return self

    def __exit__(self, *exc: object) -> None:
        self.pulls.close()
        self.instance.__exit__()

    def turn(self) -> None:
        """What the worker has told of its movers, in its order; then the movers' own answers."""
        for state in self.instance.states[self._heard :]:
            self._heard += 1
            supervisor = self.instance.supervisor
            self.pulls.mover(0, f"ipc://{supervisor.control_socket}" if state else "")
        self.pulls.drain()
        for _ in self.pulls.stuck():
            self.instance.supervisor.replace(self.instance.supervisor.generation)

    def until(self, true: Callable[[], object]) -> None:
        end = time.monotonic() + DEADLINE
        while not true():
            assert time.monotonic() < end, "it did not come true"
            self.turn()
            time.sleep(0.002)

    def connected(self) -> bool:
        return self.pulls.ready and self.pulls._links[0].send(Ping())

    def limbo(self) -> int:
        return self.table.granules()["limbo"] // 16

    def pull(self, holder: Instance, chunks: range, seconds: float) -> list[int]:
        """Of the holder's chunks, which lie at slots of their numbers; the own slots for them."""
        keys = b"".join(key(n) for n in chunks)
        own = self.table.reserve(keys, time.monotonic())
        assert own is not None
        self.until(self.connected)
        remote = b"".join(place(n) for n in chunks), counters(*([1] * len(chunks)))
        self.pulls.post([[holder.peer()]], keys, remote, own, 0, seconds)
        return _slots(own[0])

    def use_all_room(self) -> list[int]:
        """Store new chunks until no slot is left, then once more over the oldest; the slots used.
        Their bytes are watched from now on."""
        used = []
        for _ in range(2 * SLOTS):
            room = self.table.reserve(key(self._next), time.monotonic())
            assert room is not None
            (slot,) = _slots(room[0])
            self.instance.write(slot, self._next, int.from_bytes(room[1], "little"))
            assert self.table.admit(*room) == 1
            self.watched[slot] = self.instance.bytes_of(slot).copy()
            used.append(slot)
            self._next += 1
        return used

    def changed(self) -> list[int]:
        """Watched slots whose bytes are others than were stored there."""
        bytes_of = self.instance.bytes_of
        return [n for n, kept in self.watched.items() if not np.array_equal(bytes_of(n), kept)]


def _slots(places: bytes) -> list[int]:
    return [int.from_bytes(places[i : i + 4], "little") // 16 for i in range(0, len(places), 8)]


@pytest.fixture(params=["cma", "tcp"])
def holder(run_dir: str, request: pytest.FixtureRequest) -> Iterator[Instance]:
    tls = "tcp,self" if request.param == "tcp" else ""
    with Instance("a", run_dir, nixl_tls=tls) as a:
        for n in range(CHUNKS):
            a.write(n, n, 1)
        yield a


def reader_of(holder: Instance, run_dir: str, **settings: object) -> Reader:
    return Reader(run_dir, nixl_tls=holder.supervisor._settings.nixl_tls, **settings)


class Stopped:
    """`with Stopped(pid):` it stands still, and is woken at the end."""

    def __init__(self, pid: int | None) -> None:
        assert pid is not None
        self.pid = pid

    def __enter__(self) -> Stopped:
        stop(self.pid)
        return self

    def wake(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGCONT)

    def __exit__(self, *exc: object) -> None:
        self.wake()


def test_what_a_woken_peer_still_writes_hits_no_slot_in_use(holder: Instance, run_dir: str) -> None:
    with reader_of(holder, run_dir) as b:
        with Stopped(holder.supervisor.pid) as stopped:
            pulled = b.pull(holder, range(CHUNKS), 0.3)  # not connected yet: nothing comes
            b.until(lambda: b.ended)
            assert b.ended[0].results == [TIMEOUT] * CHUNKS
            assert b.limbo() == CHUNKS
            used = b.use_all_room()
            assert len(set(used)) == SLOTS - CHUNKS
            assert not set(used) & set(pulled)
            assert b.table.reserve(b"".join(map(key, range(500, 517))), 0.0) is None
            stopped.wake()
            b.until(lambda: not b.limbo())
        late = [slot for n, slot in enumerate(pulled) if _has(b.instance, slot, n)]
        assert late == pulled, "its bytes came when nobody waited any more"
        assert b.changed() == []
        assert not b.pulls.open
        again = b.use_all_room()  # and now they are room like any other
        assert set(pulled) <= set(again)
        assert b.changed() == []


def _has(instance: Instance, slot: int, n: int) -> bool:
    return np.array_equal(instance.bytes_of(slot), payload(n))


def test_a_peer_that_is_stopped_in_the_middle_of_a_read(run_dir: str) -> None:
    """Slots of 4 MiB, one a READ: a part of one has come when the peer is stopped."""
    text = TEXT.replace("segment_bytes=16384", f"segment_bytes={1 << 20}")
    settings = {"text": text, "nixl_tls": "tcp,self"}
    with Instance("a", run_dir, **settings) as a, Reader(run_dir, **settings) as b:
        for n in range(CHUNKS):
            a.write(n, n, 1)
        wanted = [payload(n, a.layout) for n in range(CHUNKS)]
        for _ in range(10):  # it may be over before it is stopped
            pulled = b.pull(a, range(CHUNKS), 1.0)
            bytes_of = [b.instance.bytes_of(slot) for slot in pulled]
            soon = time.monotonic() + 1
            while not np.array_equal(bytes_of[0][:8], wanted[0][:8]) and time.monotonic() < soon:
                pass
            with Stopped(a.supervisor.pid):
                b.until(lambda: b.ended)
                results = b.ended.pop().results
                limbo = [n for n, result in enumerate(results) if result == TIMEOUT]
                parts = [
                    n
                    for n in limbo
                    if np.array_equal(bytes_of[n][:8], wanted[n][:8])
                    and not np.array_equal(bytes_of[n], wanted[n])
                ]
                assert b.limbo() == len(limbo)
                if parts:
                    assert not set(b.use_all_room()) & {pulled[n] for n in limbo}
            b.until(lambda: not b.limbo())
            assert b.changed() == []
            assert all(np.array_equal(bytes_of[n], wanted[n]) for n in parts), "the rest came late"
            if parts:
                return
            b.table.retire(b"".join(map(key, range(CHUNKS))), revivable=False)
        pytest.fail("it was never stopped in the middle")


@pytest.mark.parametrize("limit", [{"limbo_share": 1 / 16}, {"limbo_seconds": 0.5}])
def test_past_its_limits_limbo_ends_with_the_mover(
    holder: Instance, run_dir: str, limit: dict[str, float]
) -> None:
    with reader_of(holder, run_dir, **limit) as b:
        with Stopped(holder.supervisor.pid) as stopped:
            pulled = b.pull(holder, range(CHUNKS), 0.3)
            old = b.instance.supervisor.pid
            agent = b.instance.states[-1].nixl_metadata
            b.until(lambda: b.ended)
            b.until(lambda: not b.limbo())
            assert not alive(old), "its slots are free, so it can write no more"
            used = b.use_all_room()
            assert set(pulled) <= set(used)
            b.until(b.connected)
            stopped.wake()
        assert b.instance.states[-1].nixl_metadata != agent, "another name, another port"
        b.pull(holder, range(2), 10)
        b.until(lambda: len(b.ended) == 2)
        assert b.ended[1].results == [GOOD] * 2
        assert not b.pulls.open


def test_a_mover_that_stands_still_itself_is_replaced(
    holder: Instance, run_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can neither end its READs nor itself; twice in a row."""
    monkeypatch.setattr("lmkv.agent.pulls.MARGIN", 0.5)
    with reader_of(holder, run_dir, limbo_share=1 / 16) as b:
        for lives in (1, 2):
            b.until(b.connected)
            old = b.instance.supervisor.pid
            with Stopped(old):
                pulled = b.pull(holder, range(CHUNKS), 0.1)
                b.until(lambda lives=lives: len(b.ended) == lives)
                assert b.ended[-1].unheard and b.limbo() == CHUNKS
                assert not set(b.use_all_room()) & set(pulled)
                b.until(lambda: not b.limbo())
                assert not alive(old)
            assert b.instance.deaths() == lives
            assert b.changed() == []
        b.pull(holder, range(2), 10)
        b.until(lambda: len(b.ended) == 3)
        assert b.ended[2].results == [GOOD] * 2


def test_a_mover_that_dies_under_a_pull_gives_its_slots_back_when_it_is_dead(
    holder: Instance, run_dir: str
) -> None:
    """The agent thinks that the READ is pending; no limbo is needed."""
    with reader_of(holder, run_dir) as b, Stopped(holder.supervisor.pid):
        pulled = b.pull(holder, range(CHUNKS), 60.0)
        old = b.instance.supervisor.pid
        assert old is not None
        os.kill(old, signal.SIGKILL)
        b.until(lambda: b.ended)
        assert not alive(old)
        assert b.ended[0].results == [PullResult.MOVER_DOWN] * CHUNKS
        assert b.limbo() == 0
        assert set(pulled) <= set(b.use_all_room())


def test_a_reset_does_not_free_what_is_in_limbo(holder: Instance, run_dir: str) -> None:
    with reader_of(holder, run_dir) as b:
        with Stopped(holder.supervisor.pid):
            pulled = b.pull(holder, range(CHUNKS), 0.3)
            b.until(lambda: b.ended)
            b.table.begin_epoch()
            b.pulls.attach(Attach("b", b.instance.epoch + 1))
            assert b.limbo() == CHUNKS
            assert not set(b.use_all_room()) & set(pulled)
        b.until(lambda: not b.limbo())
        assert b.changed() == []
        assert set(pulled) <= set(b.use_all_room())
