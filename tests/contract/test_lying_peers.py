"""A peer says of itself what is not so: nothing is taken from it; it is named and avoided."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

import pytest
from lmkv import _native
from lmkv.core.messages import Alarm, Connect, Message, Pulled, PullPeer, PullResult
from lmkv.core.steps import LoadResult
from lmkv.worker.mapped import MapError, MappedPeers

from tests.contract.mover_instance import LAYOUT, SEGMENT_SLOTS, SLOTS, Instance, counters, key
from tests.fake_links import World
from tests.unit.test_mapped import LAYOUT as MAPPED_LAYOUT
from tests.unit.test_mapped import SEGMENT_SLOTS as MAPPED_SLOTS
from tests.unit.test_mapped import _shared, holder, impostor

__all__ = ["holder"]  # a fixture

SEALS = {"SHRINK": 2, "GROW": 4, "SEAL": 1}
SEGMENT_BYTES = MAPPED_SLOTS * MAPPED_LAYOUT.slot_bytes

# ------------------------------------------------------------------ pools that are mapped


def memfd(seals: int, size: int) -> int:
    fd = os.memfd_create("liar", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


@pytest.mark.parametrize(
    ("seals", "size", "named"),
    [
        *[(7 - bit, SEGMENT_BYTES, f"not sealed: {name} missing") for name, bit in SEALS.items()],
        (0, SEGMENT_BYTES, "not sealed: SHRINK GROW SEAL missing"),
        (7, SEGMENT_BYTES - 4096, f"{SEGMENT_BYTES - 4096} bytes, announced are {SEGMENT_BYTES}"),
        (7, 2 * SEGMENT_BYTES, f"{2 * SEGMENT_BYTES} bytes, announced are {SEGMENT_BYTES}"),
        (7, 0, f"0 bytes, announced are {SEGMENT_BYTES}"),
    ],
)
def test_a_segment_that_could_fault_is_never_mapped(
    holder, run_dir: str, seals: int, size: int, named: str
) -> None:
    peer = holder.peer()
    peer.info.share_socket = f"{run_dir}/liar.share"
    peers = MappedPeers(MAPPED_LAYOUT.granule_bytes)
    fd = memfd(seals, size)
    with (
        impostor(peer.info.share_socket, _shared(), [fd]),
        pytest.raises(MapError, match=named) as refused,
        peers.map(peer),
    ):
        pass
    os.close(fd)
    assert refused.value.cause == "incompatible"
    assert len(peers) == 0
    with open("/proc/self/maps") as maps:
        assert "memfd:liar" not in maps.read()


def test_more_descriptors_than_segments_are_refused(holder, run_dir: str) -> None:
    peer = holder.peer(usable=2)
    peer.info.share_socket = f"{run_dir}/liar.share"
    fds = [memfd(7, SEGMENT_BYTES) for _ in range(5)]
    files = {os.fstat(fd).st_ino for fd in fds}
    with (
        impostor(peer.info.share_socket, _shared(), fds),
        pytest.raises(MapError, match="all 2 segments are there"),
        MappedPeers(MAPPED_LAYOUT.granule_bytes).map(peer),
    ):
        pass
    for fd in fds:
        os.close(fd)
    left = [os.stat(path).st_ino for path in Path("/proc/self/fd").iterdir() if path.exists()]
    assert not files & {*left}


@pytest.mark.parametrize("result", [PullResult.INCOMPATIBLE, PullResult.PEER_DEAD])
def test_a_mapped_peer_that_is_not_what_it_announced_is_avoided(result: int) -> None:
    world = World()
    prompt = world.prompt(2)
    world.begin("a", prompt)
    world.located(2)
    world.match("a", prompt)
    world.peer_info(mapped=True)
    assert world.match("a", prompt) == 8
    world.agent.allocated("a", [list(range(5))], 8)
    world.agent.loaded("a", LoadResult(0, result))
    assert world.agent.locator.avoids("peer")
    assert world.agent.finished("a")["lmkv"]["miss_tokens"][PullResult.CAUSES[result]] == 8
    world.begin("b", prompt)
    world.located(2)  # by a controller that has not heard
    assert world.match("b", prompt) == 0


@pytest.mark.parametrize("result", [PullResult.INCOMPATIBLE, PullResult.PEER_DEAD])
def test_a_peer_whose_slots_are_not_what_it_announced_is_avoided(result: int) -> None:
    world = World()
    prompt = world.prompt(2)
    world.begin("a", prompt)
    world.located(2)
    world.match("a", prompt)
    world.peer_info()
    world.match("a", prompt)
    world.pulled([PullResult.GOOD, result])
    assert world.match("a", prompt) == 4
    assert world.agent.locator.avoids("peer")
    world.begin("b", [*prompt, 1])
    assert "peer" in world.agent.locator.avoided()


# ------------------------------------------------------------------ pools that are pulled from


def answered(reader: Instance) -> tuple[Pulled, bytes, list[Alarm]]:
    alarms: list[Alarm] = []
    while True:
        message: Message
        message, frames = reader.receive()
        if isinstance(message, Pulled):
            return message, frames[0], alarms
        assert isinstance(message, Alarm), message
        alarms.append(message)


@pytest.mark.nixl
def test_a_mover_takes_nothing_from_a_peer_that_lies_and_both_live_on(run_dir: str) -> None:
    with Instance("holder", run_dir) as there, Instance("reader", run_dir) as here:
        for slot in range(SLOTS):
            there.write(slot, slot, 1)
        size = SLOTS * LAYOUT.slot_bytes
        lies: list[tuple[dict[str, object], int, bool]] = [
            ({"granule_bytes": 2 * LAYOUT.granule_bytes}, PullResult.INCOMPATIBLE, False),
            ({"granule_bytes": 0}, PullResult.INCOMPATIBLE, False),
            ({"pool_address": there.pool.address + 4 * size}, PullResult.PEER_DEAD, True),
            ({"pool_address": (1 << 64) - 4096}, PullResult.INCOMPATIBLE, False),
            ({"pool_address": 0}, PullResult.PEER_DEAD, True),
            ({"segment_granules": 0}, PullResult.INCOMPATIBLE, False),
            ({"segment_granules": 24}, PullResult.INCOMPATIBLE, False),
            ({"usable_segments": 100}, PullResult.INCOMPATIBLE, False),
            ({"usable_segments": 0}, PullResult.GONE, True),
            ({"nixl_metadata": b""}, PullResult.PEER_DEAD, True),
            ({"nixl_metadata": b"rubbish" * 9}, PullResult.PEER_DEAD, True),
            ({"nixl_metadata": there.peer().info.nixl_metadata[:-9]}, PullResult.PEER_DEAD, True),
        ]
        for job, (changes, expected, stale) in enumerate(lies, 1):
            peer = there.peer(**changes)
            peer.instance = f"liar {job}"
            here.send(Connect(peer))
            here.pull(job, peer, [(1, 1, 1), (2, 2, 1)], [(0, job), (1, job)])
            pulled, results, alarms = answered(here)
            assert results[1] == expected and pulled.stale == stale, (changes, results, pulled)
            assert [a.kind for a in alarms] == (["peer"] if expected == 3 else []), changes
            assert here.check(0, 1, job) != PullResult.GOOD
        here.pull(99, there.peer(), [(1, 1, 1)], [(0, 99)])
        assert answered(here)[1] == bytes([PullResult.GOOD])
        assert here.check(0, 1, 99) == PullResult.GOOD
        assert there.deaths() == here.deaths() == 0


@pytest.mark.nixl
def test_a_mover_reads_no_place_that_is_no_slot(run_dir: str) -> None:
    with Instance("holder", run_dir) as there, Instance("reader", run_dir) as here:
        there.write(1, 1, 1)
        bad = [
            (16 * SLOTS, 16, 0),
            (0xFFFFFFFF, 16, 0),
            (16 * SEGMENT_SLOTS - 8, 16, 0),
            (16, 0, 0),
            (16, 255, 0),
            (16, 16, 1),
            (16, 16, 2),
        ]
        n = len(bad)
        places = b"".join(struct.pack("<IBBH", *each, 0) for each in bad)
        own = b"".join(struct.pack("<IBBH", 16 * slot, 16, 0, 0) for slot in range(n))
        from lmkv.core.messages import Pull

        arrays = key(1) * n, places, counters(*[1] * n), own, counters(*range(1, n + 1))
        here.send(Pull(1, there.peer(), 10.0, LAYOUT.fingerprint), *arrays)
        pulled, results, _ = answered(here)
        assert results == bytes([PullResult.GONE]) * n and pulled.stale
        # Of our own pool such a place is our agent's mistake: refused by name, and nothing begins.
        for where in (places[8 * 3 : 8 * 4], places[:8]):
            arrays = key(1), own[:8], counters(1), where, counters(1)
            here.send(Pull(2, there.peer(), 10.0, LAYOUT.fingerprint), *arrays)
            _, results, alarms = answered(here)
            assert results == bytes([PullResult.MOVER_DOWN])
            assert [a.kind for a in alarms] == ["pull"] and "place" in alarms[0].text


@pytest.mark.nixl
def test_what_was_known_of_an_earlier_life_brings_nothing(run_dir: str) -> None:
    """Its mover is another one now: the old metadata is a dead peer, the old epoch is gone."""
    with Instance("holder", run_dir) as there, Instance("reader", run_dir) as here:
        there.write(1, 1, 1)
        old = there.peer()
        here.pull(1, old, [(1, 1, 1)], [(0, 1)])
        assert answered(here)[1] == bytes([PullResult.GOOD])
        os.kill(there.supervisor.pid, 9)
        there.state(lambda s: s.nixl_metadata and s.nixl_metadata != old.info.nixl_metadata)
        here.pull(2, old, [(1, 1, 1)], [(0, 2)])
        pulled, results, _ = answered(here)
        assert (results, pulled.stale) == (bytes([PullResult.PEER_DEAD]), True)
        new = there.peer()
        before = PullPeer(new.instance, new.epoch ^ 1, new.data_version, new.info)
        here.pull(3, before, [(1, 1, 1)], [(0, 3)])
        assert answered(here)[1] == bytes([PullResult.GONE])
        here.pull(4, new, [(1, 1, 1)], [(0, 4)])
        assert answered(here)[1] == bytes([PullResult.GOOD])
        assert here.check(0, 1, 4) == _native.SlotStatus.GOOD
