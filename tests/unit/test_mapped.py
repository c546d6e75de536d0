"""A same-host peer's pool: mapped once, grown, refused, forgotten. The peer is a thread here."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
import time
from pathlib import Path

import pytest
from lmkv import _native
from lmkv.core import wire
from lmkv.core.messages import HostIdentity, Ping, PullPeer, RankInfo, Shared
from lmkv.mover.share import ShareServer
from lmkv.worker.mapped import MapError, MappedPeers

LAYOUT = _native.SlotLayout(2, 4096, 1, 99)
SLOTS, SEGMENT_SLOTS = 8, 4
EPOCH = 0xABCD
KEY = bytes(range(16))


def place(slot: int) -> bytes:
    return struct.pack("<IBBH", 16 * slot, 16, 0, 0)


class Holder:
    """A pool with one segment, and a share server in a thread."""

    def __init__(self, run_dir: str, segments: int = 1) -> None:
        self.pool = _native.Pool(LAYOUT.granule_bytes, SLOTS, SEGMENT_SLOTS)
        self.server = ShareServer(f"{run_dir}/h.share", 0, [], time.monotonic)
        self.server.instance, self.server.epoch = "h", EPOCH
        self.served = 0
        for _ in range(segments):
            self.grow()
        self._stop, self._stopped = os.pipe()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def grow(self) -> None:
        fd = self.pool.segment_fd(self.pool.add_segment())
        self.server.add_segment(fd)
        os.close(fd)

    def _serve(self) -> None:
        while self._stop not in select.select([self.server, self._stop], [], [])[0]:
            client = self.server.accept()
            if client is not None:
                select.select([client], [], [], 5)
                self.served += 1
                self.server.serve(client)

    def close(self) -> None:
        os.close(self._stopped)
        self._thread.join()
        os.close(self._stop)
        self.server.close()

    def peer(self, usable: int = 1, epoch: int = EPOCH) -> PullPeer:
        info = RankInfo(
            0,
            HostIdentity("boot", 1, 1),
            self.pool.address,
            LAYOUT.granule_bytes,
            16 * SLOTS,
            16 * SEGMENT_SLOTS,
            usable,
            self.server.path,
        )
        return PullPeer("h", epoch, 1, info)


@pytest.fixture
def holder(run_dir):
    holder = Holder(run_dir)
    yield holder
    holder.close()


def test_mapped_once_and_read(holder):
    _native.write_slot(holder.pool.slot_address(place(1)), LAYOUT, KEY, 5, bytes(8192))
    peers = MappedPeers(LAYOUT.granule_bytes)
    for _ in range(3):
        with peers.map(holder.peer()) as pool:
            at = pool.slot_address(place(1))
            assert _native.check_slot(at, LAYOUT, KEY, 5) == _native.SlotStatus.GOOD
    assert holder.served == 1
    assert len(peers) == 1
    peers.close()
    assert len(peers) == 0


def test_grown_when_the_peer_announces_more(holder):
    peers = MappedPeers(LAYOUT.granule_bytes)
    with peers.map(holder.peer()) as pool:
        assert pool.segments == 1
        with pytest.raises(ValueError, match="usable"):
            pool.slot_address(place(SEGMENT_SLOTS))
    holder.grow()
    with peers.map(holder.peer(usable=2)) as pool:
        assert pool.segments == 2
        pool.slot_address(place(SEGMENT_SLOTS))
    assert holder.served == 2


def test_fewer_segments_than_announced_are_refused(holder):
    peers = MappedPeers(LAYOUT.granule_bytes)
    with (
        pytest.raises(MapError, match="has 1 segments, 2 were announced") as error,
        peers.map(holder.peer(usable=2)),
    ):
        pass
    assert error.value.cause == "peer_dead"


def test_another_epoch_is_refused_and_leaves_nothing(holder):
    peers = MappedPeers(LAYOUT.granule_bytes)
    with (
        pytest.raises(MapError, match="epoch 000000000000abcd, rank 0, not 'h', 0000000000000001"),
        peers.map(holder.peer(epoch=1)),
    ):
        pass
    peers.forget("h", 1)
    assert len(peers) == 0


def test_a_life_that_is_over_is_unmapped_when_its_last_user_has_gone(holder):
    peers = MappedPeers(LAYOUT.granule_bytes)
    with peers.map(holder.peer()) as pool:
        peers.forget("h", EPOCH)
        assert len(peers) == 1
        pool.slot_address(place(0))
    assert len(peers) == 0


def test_who_closes_is_told_before_it_is_unmapped(holder):
    _native.write_slot(holder.pool.slot_address(place(1)), LAYOUT, KEY, 5, bytes(8192))
    closed = []

    def closing(pool: _native.PoolMap) -> None:
        at = pool.slot_address(place(1))
        closed.append(_native.check_slot(at, LAYOUT, KEY, 5))

    peers = MappedPeers(LAYOUT.granule_bytes, closing=closing)
    with peers.map(holder.peer()):
        peers.forget("h", EPOCH)
        assert closed == []
    assert closed == [_native.SlotStatus.GOOD]
    with peers.map(holder.peer()):
        pass
    assert len(closed) == 1
    peers.close()
    peers.close()
    assert closed == [_native.SlotStatus.GOOD] * 2


def test_a_visited_pool_stays_mapped_meanwhile(holder):
    closed = []
    peers = MappedPeers(LAYOUT.granule_bytes, closing=closed.append)
    visited = []
    peers.visit(visited.append)
    assert visited == []
    with peers.map(holder.peer()) as pool:
        peers.visit(visited.append)
    assert visited == [pool]

    def over(pool: _native.PoolMap) -> None:
        peers.forget("h", EPOCH)
        assert closed == []
        pool.slot_address(place(0))

    peers.visit(over)
    assert (closed, len(peers)) == ([pool], 0)


def test_a_visit_that_fails_holds_on_to_nothing(holder):
    peers = MappedPeers(LAYOUT.granule_bytes)
    with peers.map(holder.peer()):
        pass

    def fail(pool: _native.PoolMap) -> None:
        raise OSError("scripted")

    with pytest.raises(OSError, match="scripted"):
        peers.visit(fail)
    peers.forget("h", EPOCH)
    assert len(peers) == 0


def test_a_visit_looks_at_no_pool_that_is_not_there_yet(holder, run_dir):
    """A peer that is slow to answer is being mapped."""
    peer = holder.peer()
    peer.info.share_socket = f"{run_dir}/mute.share"
    peers = MappedPeers(LAYOUT.granule_bytes, deadline=0.2)

    def map_it() -> None:
        with contextlib.suppress(MapError), peers.map(peer):
            pass

    with impostor(peer.info.share_socket, None):
        mapping = threading.Thread(target=map_it)
        mapping.start()
        while not len(peers):
            time.sleep(0.001)
        visited = []
        peers.visit(lambda pool: visited.append(pool.segments))
        mapping.join()
    assert visited in ([], [0])
    assert len(peers) == 0


def test_a_peer_that_died_is_unmapped_when_it_was_missed_twice(holder):
    peers = MappedPeers(LAYOUT.granule_bytes)
    with peers.map(holder.peer()):
        pass
    peers.drop_dead()
    peers.drop_dead()
    assert len(peers) == 1
    holder.server.epoch = EPOCH + 1  # as one whose mover has just begun: it attaches soon
    peers.drop_dead()
    holder.server.epoch = EPOCH
    peers.drop_dead()
    os.rename(holder.server.path, f"{holder.server.path}.old")
    peers.drop_dead()
    assert len(peers) == 1
    with peers.map(holder.peer()) as pool:
        peers.drop_dead()
        assert len(peers) == 1
        pool.slot_address(place(0))
    assert len(peers) == 0


def test_a_peer_that_is_stopped_stays_mapped(holder, run_dir):
    peers = MappedPeers(LAYOUT.granule_bytes, deadline=0.1)
    path = holder.server.path
    with peers.map(holder.peer()):
        pass
    os.rename(path, f"{path}.old")
    with impostor(path, None):
        peers.drop_dead()
        peers.drop_dead()
    assert len(peers) == 1
    os.rename(f"{path}.old", path)


def test_nobody_there_is_a_dead_peer(holder, run_dir):
    peer = holder.peer()
    peer.info.share_socket = f"{run_dir}/nobody.share"
    with (
        pytest.raises(MapError, match=r"nobody\.share") as error,
        MappedPeers(LAYOUT.granule_bytes).map(peer),
    ):
        pass
    assert error.value.cause == "peer_dead"


def test_a_pool_on_a_gpu_is_not_for_an_engine_without_one(holder):
    peer = holder.peer()
    peer.info.tier = 1
    with pytest.raises(MapError, match="its pool is in a GPU's memory") as error:
        with MappedPeers(LAYOUT.granule_bytes).map(peer):
            pass
    assert error.value.cause == "incompatible"


def test_a_mover_that_tells_no_handle_is_refused(holder):
    peer = holder.peer()
    peer.info.tier = 1
    peers = MappedPeers(
        LAYOUT.granule_bytes, open_gpu=lambda handle, size: pytest.fail("no handle")
    )
    with pytest.raises(MapError, match="answered without a GPU's handle"), peers.map(peer):
        pass
    assert len(peers) == 0


def test_other_granules_are_incompatible(holder):
    peer = holder.peer()
    peer.info.granule_bytes *= 2
    with (
        pytest.raises(MapError, match="granules of") as error,
        MappedPeers(LAYOUT.granule_bytes).map(peer),
    ):
        pass
    assert error.value.cause == "incompatible"


@contextlib.contextmanager
def impostor(path: str, answer: bytes | None, fds: list[int] | None = None):
    """A socket that answers once with `answer`, or never."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen(1)

    def serve() -> None:
        client, _ = listener.accept()
        with client:
            client.recv(65536)
            if answer is None:
                client.recv(1)  # until the other end gives up
            else:
                socket.send_fds(client, [answer], fds or [])

    thread = threading.Thread(target=serve)
    thread.start()
    yield
    thread.join()
    listener.close()


