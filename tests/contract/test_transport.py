"""One contract for every transport: register -> metadata -> connect -> read -> poll.

The agents live in driver processes, so that a holder can be killed and UCX never runs here.
`loopback`'s two agents share one process; its death is a close.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from lmkv import _native
from lmkv.worker.supervise import MoverSettings, environment

PENDING, DONE, FAILED = (
    _native.TransferState.PENDING,
    _native.TransferState.DONE,
    _native.TransferState.FAILED,
)
MIB = 1 << 20


class Driver:
    def __init__(self, env: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("transport_driver.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
        )

    def __call__(self, function: str, *arguments: object):
        pickle.dump((function, arguments), self.process.stdin)
        self.process.stdin.flush()
        ok, value = pickle.load(self.process.stdout)
        if not ok:
            raise value
        return value

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


class Pair:
    """A holder `h` of `MIB` random bytes and a reader `r` of as many zeros."""

    def __init__(self, name: str) -> None:
        self.kind = "loopback" if name == "loopback" else "nixl"
        settings = MoverSettings("", nixl_tls="tcp,self" if name == "nixl-tcp" else "")
        env = environment(settings, os.environ)
        self.holder = Driver(env)
        self.reader = self.holder if self.kind == "loopback" else Driver(env)
        self.holder("open_agent", self.kind, "h", True)
        self.reader("open_agent", self.kind, "r", False)
        self.theirs = self.holder("allocate", "theirs", MIB, 1)
        self.ours = self.reader("allocate", "ours", MIB, 0)
        self.h("register", self.theirs, MIB)
        self.r("register", self.ours, MIB)

    def h(self, method: str, *arguments: object):
        return self.holder("call", "h", method, *arguments)

    def r(self, method: str, *arguments: object):
        return self.reader("call", "r", method, *arguments)

    def connect(self) -> str:
        return self.r("connect", self.h("metadata"))

    def wait(self, transfer: int, deadline: float = 10.0) -> int:
        return self.reader("wait", "r", transfer, deadline)

    def end_holder(self) -> None:
        if self.kind == "loopback":
            self.h("close")
        else:
            self.holder.kill()

    def close(self) -> None:
        for driver in {self.holder, self.reader}:
            if driver.process.poll() is None:
                driver.kill()


NIXL = [pytest.param(f"nixl-{way}", marks=pytest.mark.nixl) for way in ("cma", "tcp")]


@pytest.fixture(params=["loopback", *NIXL])
def pair(request):
    pair = Pair(request.param)
    yield pair
    pair.close()


def test_read_brings_the_bytes_range_by_range(pair):
    peer = pair.connect()
    assert peer == "h"
    local, remote = pair.ours, pair.theirs
    transfer = pair.r("read", peer, [local, local + 8192], [remote + 4096, remote], [4096, 64])
    assert pair.r("pending") == 1
    assert pair.wait(transfer) == DONE
    assert pair.r("pending") == 0
    theirs, ours = pair.holder("content", "theirs"), pair.reader("content", "ours")
    assert ours[:4096] == theirs[4096:8192]
    assert ours[8192:8256] == theirs[:64]
    assert ours[4096:8192] == bytes(4096)
    assert ours[8256:] == bytes(MIB - 8256)


def test_a_finished_number_is_not_polled_again(pair):
    transfer = pair.r("read", pair.connect(), [pair.ours], [pair.theirs], [64])
    assert pair.wait(transfer) == DONE
    with pytest.raises(ValueError, match=f"transfer {transfer} is not under way"):
        pair.r("poll", transfer)


def test_read_stays_inside_registered_memory_on_both_sides(pair):
    peer = pair.connect()
    with pytest.raises(ValueError, match="not in one registered region"):
        pair.r("read", peer, [pair.ours + MIB - 32], [pair.theirs], [64])
    with pytest.raises(RuntimeError):
        pair.r("read", peer, [pair.ours], [pair.theirs + MIB - 32], [64])
    assert pair.reader("content", "ours") == bytes(MIB)


def test_a_peer_that_grows_is_connected_again(pair):
    """A pool's segments are registered one by one; new metadata adds to the same agent."""
    peer = pair.connect()
    more = pair.holder("allocate", "more", 4096, 2)
    pair.h("register", more, 4096)
    assert pair.connect() == peer
    assert pair.wait(pair.r("read", peer, [pair.ours], [more], [4096])) == DONE
    assert pair.reader("content", "ours")[:4096] == pair.holder("content", "more")


def test_read_from_a_dead_peer_fails_in_time(pair):
    peer = pair.connect()
    assert pair.wait(pair.r("read", peer, [pair.ours], [pair.theirs], [4096])) == DONE
    pair.end_holder()
    try:
        transfer = pair.r("read", peer, [pair.ours], [pair.theirs], [MIB])
    except RuntimeError:
        return
    assert pair.wait(transfer) == FAILED


def test_a_dead_peer_can_be_forgotten(pair):
    peer = pair.connect()
    pair.end_holder()
    pair.r("forget", peer)
    with pytest.raises(ValueError, match='"h" is not connected'):
        pair.r("read", peer, [pair.ours], [pair.theirs], [64])


def test_no_peer_is_forgotten_with_a_read_under_way(pair):
    peer = pair.connect()
    transfer = pair.r("read", peer, [pair.ours], [pair.theirs], [4096])
    with pytest.raises(ValueError, match="1 READs under way"):
        pair.r("forget", peer)
    with pytest.raises(ValueError, match="1 READs under way"):
        pair.r("close")
    assert pair.wait(transfer) == DONE
    pair.r("forget", peer)
    assert pair.connect() == peer
    assert pair.wait(pair.r("read", peer, [pair.ours], [pair.theirs], [64])) == DONE


def test_unknown_metadata_is_refused(pair):
    with pytest.raises(RuntimeError, match="metadata"):
        pair.r("connect", b"not of any agent")
    with pytest.raises(ValueError, match="metadata is empty"):
        pair.r("connect", b"")


def test_misuse_is_named(pair):
    peer = pair.connect()
    with pytest.raises(ValueError, match="overlaps registered memory"):
        pair.r("register", pair.ours + 4096, 64)
    with pytest.raises(ValueError, match="no ranges"):
        pair.r("read", peer, [], [], [])
    with pytest.raises(ValueError, match="2 local, 1 remote addresses"):
        pair.r("read", peer, [pair.ours, pair.ours], [pair.theirs], [64])
    with pytest.raises(ValueError, match='"nobody" is not connected'):
        pair.r("forget", "nobody")


def test_self_test_reads_from_oneself(pair):
    pair.reader("open_agent", pair.kind, "serve", True)
    pair.reader("self_test", "r", "serve")


def test_nixl_listens_where_it_is_told(pair):
    listeners = pair.holder("listeners")
    assert (listeners == []) == (pair.kind == "loopback")
    assert {address for address, _ in listeners} <= {"127.0.0.1"}
    assert all(20000 <= port < 30000 for _, port in listeners)


def test_kinds_and_a_missing_library_are_named():
    with pytest.raises(ValueError, match='kind "rdma": nixl and loopback are allowed'):
        _native.Transport("rdma", "x")
    with pytest.raises(RuntimeError, match=r"pip install 'lmkv\[nixl\]'"):
        _native.Transport("nixl", "x")
    with pytest.raises(RuntimeError, match=r"NIXL does not load: /nowhere/libnixl_capi\.so"):
        _native.Transport("nixl", "x", "/nowhere/libnixl_capi.so")
