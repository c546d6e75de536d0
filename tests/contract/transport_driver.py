"""A process that holds transports and memory for `test_transport.py`, told what to do by its stdin.

Each request is one pickled (function, arguments), each answer a pickled (ok, value): so a test can
kill it in the middle of a READ, and UCX never runs in the test's own process.
"""

import os
import pickle
import sys
import time

import numpy as np
from lmkv import _native
from lmkv.mover import transport

agents: dict[str, _native.Transport] = {}
memory: dict[str, np.ndarray] = {}


def open_agent(kind: str, name: str, progress: bool) -> None:
    library = transport.find_library().path if kind == "nixl" else ""
    agents[name] = _native.Transport(kind, name, library, progress=progress)


def call(agent: str, method: str, *arguments):
    value = getattr(agents[agent], method)
    return value(*arguments) if callable(value) else value


def allocate(name: str, size: int, seed: int) -> int:
    """Bytes from a generator (seed 0: zeros); their address."""
    data = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    memory[name] = data if seed else np.zeros(size, np.uint8)
    return memory[name].ctypes.data


def content(name: str) -> bytes:
    return memory[name].tobytes()


def wait(agent: str, transfer: int, deadline: float) -> int:
    end = time.monotonic() + deadline
    while (state := agents[agent].poll(transfer)) == _native.TransferState.PENDING:
        if time.monotonic() > end:
            break
        time.sleep(0.0002)
    return state


def listeners() -> list[tuple[str, int]]:
    return transport.listeners()


def self_test(pull: str, serve: str) -> None:
    agents[pull].self_test(agents[serve], 5.0)


def main() -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    while True:
        try:
            function, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            os._exit(0)
        try:
            answer = (True, globals()[function](*arguments))
        except Exception as error:
            answer = (False, error)
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    main()