def test_silence_ends_at_the_deadline(holder, run_dir):
    peer = holder.peer()
    peer.info.share_socket = f"{run_dir}/mute.share"
    with (
        impostor(peer.info.share_socket, None),
        pytest.raises(MapError, match="timed out") as error,
        MappedPeers(LAYOUT.granule_bytes, deadline=0.1).map(peer),
    ):
        pass
    assert error.value.cause == "peer_dead"


def _shared(epoch: int = EPOCH) -> bytes:
    return wire.encode(Shared(epoch, 0, 1, [1 << 20]))[0]


def test_rubbish_and_other_answers_are_refused(holder, run_dir):
    for n, (answer, match) in enumerate(
        [
            (b"\xc1", "message of no type"),
            (wire.encode(Ping())[0], "answered Ping"),
            (_shared(epoch=3), "epoch 0000000000000003"),
            (_shared(), "has 1 segments, 1 were announced"),  # and no descriptor with it
        ]
    ):
        peer = holder.peer()
        peer.info.share_socket = f"{run_dir}/{n}.share"
        with impostor(peer.info.share_socket, answer), pytest.raises(MapError, match=match):
            with MappedPeers(LAYOUT.granule_bytes).map(peer):
                pass


def test_a_segment_that_could_shrink_is_never_mapped(holder, run_dir):
    peer = holder.peer()
    peer.info.share_socket = f"{run_dir}/unsealed.share"
    fd = os.memfd_create("unsealed")
    os.ftruncate(fd, SEGMENT_SLOTS * LAYOUT.slot_bytes)
    with impostor(peer.info.share_socket, _shared(), [fd]):
        with (
            pytest.raises(MapError, match="seal") as error,
            MappedPeers(LAYOUT.granule_bytes).map(peer),
        ):
            pass
    assert error.value.cause == "incompatible"
    links = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.exists()]
    os.close(fd)
    assert sum("memfd:unsealed" in link for link in links) == 1, "what was received is closed"


def test_strangers_are_refused_by_both_ends(holder, monkeypatch):
    monkeypatch.setattr(holder.server, "_uids", {os.getuid() + 1})
    with (
        pytest.raises(MapError, match=r"no answer|reset|Broken|has 0"),
        MappedPeers(LAYOUT.granule_bytes).map(holder.peer()),
    ):
        pass
    assert holder.served == 0
    monkeypatch.undo()
    peers = MappedPeers(LAYOUT.granule_bytes)
    monkeypatch.setattr(peers, "_uids", {os.getuid() + 1})
    with (
        pytest.raises(MapError, match=f"belongs to user {os.getuid()}, who is not allowed"),
        peers.map(holder.peer()),
    ):
        pass
