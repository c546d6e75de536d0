"""Two processes on one card: slots go from the one's memory there to the other's by NIXL's READs,
as between two movers. Where this NIXL takes no such memory, the reason is said."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time

import pytest
from lmkv.core import ucx

from tests.fakecuda import build
from tests.gpu import nixl_pair
from tests.gpu.cards import ROOT, OnFake, OnReal

BEGIN = 60.0  # seconds, of either


def told(process: subprocess.Popen[bytes]) -> str:
    """Its line; pytest.skip where it says that this is not here."""
    assert process.stdout is not None
    end, text = time.monotonic() + BEGIN, b""
    while True:
        for line in text.decode().splitlines(keepends=True):
            if line.startswith(nixl_pair.LACKS):
                pytest.skip(f"NIXL is {line.strip()}")
            if line.endswith("\n") and line.startswith((nixl_pair.HELD, nixl_pair.PULLED)):
                return line
        left = end - time.monotonic()
        assert left > 0 and select.select([process.stdout], [], [], left)[0], text
        more = os.read(process.stdout.fileno(), 65536)
        assert more, f"it ended with {process.wait(10)}: {text!r}"
        text += more


def begun(what: str, kind: str, *words: str) -> subprocess.Popen[bytes]:
    env = ucx.environment("lo", "49152-65535", ucx.with_gpu(""), os.environ) | ucx.WITH_GPU
    if kind == "fake":
        env |= {"LD_LIBRARY_PATH": str(build.system_folder())}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.gpu.nixl_pair", what, kind, *words],
        cwd=ROOT,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


@pytest.mark.nixl
def test_slots_go_from_one_processs_memory_to_the_others(device: OnFake | OnReal) -> None:
    kind = "fake" if isinstance(device, OnFake) else "real"
    holder = begun("hold", kind)
    try:
        _, metadata, address = told(holder).split()
        puller = begun("pull", kind, metadata, address)
        try:
            line = told(puller).split(maxsplit=1)[1].strip()
        finally:
            puller.kill()
            puller.wait(10)
    finally:
        holder.kill()
        holder.wait(10)
    assert line == f"{[0] * nixl_pair.SLOTS} True"
