"""Real movers over real pools: what an agent, a worker and a peer see of them.

No process but the movers loads NIXL. Slots are 64 KiB, so that stories fit; faults are made by
signals, and what must follow is waited for, never timed.
"""

from __future__ import annotations

import mmap
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from lmkv import _native
from lmkv.core import wire
from lmkv.core.messages import (
    Alarm,
    Connect,
    Forget,
    Limbo,
    LimboEnded,
    Ping,
    Pong,
    Pull,
    Refused,
    Share,
    Shared,
    Unsupported,
)
from lmkv.worker.mapped import MapError, MappedPeers
from mover_instance import (
    LAYOUT,
    SEGMENT_SLOTS,
    SLOTS,
    Instance,
    alive,
    counters,
    generation,
    key,
    payload,
    place,
    pulled,
    stop,
)

from tests.ports import busy_ports

GOOD, GONE, DIGEST, INCOMPATIBLE, TIMEOUT, PEER_DEAD, MOVER_DOWN = range(7)
MOVER_MIB = 64
pytestmark = pytest.mark.nixl


@pytest.fixture(params=["cma", "tcp"])
def tls(request):
    return "tcp,self" if request.param == "tcp" else ""


@pytest.fixture
def pair(run_dir, tls):
    with Instance("a", run_dir, nixl_tls=tls) as a, Instance("b", run_dir, nixl_tls=tls) as b:
        yield a, b


@pytest.fixture
def tcp_pair(run_dir):
    """Over TCP a holder that is stopped leaves a READ under way."""
    with (
        Instance("a", run_dir, nixl_tls="tcp,self") as a,
        Instance("b", run_dir, nixl_tls="tcp,self", limbo_share=1.0) as b,
    ):
        yield a, b


def wait_until(condition, deadline: float = 20.0) -> None:
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        time.sleep(0.005)


def test_pull_brings_slots_byte_by_byte_under_our_generation(pair):
    a, b = pair
    assert a.states[-1].versions.keys() >= {"lmkv"}
    for i in range(20):
        a.write(i, n=i, counter=i + 1)
    b.pull(7, a.peer(), [(i, i, i + 1) for i in range(20)], [(19 - i, 100 + i) for i in range(20)])
    answer, results = pulled(b, 7)
    assert results == [GOOD] * 20
    assert not answer.stale
    assert answer.bytes == 20 * (LAYOUT.payload_offset + LAYOUT.payload_bytes)
    for i in range(20):
        assert b.check(19 - i, n=i, counter=100 + i) == GOOD
        assert np.array_equal(b.bytes_of(19 - i), payload(i))


def test_each_chunk_has_its_own_result(pair):
    a, b = pair
    for i in range(4):
        a.write(i, n=i, counter=1)
    a.bytes_of(2)[5000] ^= 1  # one bit
    chunks = [(0, 0, 1), (1, 1, 2), (2, 2, 1), (9, 3, 1)]  # good, reused, flipped, another key
    b.pull(1, a.peer(), chunks, [(i, 1) for i in range(4)])
    answer, results = pulled(b, 1)
    assert results == [GOOD, GONE, DIGEST, GONE]
    assert answer.bytes == LAYOUT.payload_offset + LAYOUT.payload_bytes
    assert b.check(0, n=0, counter=1) == GOOD
    for slot, n in ((1, 1), (2, 2), (3, 3)):  # not even under the holder's own generation
        at = b.pool.slot_address(place(slot))
        assert _native.check_slot(at, LAYOUT, key(n), generation(a.epoch, 1)) == GONE


def test_a_slot_that_was_never_written_is_gone(pair):
    a, b = pair
    b.pull(1, a.peer(), [(0, 5, 1)], [(0, 1)])
    assert pulled(b, 1)[1] == [GONE]


def test_a_place_beyond_the_announced_segments_is_gone_and_stale(pair):
    a, b = pair
    a.write(20, n=0, counter=1)
    b.pull(1, a.peer(usable_segments=2), [(0, 20, 1)], [(0, 1)])
    answer, results = pulled(b, 1)
    assert (results, answer.stale) == ([GONE], True)


def test_another_layout_is_incompatible(pair):
    a, b = pair
    a.write(0, n=0, counter=1)
    b.pull(1, a.peer(), [(0, 0, 1)], [(0, 1)], fingerprint=1)
    assert pulled(b, 1)[1] == [INCOMPATIBLE]
    b.pull(2, a.peer(granule_bytes=4096), [(0, 0, 1)], [(0, 1)])
    assert pulled(b, 2)[1] == [INCOMPATIBLE]
    other = _native.SlotLayout(4, 16384, 1, 2)
    at = a.pool.slot_address(place(0))
    _native.write_slot(at, other, key(0), generation(a.epoch, 1), payload(0))
    b.pull(3, a.peer(), [(0, 0, 1)], [(0, 1)])
    assert pulled(b, 3)[1] == [INCOMPATIBLE]


