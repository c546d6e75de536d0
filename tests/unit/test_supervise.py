"""One mover is kept running: back-off, environment, sockets, and how both ends die."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from lmkv import _native
from lmkv.core.backoff import Backoff
from lmkv.worker.supervise import (
    HEALTHY,
    MoverSettings,
    Supervisor,
    environment,
    remove_stale_sockets,
)

LAYOUT = _native.SlotLayout(4, 16384, 1, 7)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_restart_at_once_then_after_longer_and_longer_pauses():
    clock = Clock()
    backoff = Backoff(clock, HEALTHY)
    delays = []
    for _ in range(10):
        backoff.born()
        clock.now += 0.9
        delays.append(backoff.died())
    assert delays == [0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10]
    backoff.born()
    clock.now += 1  # a healthy life
    assert backoff.died() == 0


def test_the_environment_is_lmkvs_own():
    base = {"PATH": "/bin", "UCX_NET_DEVICES": "all", "UCX_TLS": "rc", "NIXL_PLUGIN_DIR": "/x"}
    env = environment(MoverSettings("/r", data_interface="eth1", data_ports="1000-1100"), base)
    assert env["PATH"] == "/bin"
    assert env["UCX_NET_DEVICES"] == "eth1"
    assert env["UCX_TCP_PORT_RANGE"] == "1000-1100"
    assert env["UCX_MEM_MMAP_HOOK_MODE"] == "none"
    assert env["UCX_TCP_TX_SEG_SIZE"] == env["UCX_TCP_RX_SEG_SIZE"] == "512k"
    assert "UCX_TLS" not in env and "NIXL_PLUGIN_DIR" not in env
    assert environment(MoverSettings("/r", nixl_tls="tcp"), base)["UCX_TLS"] == "tcp"


@pytest.mark.parametrize(("listed", "seen"), [("", "1"), ("GPU-aa,GPU-bb", "GPU-bb"), ("3,5", "5")])
def test_a_mover_of_a_pool_on_a_gpu_sees_that_one(listed: str, seen: str) -> None:
    base = {"CUDA_VISIBLE_DEVICES": listed} if listed else {}
    env = environment(MoverSettings("/r", gpu=1), base)
    assert (env["CUDA_VISIBLE_DEVICES"], env["UCX_TLS"]) == (seen, "^cuda_ipc")
    assert env["UCX_MEMTYPE_CACHE"] == "n"
    env = environment(MoverSettings("/r", gpu=1, nixl_tls="cma,tcp,self"), base)
    assert env["UCX_TLS"] == "cma,tcp,self,cuda_copy"
    assert "CUDA_VISIBLE_DEVICES" not in environment(MoverSettings("/r"), {})


def test_stale_sockets_go_and_live_ones_stay(run_dir):
    live = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    live.bind(f"{run_dir}/live.share")
    live.listen(1)
    for name, kind in (("dead.share", socket.SOCK_SEQPACKET), ("dead.mover", socket.SOCK_STREAM)):
        with socket.socket(socket.AF_UNIX, kind) as dead:
            dead.bind(f"{run_dir}/{name}")
    Path(run_dir, "notes.share").write_text("not a socket")
    remove_stale_sockets(run_dir)
    assert sorted(os.listdir(run_dir)) == ["live.share", "notes.share"]
    live.close()


def test_a_run_dir_too_long_for_a_socket_is_named(tmp_path):
    pool = _native.Pool(LAYOUT.granule_bytes, 4, 4)
    with pytest.raises(ValueError, match=r"run_dir '/x{100}': .* at most 100 are allowed"):
        Supervisor(pool, 0, "01234567", MoverSettings("/" + "x" * 100), lambda state: None)


class Seen:
    """What `on_state` was told, and waiting for it."""

    def __init__(self) -> None:
        self.states: list[object] = []
        self._changed = threading.Condition()

    def __call__(self, state: object) -> None:
        with self._changed:
            self.states.append(state)
            self._changed.notify_all()

    def wait(self, condition, deadline: float = 60.0) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: condition(self.states), deadline), self.states


def supervisor(run_dir: str, seen: Seen) -> Supervisor:
    pool = _native.Pool(LAYOUT.granule_bytes, 4, 4)
    pool.add_segment()
    return Supervisor(pool, 0, "01234567", MoverSettings(run_dir), seen)


def test_stop_ends_the_mover_and_takes_its_sockets_along(run_dir):
    seen = Seen()
    one = supervisor(run_dir, seen)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stale:
        stale.bind(f"{run_dir}/89abcdef-0-4.mover")  # of a worker that was killed
    one.start()
    seen.wait(lambda states: states)
    pid = one.pid
    assert sorted(os.listdir(run_dir)) == ["01234567-0-1.mover", "01234567-0.share"]
    one.stop()
    assert os.listdir(run_dir) == []
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert None not in seen.states


def test_each_life_has_its_own_agent_and_socket(run_dir):
    seen = Seen()
    one = supervisor(run_dir, seen)
    one.attach("a", 5)
    one.start()
    seen.wait(lambda states: states)
    first, socket_path = one.pid, one.control_socket
    os.kill(first, signal.SIGKILL)
    seen.wait(lambda states: None in states and states[-1] is not None)
    assert one.pid != first
    assert one.control_socket != socket_path and not os.path.exists(socket_path)
    before, after = seen.states[0], seen.states[-1]
    assert before.nixl_metadata != after.nixl_metadata or not before.nixl_metadata
    assert after.epoch == 5, "it was attached without being asked"
    one.stop()


def test_a_mover_that_is_stopped_is_replaced_and_a_later_one_lives_on(run_dir, capfd):
    seen = Seen()
    one = supervisor(run_dir, seen)
    one.start()
    seen.wait(lambda states: states)
    first = one.pid
    os.kill(first, signal.SIGSTOP)
    for _ in range(2):  # the second one is late
        one.replace(1)
        seen.wait(lambda states: None in states and states[-1] is not None)
    assert one.pid != first and not _running(first)
    one.attach("a", 5)
    seen.wait(lambda states: states[-1] is not None)
    one.stop()
    assert seen.states.count(None) == 1
    assert capfd.readouterr().err.count("hangs in READs that timed out") == 1


def test_a_mover_that_cannot_go_on_says_one_sentence(run_dir, capfd):
    """Its share socket's place is taken by a folder."""
    seen = Seen()
    one = supervisor(run_dir, seen)
    os.mkdir(one.share_socket)
    one.start()
    seen.wait(lambda states: states.count(None) >= 2)
    os.rmdir(one.share_socket)
    seen.wait(lambda states: states[-1] is not None)  # back-off ends by itself
    one.stop()
    lines = [line for line in capfd.readouterr().err.splitlines() if "lmkv mover:" in line]
    assert lines and all("Address already in use" in line for line in lines)


def test_the_mover_dies_with_its_worker(run_dir):
    code = f"""
import sys, time
from lmkv import _native
from lmkv.worker.supervise import MoverSettings, Supervisor
pool = _native.Pool(_native.SlotLayout(4, 16384, 1, 7).granule_bytes, 4, 4)
one = Supervisor(pool, 0, "01234567", MoverSettings({run_dir!r}),
                 lambda state: print(one.pid, flush=True))
one.start()
time.sleep(600)
"""
    worker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid = int(worker.stdout.readline())
    os.kill(pid, signal.SIGSTOP)  # it cannot even see its socket close
    worker.kill()
    worker.wait()
    worker.stdout.close()
    end = time.monotonic() + 20
    while _running(pid):
        assert time.monotonic() < end, "the mover outlived its worker"
        time.sleep(0.01)


def _running(pid: int) -> bool:
    """Not even a zombie that nobody has waited for yet."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rsplit(")", 1)[1].split()[0] != "Z"
