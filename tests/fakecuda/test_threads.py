"""The fake itself under the thread sanitizer."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.fakecuda.build import COMPILER, DRIVER, Compiling, one_unit


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
@pytest.mark.skipif(shutil.which("setarch") is None, reason="no setarch (see test_cpp.py)")
def test_many_threads_under_the_sanitizer(tmp_path: Path) -> None:
    options = ("-fsanitize=thread", "-O1", "-Wno-tsan", "-static-libtsan")
    source = one_unit(*DRIVER, "kernels", "threads")
    program = Compiling(tmp_path / "threads", source, *options).done()
    ran = subprocess.run(
        ["setarch", "-R", str(program)],
        env=os.environ | {"TSAN_OPTIONS": "halt_on_error=1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-4000:]
