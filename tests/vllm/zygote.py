"""The process that imports vLLM once and forks an engine whenever it is asked.

A request is one datagram on the socket whose descriptor is the only argument: JSON with the
engine's arguments, environment, log file and how its waits nap, and by SCM_RIGHTS the engine's end
of a pipe. The answer is the engine's pid. The zygote reaps its engines, and ends (they with it)
when the socket does. In the engine every command of the pipe is (name, arguments), the answer
(good, result). vLLM's own processes, of an engine of several ranks, are forked too, or spawned as
vLLM would, so nothing here may run at import.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import pickle
import runpy
import signal
import socket
import sys
import traceback
from multiprocessing.connection import Connection
from typing import Any

PR_SET_PDEATHSIG = 1
# Of vLLM's, what every engine imports as it starts.
IMPORTED = [
    "vllm.entrypoints.llm",
    "vllm.model_executor.layers.quantization.online.base",
    "vllm.renderers.hf",
    "vllm.v1.attention.backends.cpu_attn",
    "vllm.v1.core.sched.scheduler",
    "vllm.v1.engine.llm_engine",
    "vllm.v1.executor.multiproc_executor",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.worker.cpu_worker",
]


class Commands:
    """What an engine answers: each method is a command."""

    def __init__(self, llm: Any) -> None:
        self.llm = llm

    def generate(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """All at once; greedy. A request has prompt, max_tokens, kv_transfer_params, salt."""
        from vllm.inputs import TokensPrompt

        prompts = []
        for request in requests:
            tokens = TokensPrompt(prompt_token_ids=request["prompt"])
            if request.get("salt"):
                tokens["cache_salt"] = request["salt"]
            prompts.append(tokens)
        params = [sampling(request) for request in requests]
        return [answer(output) for output in self.llm.generate(prompts, params, use_tqdm=False)]

    def metrics(self) -> list[tuple[str, dict[str, str], float]]:
        """(name, labels, value) of every sample of vLLM's own registry."""
        from prometheus_client import REGISTRY

        samples = (sample for family in REGISTRY.collect() for sample in family.samples)
        return [(s.name, dict(s.labels), s.value) for s in samples if s.name.startswith("vllm:")]

    def reset_prefix_cache(self) -> bool:
        """vLLM's own cache alone: lmkv's pool keeps what it has."""
        return bool(self.llm.reset_prefix_cache())

    def call(self, function: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """`module:function(llm, *arguments, **named)` inside the engine: a test's hook."""
        module, name = function.split(":")
        return getattr(importlib.import_module(module), name)(self.llm, *arguments, **named)

    def shutdown(self) -> None:
        self.llm.llm_engine.engine_core.shutdown()


def sampling(request: dict[str, Any]) -> Any:
    from vllm import SamplingParams

    chosen = request.get("kv_transfer_params")
    return SamplingParams(
        max_tokens=request["max_tokens"],
        temperature=0,
        detokenize=False,
        ignore_eos=True,
        extra_args={"kv_transfer_params": chosen} if chosen else None,
    )


def answer(output: Any) -> dict[str, Any]:
    """The fields of engine.Output."""
    return {
        "tokens": list(output.outputs[0].token_ids),
        "num_cached_tokens": output.num_cached_tokens or 0,
        "kv_transfer_params": output.kv_transfer_params or {},
        "finish_reason": output.outputs[0].finish_reason,
    }


def serve(pipe: Connection, commands: Any) -> None:
    while True:
        try:
            name, arguments = pipe.recv()
        except EOFError:
            return
        if name == "stop":
            return
        try:
            answer = (True, getattr(commands, name)(*arguments))
        except Exception:
            answer = (False, traceback.format_exc())
        pipe.send(answer)


def engine(spec: dict[str, Any], pipe: Connection) -> None:
    """In the forked child: the whole life of an engine. Ends the process."""
    os.setsid()  # a group of its own, with its workers and movers
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    log = os.open(spec["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(spec["environment"])
    if spec["fork"]:
        fork_on()
    if spec["naps"]:  # the ranks read it as they start; this process has started
        os.environ["PYTHONPATH"] = os.pathsep.join([spec["naps"], os.environ["PYTHONPATH"]])
        runpy.run_path(os.path.join(spec["naps"], "sitecustomize.py"))
    status = 1
    try:
        commands = started(spec["arguments"])
        pipe.send((True, os.getpid()))
        serve(pipe, commands)
        commands.shutdown()
        status = 0
    except BaseException:
        traceback.print_exc()
        pipe.send((False, traceback.format_exc()))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def in_a_fork(call: Any) -> Any:
    """Its result, of a process that ends with it."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            with os.fdopen(writing, "wb") as out:
                pickle.dump(call(), out)
        except BaseException:
            traceback.print_exc()  # into the engine's log
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as result:
        found = result.read()
    os.waitpid(pid, 0)
    return pickle.loads(found)


def fork_on() -> None:
    """Processes that vLLM starts, which import it anew otherwise, begin as copies of this one."""
    import multiprocessing

    from vllm.model_executor.models import registry
    from vllm.v1.engine import coordinator, utils
    from vllm.v1.executor import multiproc_executor

    for module in (coordinator, utils, multiproc_executor):
        module.get_mp_context = lambda: multiprocessing.get_context("fork")
    registry._run_in_subprocess = in_a_fork  # a look at the model's class


def started(arguments: dict[str, Any]) -> Any:
    if arguments.get("data_parallel_size", 1) > 1:
        from tests.vllm.parallel import ParallelCommands

        return ParallelCommands(arguments)
    from vllm import LLM

    return Commands(LLM(**arguments))


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    for module in IMPORTED:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # an engine collects garbage as it starts: not among what was imported here
    signal.signal(signal.SIGCHLD, lambda *_: reap())
    control.send(b"ready")
    while True:
        data, descriptors, _, _ = socket.recv_fds(control, 1 << 20, 1)
        if not data:
            return
        spec = json.loads(data)
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            control.close()
            engine(spec, Connection(descriptors[0]))
        os.close(descriptors[0])
        control.send(str(pid).encode())


def reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


if __name__ == "__main__":
    main()
