"""A controller and the engines that share through it, for tests. All waits have deadlines."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.ports import free_port
from tests.vllm.engine import Engine, Output, Zygote

READY_S = 180.0
HEARD, HEARD_S = "tests.vllm.inside:heard", 1.0  # of a controller that was stopped
NIXL = {"lmkv": {"transfer": "nixl"}}  # a request's own wishes
MAPPED = {"lmkv": {"transfer": "mapped"}}
# Deadlines that no busy machine meets by chance, and pulls that no measured rate decides.
GENEROUS = {
    "pull": "always",
    "locate_deadline": 5.0,
    "pull_deadline_min": 10.0,
    "pull_deadline_max": 20.0,
    "connect_deadline": 10.0,
}


def hits(output: Output) -> dict[str, int]:
    """Tokens by cause, of those causes that there were."""
    return {k: v for k, v in output.kv_transfer_params["lmkv"]["hit_tokens"].items() if v}


def misses(output: Output) -> dict[str, int]:
    return {k: v for k, v in output.kv_transfer_params["lmkv"]["miss_tokens"].items() if v}


class Cluster:
    """`web`: with the controller's web process, at `http`."""

    def __init__(self, zygote: Zygote, model: Path, folder: Path, web: bool = False) -> None:
        self._zygote, self._model, self.folder = zygote, model, folder
        self._port = free_port()
        self.ports = self._port, self._port + 1  # state, query
        self.address = f"tcp://127.0.0.1:{self._port}"
        self._web = free_port(1) if web else 0
        self.http = f"http://127.0.0.1:{self._web}"
        self._runs = Path(f"/tmp/lmkv-test-{os.getpid()}")  # paths of sockets are short
        self._runs.mkdir(mode=0o700, exist_ok=True)
        self.run_dir = str(self._runs)
        self._plain: Engine | None = None
        self.controller = self.start_controller()

    def start_controller(self) -> subprocess.Popen[bytes]:
        log = open(self.folder / "controller.log", "ab")  # noqa: SIM115 (the process's)
        web = ["--http-port", str(self._web)] if self._web else ["--no-web"]
        command = [sys.executable, "-m", "lmkv.cli.main", "controller", *web]
        self.controller = subprocess.Popen(
            [*command, "--port", str(self._port)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        log.close()
        return self.controller

    def start(
        self,
        name: str,
        extra: dict[str, Any] | None = None,
        only: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> Engine:
        """`extra` settings beside the usual ones, or `only` these and the cluster's addresses;
        `model` where it is not the cluster's, `beside` for the connector that shares the engine."""
        usual = {"pool_gib": 0.3, "instance_id": name, **GENEROUS, **(extra or {})}
        settings = {
            "controllers": self.address,
            "run_dir": str(self._runs),
            **(usual if only is None else only),
        }
        transfer = {
            "kv_connector": "LmkvConnector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": settings,
        }
        beside = arguments.pop("beside", None)
        if beside is not None:
            transfer = {
                "kv_connector": "MultiConnector",
                "kv_role": "kv_both",
                "kv_connector_extra_config": {"connectors": [transfer, beside]},
            }
        arguments.setdefault("enable_prefix_caching", False)
        model = arguments.pop("model", self._model)
        return self._zygote.engine(name, model, kv_transfer_config=transfer, **arguments)

    def reference(self, tokens: list[int]) -> list[int]:
        """What an engine without lmkv answers."""
        if self._plain is None:
            self._plain = self._zygote.engine("plain", self._model, enable_prefix_caching=False)
        return self._plain.generate(tokens).tokens

    def wait_ready(self, *engines: Engine) -> None:
        """Registered, pools usable, movers there, and each known to the controller."""
        for engine in engines:  # its own deadline
            engine.wait_ready()
        self.wait(
            lambda: all(
                state["usable"] and state["movers"] and state["ready"]
                for state in map(self._state, engines)
            )
        )
        for engine in engines:
            self.wait(lambda e=engine: e.call(HEARD, 5.0))  # type: ignore[misc]

    def settle(self, *engines: Engine) -> None:
        """Stores have ended, and a controller that is there has heard of them."""
        self.wait(lambda: all(not self._state(e)["pending"]["stores"] for e in engines))
        for engine in engines:
            engine.call(HEARD, HEARD_S)

    def wait(self, true: Callable[[], bool]) -> None:
        end = time.monotonic() + READY_S
        while not true():
            assert time.monotonic() < end, "not ready in time"
            time.sleep(0.05)

    def _state(self, engine: Engine) -> dict[str, Any]:
        return engine.call("tests.vllm.inside:state")

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self._zygote.stop_engines()
        self.controller.terminate()
        self.controller.wait(10)
        shutil.rmtree(self._runs, ignore_errors=True)