def test_a_killed_mover_comes_back_and_serves_again(pair):
    a, b = pair
    a.write(0, n=0, counter=1)
    before = a.peer()
    b.pull(1, before, [(0, 0, 1)], [(0, 1)])
    assert pulled(b, 1)[1] == [GOOD]
    old = a.supervisor.pid
    os.kill(old, signal.SIGKILL)
    wait_until(lambda: a.deaths() == 1)
    after = a.state(lambda s: s.nixl_metadata != before.info.nixl_metadata)
    assert after.nixl_metadata and not after.error
    assert not alive(old)
    assert a.supervisor.generation == 2

    b.pull(2, before, [(0, 0, 1)], [(1, 1)])
    answer, results = pulled(b, 2)
    assert (results, answer.stale) == ([PEER_DEAD], True)
    b.pull(3, a.peer(), [(0, 0, 1)], [(2, 1)])
    assert pulled(b, 3)[1] == [GOOD]
    assert np.array_equal(b.bytes_of(2), payload(0))
    b.write(3, n=3, counter=1)  # and the new one pulls
    a.attach()
    a.pull(4, b.peer(), [(3, 3, 1)], [(9, 1)])
    assert pulled(a, 4)[1] == [GOOD]


def test_a_pool_grows_under_its_mover(run_dir, tls):
    with (
        Instance("a", run_dir, segments=1, nixl_tls=tls) as a,
        Instance("b", run_dir, nixl_tls=tls) as b,
    ):
        a.write(0, n=0, counter=1)
        assert a.states[-1].segments == 1
        b.pull(1, a.peer(), [(0, 0, 1)], [(0, 1)])
        assert pulled(b, 1)[1] == [GOOD]
        a.pool.add_segment()
        a.supervisor.segment_added()
        a.state(lambda s: s.segments == 2)
        a.write(SEGMENT_SLOTS, n=1, counter=2)
        b.pull(2, a.peer(), [(1, SEGMENT_SLOTS, 2)], [(1, 1)])
        assert pulled(b, 2)[1] == [GOOD]
        assert np.array_equal(b.bytes_of(1), payload(1))


def test_a_stopped_holder_costs_the_deadline_and_puts_the_places_in_limbo(tcp_pair):
    a, b = tcp_pair
    a.write(0, n=0, counter=1)
    b.pull(1, a.peer(), [(0, 0, 1)], [(0, 1)])
    assert pulled(b, 1)[1] == [GOOD]  # connected
    stop(a.supervisor.pid)
    try:
        b.pull(2, a.peer(), [(0, 0, 1)] * 2, [(1, 1), (2, 1)], deadline=0.3)
        assert pulled(b, 2)[1] == [TIMEOUT] * 2
        b.send(Forget("a", a.epoch))  # not obeyed while the READ is under way
        b.send(Limbo(2))  # not answered
        b.send(Ping(3))
        assert b.receive()[0] == Pong(3)
        assert not b.agent.poll(100), "limbo cannot have ended: the holder is stopped"
    finally:
        os.kill(a.supervisor.pid, signal.SIGCONT)
    ended, _ = b.receive()
    assert isinstance(ended, LimboEnded) and ended.job == 2
    b.send(Limbo(2))  # for one who has not heard it
    assert b.receive()[0] == LimboEnded(0, 2)
    for slot in (1, 2):  # the bytes landed; no reader takes them
        at = b.pool.slot_address(place(slot))
        assert _native.check_slot(at, LAYOUT, key(0), generation(a.epoch, 1)) == GONE
    b.pull(4, a.peer(), [(0, 0, 1)], [(1, 2)])
    assert pulled(b, 4)[1] == [GOOD]


def test_a_holder_that_dies_under_a_read_is_named_at_once(tcp_pair):
    a, b = tcp_pair
    a.write(0, n=0, counter=1)
    b.pull(1, a.peer(), [(0, 0, 1)], [(0, 1)])
    assert pulled(b, 1)[1] == [GOOD]
    stop(a.supervisor.pid)
    b.pull(2, a.peer(), [(0, 0, 1)], [(1, 1)], deadline=60.0)
    b.send(Ping(1))
    assert b.receive()[0] == Pong(1)  # so the pull has been posted
    os.kill(a.supervisor.pid, signal.SIGKILL)
    answer, results = pulled(b, 2)
    assert (results, answer.stale) == ([PEER_DEAD], True)


