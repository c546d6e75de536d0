"""A pool in a GPU's memory, as a mover opens it: probed, mapped, registered, and pulled into.

    opening = Opening(config, segment, image, open_agents)   # begins, in a thread of its own
    select(opening)                                          # readable: it has ended
    opened = opening.result()                                # or a sentence on why not

The probe is a process (gpu_probe.py). Then the pool is opened by its CUDA IPC handle, by the
driver's library alone, before NIXL's agents are made: UCX looks for GPUs as it starts.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from lmkv import _native
from lmkv.core.geometry import DEVICE
from lmkv.core.interfaces import link_rate
from lmkv.core.messages import GpuSegment, MoverConfig
from lmkv.mover import transport
from lmkv.mover.measured import Measured, refusal

PROBE_DEADLINE = 90.0  # seconds; two contexts and eight READs
MULTIPROCESSORS = 2  # that a pull's checks take from the engine at most


class Opened(NamedTuple):
    pool: _native.GpuPool
    agents: transport.Agents
    engine: _native.PullEngine


class NotPullable(Exception):
    """The text is for people."""


class Opening:
    def __init__(
        self,
        config: MoverConfig,
        segment: GpuSegment,
        image: bytes,
        open_agents: Callable[[], transport.Agents],
    ) -> None:
        """`image`: the kernels, as this GPU takes them. What `open_agents` raises is raised by
        `result`, but for NixlError."""
        self._config, self._segment, self._image = config, segment, image
        self._open_agents = open_agents
        self._found: Opened | str | Exception = "it has not ended"
        self._ended, self._end = os.pipe2(os.O_CLOEXEC)
        threading.Thread(target=self._run, name="lmkv-gpu", daemon=True).start()

    def fileno(self) -> int:
        return self._ended

    def result(self) -> Opened | str:
        """Once, when it has ended."""
        os.close(self._ended)
        if isinstance(self._found, Exception):
            raise self._found
        return self._found

    def _run(self) -> None:
        try:
            self._found = self._open()
        except (NotPullable, transport.NixlError) as error:
            self._found = str(error)
        except Exception as error:  # the mover's thread is told
            self._found = error
        os.close(self._end)

    def _open(self) -> Opened:
        if self._config.gpu_pulls == "never":
            raise NotPullable("the pool in the GPU's memory is not pullable: gpu_pulls = never")
        link = link_rate(self._config.data_interface)
        if why := refusal(measured(), link, judged=self._config.gpu_pulls == "auto"):
            raise NotPullable(why)
        try:
            gpu, pool = self._map()
            agents = self._open_agents()
            for agent in agents:
                agent.register(pool.address, self._config.slots * pool.slot_bytes, DEVICE)
            return Opened(pool, agents, _native.PullEngine(agents.pull, pool, gpu, MULTIPROCESSORS))
        except (RuntimeError, ValueError) as error:
            if isinstance(error, transport.NixlError):
                raise
            raise NotPullable(f"the pool in the GPU's memory is not pullable: {error}") from None

    def _map(self) -> tuple[_native.Gpu, _native.GpuPool]:
        config, segment = self._config, self._segment
        gpu = _native.Gpu(0)
        if gpu.bus_id != segment.bus_id:
            raise RuntimeError(f"the mover sees GPU {gpu.bus_id}, its worker's is {segment.bus_id}")
        gpu.load(self._image)
        memory = _native.GpuMemory(gpu, segment.size, segment.handle)
        pool = _native.GpuPool(memory, config.granule_bytes, config.slots)
        if memory.read(config.slots * pool.slot_bytes, len(segment.probe)) != segment.probe:
            raise RuntimeError("other bytes than the worker's are seen there")
        return gpu, pool


def measured() -> Measured:
    """By a probe of its own, which ends by itself or at its deadline."""
    words = [sys.executable, "-m", "lmkv.mover.gpu_probe"]
    quiet = subprocess.DEVNULL
    try:
        ran = subprocess.run(
            words,
            check=False,
            stdin=quiet,
            stdout=subprocess.PIPE,
            stderr=quiet,
            timeout=PROBE_DEADLINE,
        )
    except subprocess.TimeoutExpired:
        return Measured(error=f"its probe did not end in {PROBE_DEADLINE:g} s")
    except OSError as error:
        return Measured(error=f"its probe did not begin: {error}")
    try:
        return msgspec.json.decode(ran.stdout.splitlines()[-1], type=Measured)
    except (IndexError, ValueError):
        return Measured(error=f"its probe ended without an answer, with status {ran.returncode}")
