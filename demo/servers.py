"""The controller, the two vLLM servers and the router: how each is started, all on loopback."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from demo.client import MODEL, Client
from demo.processes import Process, Processes, free_ports
from tools.gpu_here import why_not

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
ROUTER = ROOT / ".venvs" / "router" / "bin" / "vllm-router"
BLOCK = 256  # lmkv's chunk, so that every hit resumes at the same token
START_S = 240.0
CONNECTOR = {"kv_connector": "LmkvConnector", "kv_role": "kv_both"}


@dataclass
class Cluster:
    """Servers `a` and `b`, and a router in front that asks them in turn."""

    a: Client
    b: Client
    router: Client
    processes: list[Process]
    controller: str | None = None
    dashboard: str | None = None


def start_controller(processes: Processes, run_dir: Path) -> tuple[Process, str, str]:
    """With the addresses of its state socket and of its pages."""
    port = free_ports(3)  # state, query, HTTP
    words = [str(BIN / "lmkv"), "controller", "--port", str(port)]
    process = processes.start("controller", words, {"LMKV_RUN_DIR": str(run_dir)})
    return process, f"tcp://127.0.0.1:{port}", f"http://127.0.0.1:{port + 2}/"


def device_words(on_gpu: bool) -> list[str]:
    """Both servers are on the first GPU, where torch has one: each has a third of it."""
    if not on_gpu:
        # Without AVX-512 oneDNN has no product of bfloat16s, and torch's own takes minutes.
        fast = "avx512f" in Path("/proc/cpuinfo").read_text()
        return ["--block-size", str(BLOCK), "--dtype", "auto" if fast else "float32"]
    return ["--block-size", "128", "--gpu-memory-utilization", "0.3"]


def start_server(
    processes: Processes, name: str, core: int, model: Path, controller: str | None, run_dir: Path
) -> tuple[Process, Client]:
    port = free_ports(1)
    words = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
        "--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(port),
        "--max-model-len", "8192", "--enforce-eager", "--enable-prompt-tokens-details",
        *device_words(why_not() is None),
    ]  # fmt: skip
    environment = {
        "VLLM_CPU_OMP_THREADS_BIND": str(core),
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CACHE_ROOT": str(model.parent / "cache"),
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    if controller:
        words += ["--kv-transfer-config", json.dumps(CONNECTOR)]
        environment |= {
            "LMKV_CONTROLLERS": controller,
            "LMKV_RUN_DIR": str(run_dir),
            "LMKV_POOL_GIB": "2",
            "LMKV_INSTANCE_ID": name,
            # Ten processes on two cores: an answer in 3 ms comes in 20 once in a while.
            "LMKV_LOCATE_DEADLINE": "0.1",
        }
    return processes.start(name, words, environment), Client(port)


def start_cluster(processes: Processes, model: Path, run_dir: Path, lmkv: bool) -> Cluster:
    """Start all and wait until the router answers."""
    started: list[Process] = []
    controller = dashboard = None
    tag = "lmkv" if lmkv else "plain"
    if lmkv:
        process, controller, dashboard = start_controller(processes, run_dir)
        started.append(process)
    cores = sorted(os.sched_getaffinity(0))
    clients = []
    for name, core in (("a", cores[0]), ("b", cores[1 % len(cores)])):
        process, client = start_server(processes, f"{tag}-{name}", core, model, controller, run_dir)
        started.append(process)
        clients.append(client)
    for process, client in zip(started[-2:], clients):
        process.wait_until(client.healthy, START_S)
    ports = free_ports(2)
    urls = [f"http://127.0.0.1:{client.port}" for client in clients]
    words = [
        str(ROUTER), "--host", "127.0.0.1", "--port", str(ports), "--policy", "round_robin",
        "--prometheus-host", "127.0.0.1", "--prometheus-port", str(ports + 1),
        "--log-level", "error", "--worker-urls", *urls,
    ]  # fmt: skip
    router = processes.start(f"{tag}-router", words, {})
    started.append(router)
    front = Client(ports)
    router.wait_until(front.healthy, 60)
    return Cluster(clients[0], clients[1], front, started, controller, dashboard)