def test_too_much_limbo_replaces_the_mover(run_dir, capfd):
    with (
        Instance("a", run_dir, nixl_tls="tcp,self") as a,
        Instance("b", run_dir, nixl_tls="tcp,self") as b,  # 1/16 of 24 slots is one
    ):
        a.write(0, n=0, counter=1)
        b.pull(1, a.peer(), [(0, 0, 1)], [(0, 1)])
        assert pulled(b, 1)[1] == [GOOD]
        stop(a.supervisor.pid)
        try:
            b.pull(2, a.peer(), [(0, 0, 1)] * 2, [(1, 1), (2, 1)], deadline=0.2)
            assert pulled(b, 2)[1] == [TIMEOUT] * 2
            wait_until(lambda: b.deaths() == 1)
            b.state(lambda s: s.nixl_metadata)
        finally:
            os.kill(a.supervisor.pid, signal.SIGCONT)
    assert "2 of 24 slots wait for READs that timed out" in capfd.readouterr().err


def test_peers_on_the_host_map_the_pool_read_only(run_dir):
    with Instance("a", run_dir, segments=2) as a:
        a.write(9, n=4, counter=2)
        mapped = MappedPeers(LAYOUT.granule_bytes)
        with mapped.map(a.peer()) as pool:
            at = pool.slot_address(place(9))
            assert _native.check_slot(at, LAYOUT, key(4), generation(a.epoch, 2)) == GOOD
            lines = [
                line
                for line in Path("/proc/self/maps").read_text().splitlines()
                if int(line.split("-")[0], 16) <= at < int(line.split("-")[1].split()[0], 16)
            ]
            assert [line.split()[1] for line in lines] == ["r--s"]
        peer = a.peer()
        peer.epoch ^= 1
        with (
            pytest.raises(MapError, match="this is instance 'a', epoch") as error,
            mapped.map(peer),
        ):
            pass
        assert error.value.cause == "peer_dead"
        mapped.close()


def test_what_the_share_socket_hands_out_cannot_be_written(run_dir):
    with (
        Instance("a", run_dir, segments=2) as a,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client,
    ):
        client.settimeout(10)
        client.connect(a.supervisor.share_socket)
        client.sendall(wire.encode(Share("a", a.epoch, 0, first=1))[0])
        data, fds, _, _ = socket.recv_fds(client, 65536, 8)
        answer, _ = wire.decode([data])
        size = SEGMENT_SLOTS * LAYOUT.slot_bytes
        assert answer == Shared(a.epoch, 0, 0, [size, size], first=1)
        assert len(fds) == 1, "segments from `first` on"
        with pytest.raises(PermissionError):
            mmap.mmap(fds[0], size, access=mmap.ACCESS_WRITE)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.pwrite(fds[0], b"x", 0)
        os.close(fds[0])


def test_share_socket_refuses_other_messages_and_is_private(run_dir):
    with Instance("a", run_dir) as a:
        path = a.supervisor.share_socket
        assert os.stat(path).st_mode & 0o777 == 0o600
        for request in (b"\xff\x00", wire.encode(Ping(1))[0], wire.encode(Share("a", 1, 5))[0]):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
                client.settimeout(10)
                client.connect(path)
                client.sendall(request)
                data, fds, _, _ = socket.recv_fds(client, 65536, 8)
                assert wire.decode([data])[0].error
                assert fds == []


def test_the_mover_listens_on_loopback_only(pair):
    for instance in pair:
        pid = instance.supervisor.pid
        inodes = {os.readlink(f) for f in Path(f"/proc/{pid}/fd").iterdir() if f.exists()}
        addresses = set()
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                    addresses.add(fields[1].split(":")[0])
        assert addresses == {"0100007F"}


def test_nixl_is_in_the_mover_and_nowhere_else(pair):
    for instance in pair:
        maps = Path(f"/proc/{instance.supervisor.pid}/maps").read_text()
        assert "libnixl_capi" in maps and "libucp" in maps
        assert "torch" not in maps
        status = Path(f"/proc/{instance.supervisor.pid}/status").read_text()
        anonymous = int(status.split("RssAnon:")[1].split()[0]) + int(
            status.split("RssFile:")[1].split()[0]
        )
        assert anonymous <= MOVER_MIB * 1024, "KiB, without the pool's own pages"
    ours = Path("/proc/self/maps").read_text()
    assert "nixl" not in ours.replace("test_nixl", "") and "libuc" not in ours


