"""What a mover's context takes of a GPU is measured by one that has no other use."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

import pytest
from lmkv.worker import gpu_room
from lmkv.worker.gpu_room import CONTEXT, CONTEXT_BYTES, context_bytes
from lmkv.worker.visible import one_gpu

from tests.fakecuda import build
from tests.fakecuda.fake import FakeCuda, needs_compiler

MIB = 1 << 20
READY = [sys.executable, "-c", "print('ready', flush=True); import sys; sys.stdin.read()"]


def frees(*mib: int) -> Callable[[], int]:
    left = iter(mib)
    return lambda: next(left) * MIB


def test_what_is_less_while_it_is_there(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "lmkv.worker")
    assert context_bytes(frees(9000, 8390), READY, os.environ) == 610 * MIB
    assert caplog.messages == ["lmkv: a mover's context takes 610 MiB of the GPU"]


@pytest.mark.parametrize(
    ("command", "after", "why"),
    [
        (READY, 9000, "0 bytes"),
        (READY, 9010, "-10485760 bytes"),  # somebody else has given back
        (READY, 100, "9332326400 bytes"),  # or taken
        ([sys.executable, "-c", "print('no driver')"], 9000, "no driver"),
        ([sys.executable, "-c", ""], 9000, "it ended"),
        ([sys.executable, "-c", "import time; time.sleep(60)"], 9000, "it did not begin"),
        (["/nowhere/python"], 9000, "No such file or directory: '/nowhere/python'"),
    ],
)
def test_where_it_cannot_be_measured_a_guess_is_said_to_be_one(
    command: Sequence[str],
    after: int,
    why: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level("INFO", "lmkv.worker")
    monkeypatch.setattr(gpu_room, "CONTEXT_DEADLINE", 0.5 if "time" in command[-1] else 60.0)
    assert context_bytes(frees(9000, after), command, os.environ) == CONTEXT_BYTES
    assert caplog.text.rstrip().endswith(why)
    assert "512 MiB of the GPU are left to a mover's context" in caplog.text


@needs_compiler
def test_the_one_that_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a context, says so, and is ended; a driver that is not there is its last word."""
    monkeypatch.setenv("LD_LIBRARY_PATH", str(build.system_folder()))
    assert context_bytes(frees(900, 300), CONTEXT, os.environ | one_gpu(0)) == 600 * MIB
    monkeypatch.delenv("LD_LIBRARY_PATH")
    with FakeCuda() as fake:
        monkeypatch.setattr(gpu_room, "LIBRARY", str(fake.path))
        assert gpu_room.mover_takes(0) == CONTEXT_BYTES


def test_which_gpu_a_process_sees() -> None:
    assert one_gpu(2, {}) == {"CUDA_VISIBLE_DEVICES": "2"}
    assert one_gpu(1, {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}) == {"CUDA_VISIBLE_DEVICES": "GPU-b"}
