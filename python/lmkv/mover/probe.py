"""`python -m lmkv.mover.probe INTERFACE PORTS`: what NIXL is here, and what UCX reads a peer with.

It runs with a mover's environment (`core/ucx.py`), in processes of its own since UCX may end one: a
holder, which it starts, and a reader. Its last line is JSON: `package`, `version`, `transports` of
a READ from a process on this host, and `error`, why there is no more.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator

from lmkv import _native
from lmkv.core.descriptors import readable
from lmkv.mover import transport

BYTES = 4 << 20  # of the READ: enough for UCX to take the way of a slot's
DEADLINE = 10.0  # seconds, for each half
TELLS = {"UCX_PROTO_INFO": "y", "UCX_LOG_LEVEL": "info"}  # UCX prints how it will do what
HOLDER = "holder"


def main(words: list[str]) -> None:
    if words == [HOLDER]:
        _hold()
    interface, ports = words
    found: dict[str, object] = {"package": "", "version": "", "transports": [], "error": ""}
    try:
        library = transport.find_library()
        found |= {"package": library.package, "version": library.version}
        transport.check_ports(interface, ports)
        found["transports"] = _read(library.path)
    except (transport.NixlError, RuntimeError) as error:
        found["error"] = str(error)
    print("\n" + json.dumps(found), flush=True)
    os._exit(0)  # as the mover ends


def _buffer() -> tuple[ctypes.Array[ctypes.c_char], int]:
    made = (ctypes.c_char * BYTES)()
    return made, ctypes.addressof(made)


def _hold() -> None:
    agent = _native.Transport("nixl", "probe-serve", transport.find_library().path, progress=True)
    made, address = _buffer()
    agent.register(address, BYTES)
    print(f"\nheld {agent.metadata().hex()} {address}", flush=True)
    sys.stdin.read()  # until the reader ends
    del made
    os._exit(0)


def _read(library: str) -> list[str]:
    """The transports of the READ, by UCX's own words."""
    command = [sys.executable, "-m", "lmkv.mover.probe", HOLDER]
    ends = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **ends) as holder:  # type: ignore[call-overload]
        try:
            metadata, remote = _held(holder.stdout.fileno())
            with _heard() as said:
                _pull(library, metadata, remote)
            return transports(said[0])
        finally:
            holder.kill()


def _held(fd: int) -> tuple[bytes, int]:
    end, text = time.monotonic() + DEADLINE, b""
    while not (found := re.search(rb"^held ([0-9a-f]+) ([0-9]+)\n", text, re.MULTILINE)):
        left = end - time.monotonic()
        if left <= 0 or not readable(fd, left) or not (more := os.read(fd, 65536)):
            raise transport.NixlError(
                "NIXL's self-test: the process that is read from did not start"
            )
        text += more
    return bytes.fromhex(found[1].decode()), int(found[2])


def _pull(library: str, metadata: bytes, remote: int) -> None:
    agent = _native.Transport("nixl", "probe-pull", library)
    made, local = _buffer()
    agent.register(local, BYTES)
    number = agent.read(agent.connect(metadata), [local], [remote], [BYTES])
    end = time.monotonic() + DEADLINE
    while (state := agent.poll(number)) == _native.TransferState.PENDING:
        if time.monotonic() > end:
            raise transport.NixlError(f"NIXL's self-test: a READ took more than {DEADLINE:g} s")
        time.sleep(0.001)
    del made
    if state != _native.TransferState.DONE:
        raise transport.NixlError("NIXL's self-test: a READ from a process on this host failed")


@contextlib.contextmanager
def _heard() -> Iterator[list[str]]:
    """A list that holds, at the end, what was printed to stdout meanwhile, by C too."""
    said: list[str] = []
    file, stdout = os.memfd_create("probe"), os.dup(1)
    sys.stdout.flush()
    os.dup2(file, 1)
    try:
        yield said
    finally:
        ctypes.CDLL(None).fflush(None)
        os.dup2(stdout, 1)
        said.append(os.pread(file, 1 << 20, 0).decode(errors="replace"))


def transports(said: str) -> list[str]:
    """Of UCX's table of `ucp_get`, the last column of each row: `cma/memory`, `tcp/lo`."""
    found: dict[str, None] = {}
    inside = False
    for line in said.splitlines():
        if "ucp_get" in line:
            inside = True
        elif inside and (row := re.search(r"\.\.[^|]*\|[^|]*\|\s*([^|]*?)\s*\|\s*$", line)):
            found.update(dict.fromkeys(re.findall(r"[a-z0-9_]+/[A-Za-z0-9_.:-]+", row[1])))
        elif inside and found and "+--" in line:
            break
    return list(found)


if __name__ == "__main__":
    main(sys.argv[1:])