def test_the_mover_imports_neither_torch_nor_vllm_nor_nixl():
    code = (
        "import sys, lmkv.mover.main; "
        "print(sorted({m.split('.')[0] for m in sys.modules} & "
        "{'torch', 'vllm', 'nixl', 'nixl_cu12', 'nixl_cu13', 'numpy'}))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_bad_messages_are_answered_and_the_mover_goes_on(run_dir):
    with Instance("a", run_dir) as a:
        a.agent.send_multipart([b"\xc1 rubbish"])
        assert isinstance(a.receive()[0], Refused)
        a.agent.send_multipart([b"\x81\xa4type\xa5later"])
        assert a.receive()[0] == Unsupported("later")
        a.send(Share("a", 1, 0))
        assert a.receive()[0] == Unsupported("share")
        a.send(Pull(1, a.peer(), 1.0, LAYOUT.fingerprint), key(0), place(0), counters(1))
        answer, _ = a.receive()
        assert isinstance(answer, Refused) and "3 frames behind the message" in answer.message
        a.pull(2, a.peer(), [(0, 0, 1)], [(SLOTS, 1)])  # no such slot here
        answer, _ = a.receive()
        assert isinstance(answer, Alarm) and answer.kind == "pull"
        assert pulled(a, 2)[1] == [MOVER_DOWN]
        a.pull(3, a.peer(nixl_metadata=b"of nobody"), [(0, 0, 1)], [(0, 1)])
        answer, results = pulled(a, 3)
        assert (results, answer.stale) == ([PEER_DEAD], True)
        a.pull(4, a.peer(nixl_metadata=b""), [(0, 0, 1)], [(0, 1)])
        assert pulled(a, 4)[1] == [PEER_DEAD]
        assert a.deaths() == 0


def test_a_job_that_was_said_to_have_ended_never_begins(pair):
    a, b = pair
    a.write(0, n=0, counter=1)
    b.send(Limbo(7))  # its Pull is still on its way
    assert b.receive()[0] == LimboEnded(0, 7)
    b.pull(7, a.peer(), [(0, 0, 1)], [(0, 1)])
    assert pulled(b, 7)[1] == [MOVER_DOWN]
    b.pull(8, a.peer(), [(0, 0, 1)], [(0, 1)])
    assert pulled(b, 8)[1] == [GOOD]


def test_connect_ahead_then_pull(pair):
    a, b = pair
    a.write(0, n=0, counter=1)
    b.send(Connect(a.peer()))
    b.pull(1, a.peer(), [(0, 0, 1)], [(0, 1)])
    assert pulled(b, 1)[1] == [GOOD]


@pytest.fixture(params=["missing", "untested"])
def without_nixl(request, tmp_path, monkeypatch):
    """A package of that name comes first on the path, with no library, or of another version."""
    (tmp_path / "nixl_cu13").mkdir()
    (tmp_path / "nixl_cu13" / "__init__.py").write_text("raise SystemExit('imported')")
    version = "1.5.1" if request.param == "missing" else "0.9.0"
    (tmp_path / f"nixl_cu13-{version}.dist-info").mkdir()
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    return "has no libnixl_capi.so" if request.param == "missing" else "0.9.0 is not tested"


def test_without_nixl_the_mover_shares_and_says_what_to_install(run_dir, without_nixl):
    with Instance("a", run_dir) as a:
        state = a.states[-1]
        assert without_nixl in state.error and "pip install 'lmkv[nixl]'" in state.error
        assert state.nixl_metadata == b""
        a.write(0, n=0, counter=1)
        mapped = MappedPeers(LAYOUT.granule_bytes)
        with mapped.map(a.peer()) as pool:
            at = pool.slot_address(place(0))
            assert _native.check_slot(at, LAYOUT, key(0), generation(a.epoch, 1)) == GOOD
        mapped.close()
        a.pull(1, a.peer(), [(0, 0, 1)], [(1, 1)])
        assert pulled(a, 1)[1] == [MOVER_DOWN]


def test_an_unknown_data_interface_is_named(run_dir):
    with Instance("a", run_dir, data_interface="nope0") as a:
        assert "data interface's name" in a.states[-1].error
        assert a.states[-1].nixl_metadata == b""


def test_busy_data_ports_are_named(run_dir):
    """UCX would look for a free one for ever."""
    with busy_ports(64) as ports, Instance("a", run_dir, data_ports=ports) as a:
        assert f"data_ports = {ports!r}: at 127.0.0.1 fewer than 2" in a.states[-1].error
        assert a.states[-1].nixl_metadata == b""
        a.pull(1, a.peer(), [(0, 0, 1)], [(1, 1)])
        assert pulled(a, 1)[1] == [MOVER_DOWN]
