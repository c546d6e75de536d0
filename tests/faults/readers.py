"""Readers killed in the middle of a READ over TCP, and whether their holder goes on serving.

The holder is a real engine. A reader is a mover over a pool of this process, without vLLM: it asks
for hundreds of the holder's chunks at once, and is killed when some have come and others have not.
Another one, which the holder has never seen, then pulls a chunk, compared byte by byte; it is the
next to die. UCX may take the holder's mover along, and with each tenth reader it is killed to be
certain: its worker starts another, under a new address that the controller tells.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmkv import _native
from lmkv.core import geometry
from lmkv.core.client import Client
from lmkv.core.messages import Message, Peer, PeerInfo, Pull, Pulled, PullPeer, PullResult

from tests.contract.mover_instance import Instance, counters, place
from tests.vllm.cluster import Cluster
from tests.vllm.engine import Engine, Zygote
from tests.vllm.models import prompt

GOAL_S = 0.5
CHUNKS = 512  # of a reader's pool: what it asks for takes long enough to die in the middle
TRY_S = 0.25  # a pull's shortest deadline
EVERY = 10  # readers between two prompts, and between two deaths of the holder's mover
REST_S = 20.0


@dataclass
class Outcome:
    served_s: list[float] = field(default_factory=list)  # from each kill to a chunk for the next
    wrong: int = 0  # chunks with other bytes, or answers with other tokens
    killed: int = 0  # movers of the holder
    restarts: int = 0  # of it
    left: dict[str, int] = field(default_factory=dict)  # counts that differ at rest

    def __str__(self) -> str:
        times = sorted(self.served_s)
        late = sum(seconds > GOAL_S for seconds in times)
        return (
            f"{len(times)} readers killed in mid-READ: the holder served the next one after "
            f"{1000 * statistics.median(times):.0f} ms (median), {1000 * times[-1]:.0f} ms at "
            f"most, {late} times later than {1000 * GOAL_S:.0f} ms; its mover was killed "
            f"{self.killed} times with one, and restarted {self.restarts} times"
        )


@dataclass
class _Slots:
    """What the holder has, as three arrays, and its bytes."""

    keys: bytes
    places: bytes
    counters: bytes
    bytes: list[bytes]

    def repeated(self, n: int) -> list[bytes]:
        have = len(self.bytes)
        keys = b"".join(self.keys[16 * (i % have) :][:16] for i in range(n))
        places = b"".join(self.places[8 * (i % have) :][:8] for i in range(n))
        return [keys, places, b"".join(self.counters[4 * (i % have) :][:4] for i in range(n))]


class Lab:
    """`Lab(zygote, model, folder).run(100)`; close it."""

    def __init__(self, zygote: Zygote, model: Path, folder: Path) -> None:
        self._cluster = Cluster(zygote, model, folder)
        self._runs = tempfile.mkdtemp(prefix="lmkv-readers-", dir="/tmp")
        settings = {"nixl_tls": "tcp"}
        self.holder: Engine = self._cluster.start("holder", extra=settings)
        self._cluster.wait_ready(self.holder)
        self._prompt = prompt(4000, 1800)
        self._expected = self.holder.generate(self._prompt).tokens
        self._cluster.settle(self.holder)
        text, keys, places, numbers, payloads = self._call("slots")
        self._text = text
        self._layout = geometry.slot_layout(text)
        self._slots = _Slots(keys, places, numbers, payloads)
        self._pool = _native.Pool(self._layout.granule_bytes, CHUNKS, CHUNKS)
        self._pool.add_segment()
        self._client = Client(self._cluster.address)
        self._job = 0

    def _call(self, name: str, *arguments: Any) -> Any:
        return self.holder.call(f"tests.faults.at_steps:{name}", *arguments)

    def run(self, readers: int) -> Outcome:
        outcome = Outcome()
        victim = self._reader()
        self._pull_one(victim)
        before, mover = self._counts(victim), self._call("mover_generation")
        for number in range(1, readers + 1):
            fresh = self._reader()
            crash = number % EVERY == EVERY // 2
            pids = [self._call("mover_pid")] if crash else []
            self._begin_to_pull(victim)
            killed = time.monotonic()
            self._kill(victim, pids)
            outcome.killed += crash
            outcome.wrong += not self._pull_one(fresh)
            outcome.served_s.append(time.monotonic() - killed)
            victim = fresh
            if number % EVERY == 0:
                outcome.wrong += self.holder.generate(self._prompt).tokens != self._expected
        outcome.restarts = self._call("mover_generation") - mover
        outcome.left = self._at_rest(victim, before)
        victim.__exit__()
        return outcome

    # ------------------------------------------------------------ readers

    def _reader(self) -> Instance:
        reader = Instance(
            "reader", self._runs, text=self._text, pool=self._pool, nixl_tls="tcp,self"
        )
        return reader.__enter__()

    def _peer(self) -> PullPeer:
        answer, _ = self._client.ask(Peer(1, "holder"))
        assert isinstance(answer, PeerInfo)
        return PullPeer(answer.instance, answer.epoch, answer.data_version, answer.ranks[0])

    def _post(self, reader: Instance, n: int, seconds: float) -> None:
        self._job += 1
        own = b"".join(map(place, range(n))), counters(*range(1, n + 1))
        pull = Pull(self._job, self._peer(), seconds, self._layout.fingerprint)
        reader.send(pull, *self._slots.repeated(n), *own)

    def _begin_to_pull(self, reader: Instance) -> None:
        """Until its first chunk has come."""
        for slot in (0, CHUNKS - 1):
            self._clear(slot)
        self._post(reader, CHUNKS, 10.0)
        end = time.monotonic() + REST_S
        while not self._there(0):
            assert time.monotonic() < end, "nothing comes"

    def _kill(self, reader: Instance, others: list[int]) -> None:
        assert reader.supervisor.pid is not None
        for pid in (reader.supervisor.pid, *others):
            os.kill(pid, signal.SIGKILL)
        reader.supervisor.stop()  # no other one is wanted
        assert not reader.agent.poll(0), "it was killed too late: the pull had ended"
        assert not self._there(CHUNKS - 1), "it was killed too late: all had come"
        reader.__exit__()

    def _pull_one(self, reader: Instance) -> bool:
        """Until it has a chunk; whether that is the holder's, byte by byte."""
        end = time.monotonic() + REST_S
        while time.monotonic() < end:
            self._clear(0)
            self._post(reader, 1, TRY_S)
            message, frames = self._answer(reader)
            if isinstance(message, Pulled) and frames[0][0] == PullResult.GOOD:
                return bytes(self._own(0)) == self._slots.bytes[0]
            time.sleep(0.005)
        raise AssertionError("the holder serves nobody any more")

    def _answer(self, reader: Instance) -> tuple[Message, list[bytes]]:
        while True:
            message, frames = reader.receive()
            if isinstance(message, Pulled) and message.job == self._job:
                return message, frames

    def _clear(self, slot: int) -> None:
        ctypes.memset(self._own(slot), 0, self._layout.payload_bytes)

    def _there(self, slot: int) -> bool:
        """Whether the end of the payload has come."""
        return any(self._own(slot)[-64:])

    def _own(self, slot: int) -> Any:
        """A view of the payload in the readers' pool."""
        at = self._pool.slot_address(place(slot)) + self._layout.payload_offset
        return (ctypes.c_uint8 * self._layout.payload_bytes).from_address(at)

    # ------------------------------------------------------------ leftovers

    def _counts(self, reader: Instance) -> dict[str, int]:
        """Of the holder's engine and mover, while one reader is connected."""
        assert self._pull_one(reader)
        mover = self._call("mover_pid")
        fds = [os.readlink(fd) for fd in Path(f"/proc/{mover}/fd").iterdir() if fd.is_symlink()]
        return {
            **self._call("counts"),
            "mover's sockets": sum(fd.startswith("socket:") for fd in fds),
            "mover's fds": len(fds),
            "mover's threads": len(os.listdir(f"/proc/{mover}/task")),
            "sockets in run_dir": len(os.listdir(self._cluster.run_dir)),
        }

    def _at_rest(self, reader: Instance, before: dict[str, int]) -> dict[str, int]:
        end = time.monotonic() + REST_S
        while True:
            now = self._counts(reader)
            more = {k: n - before[k] for k, n in now.items() if n != before[k]}
            if not more or time.monotonic() > end:
                return more
            time.sleep(0.5)

    def close(self) -> None:
        self._client.__exit__(None, None, None)
        self._cluster.__exit__()
        self._pool.close()
        shutil.rmtree(self._runs, ignore_errors=True)


@contextlib.contextmanager
def lab(zygote: Zygote, model: Path, folder: Path) -> Iterator[Lab]:
    made = Lab(zygote, model, folder)
    try:
        yield made
    finally:
        made.close()
