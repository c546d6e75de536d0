"""Real vLLM engines for tests, each a process driven over a pipe.

    with Zygote(folder) as zygote:            # imports vLLM once: some 15 s
        a = zygote.engine("a", model)         # a fork: 3 to 5 s
        a.generate(prompt).tokens

An engine is vLLM's in-process `LLM` (no API server, no step between calls). Every wait has a
deadline; an engine that fails raises with the end of its log. `kill` is SIGKILL to its group, as a
crash; `stop` is a clean end.
"""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
START_S = 240.0  # engines of several ranks, on a busy machine
ANSWER_S = 120.0
BLOCK = 64
NAPS = ROOT / "tests/vllm/naps"  # its sitecustomize says why

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
ARGUMENTS: dict[str, Any] = {
    "skip_tokenizer_init": True,
    "enforce_eager": True,
    "dtype": "float32",
    "block_size": BLOCK,
    "max_model_len": 2048,
    "kv_cache_memory_bytes": 256 << 20,
    "seed": 0,
    "disable_log_stats": False,
}


@dataclass(frozen=True)
class Output:
    tokens: list[int]
    num_cached_tokens: int
    kv_transfer_params: dict[str, Any]
    finish_reason: str


class EngineError(Exception):
    """What went wrong, with the end of the engine's log."""


class Engine:
    """One engine. Its `environment` and `arguments` are those of vLLM's `LLM`."""

    def __init__(self, name: str, pid: int, pipe: Connection, log: Path) -> None:
        self.name = name
        self.pid = pid
        self.log = log
        self._pipe = pipe
        self._ready = False
        self._ended = False

    def wait_ready(self, seconds: float = START_S) -> Engine:
        """Engines start side by side: start all, then wait for each."""
        if not self._ready:
            self._receive(seconds)
            self._ready = True
        return self

    def generate(
        self,
        prompt: Sequence[int],
        max_tokens: int = 8,
        kv_transfer_params: Mapping[str, Any] | None = None,
        salt: str | None = None,
        rank: int = 0,
    ) -> Output:
        """`rank` is the engine's, of data parallelism."""
        (output,) = self.generate_all(
            [
                {
                    "prompt": list(prompt),
                    "max_tokens": max_tokens,
                    "kv_transfer_params": kv_transfer_params,
                    "salt": salt,
                    "rank": rank,
                }
            ]
        )
        return output

    def generate_all(self, requests: Sequence[Mapping[str, Any]]) -> list[Output]:
        """Several at once; see zygote.Commands.generate."""
        return [Output(**answer) for answer in self._ask("generate", list(requests))]

    def metrics(self) -> list[tuple[str, dict[str, str], float]]:
        return self._ask("metrics")

    def tokens_by_cause(self) -> dict[str, float]:
        """lmkv's hit and miss tokens so far, as in vLLM's `/metrics`."""
        names = ("vllm:lmkv_hit_tokens_total", "vllm:lmkv_miss_tokens_total")
        found = {labels["cause"]: v for name, labels, v in self.metrics() if name in names}
        return {cause: value for cause, value in found.items() if value}

    def reset_prefix_cache(self) -> None:
        """Empty vLLM's own cache; lmkv's pool keeps what it has."""
        assert self._ask("reset_prefix_cache")

    def call(self, function: str, *arguments: Any, **named: Any) -> Any:
        """Run `module:function(llm, *arguments, **named)` inside the engine's process."""
        return self._ask("call", function, arguments, named)

    def alive(self) -> bool:
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def kill(self) -> None:
        """As a crash: SIGKILL to the engine and all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._wait_end(10)

    def stop(self, seconds: float = 20) -> None:
        """A clean end; a kill when that takes too long."""
        if self._ended:
            return
        with suppress(OSError):
            self._pipe.send(("stop", ()))
        if not self._wait_end(seconds):
            self.kill()
        with suppress(ProcessLookupError):  # what a dead engine left
            os.killpg(self.pid, signal.SIGKILL)

    def log_end(self, lines: int = 30) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _wait_end(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self.alive():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        if not self._ended:
            self._ended = True
            self._pipe.close()
        return True

    def _ask(self, name: str, *arguments: Any) -> Any:
        self.wait_ready()
        self._pipe.send((name, arguments))
        return self._receive(ANSWER_S)

    def _receive(self, seconds: float) -> Any:
        if not self._pipe.poll(seconds):
            raise EngineError(f"{self.name}: no answer in {seconds:.0f} s\n{self.log_end()}")
        try:
            good, answer = self._pipe.recv()
        except EOFError:
            raise EngineError(f"{self.name} died\n{self.log_end()}") from None
        if not good:
            raise EngineError(f"{self.name}: {answer}\n{self.log_end()}")
        return answer


class Zygote:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.engines: list[Engine] = []
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        script = Path(__file__).with_name("zygote.py")
        self._log = open(folder / "zygote.log", "ab")  # noqa: SIM115 (closed with the process)
        # Hooks (`call`) are named from the root, as the tests are.
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        own = {"VLLM_CACHE_ROOT": str(folder / "cache"), "PYTHONPATH": path}
        self._process = subprocess.Popen(
            [sys.executable, str(script), str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=os.environ | ENVIRONMENT | own,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        theirs.close()
        self._control.settimeout(START_S)
        if self._control.recv(100) != b"ready":
            raise EngineError("the zygote died: " + (folder / "zygote.log").read_text()[-2000:])

    def engine(
        self,
        name: str,
        model: Path,
        environment: Mapping[str, str] | None = None,
        fork: bool = True,
        **arguments: Any,
    ) -> Engine:
        """Start an engine and do not wait; `kv_transfer_config` as a dict. A core for each rank,
        which is forked, or spawned as vLLM does it on CPUs: that takes it longer to start."""
        kinds = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
        ranks = math.prod(arguments.get(kind, 1) for kind in kinds)
        cores = sorted(os.sched_getaffinity(0))
        mine = [cores[(len(self.engines) + rank) % len(cores)] for rank in range(ranks)]
        log = self.folder / f"{name}-{len(self.engines)}.log"
        spec = {
            "arguments": ARGUMENTS | {"model": str(model)} | arguments,
            "environment": {"VLLM_CPU_OMP_THREADS_BIND": "|".join(map(str, mine))}
            | dict(environment or {}),
            "log": str(log),
            "naps": str(NAPS) if ranks > 1 else "",
            "fork": fork,
        }
        ours, theirs = socket.socketpair()
        socket.send_fds(self._control, [json.dumps(spec).encode()], [theirs.fileno()])
        theirs.close()
        pid = int(self._control.recv(100))
        engine = Engine(name, pid, Connection(ours.detach()), log)
        self.engines.append(engine)
        return engine

    def stop_engines(self) -> None:
        for engine in self.engines:
            engine.stop()
        self.engines.clear()

    def close(self) -> None:
        self.stop_engines()
        self._control.close()
        self._process.terminate()
        self._process.wait(10)
        self._log.close()

    def __enter__(self) -> Zygote:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
