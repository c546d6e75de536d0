"""csrc's own tests, under the address and undefined sanitizers."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build/sanitize"


def run(*command: str, timeout: float, **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        timeout=timeout,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:]
    return done.stdout


@pytest.fixture(scope="module")
def built() -> Path:
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    options = ["-DLMKV_SANITIZE=ON", "-DLMKV_BUILD_TESTS=ON", "-DLMKV_BUILD_EXTENSION=OFF"]
    options += ["-DCMAKE_BUILD_TYPE=RelWithDebInfo", f"-DPython_EXECUTABLE={sys.executable}"]
    run("cmake", "-S", ".", "-B", str(BUILD), *generator, *options, timeout=60)
    run("cmake", "--build", str(BUILD), "--parallel", "2", timeout=600)
    return BUILD


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("isa", ["", "scalar"], ids=["best", "scalar"])
def test_under_sanitizers(built: Path, isa: str) -> None:
    # A leak is an error too; what a test writes comes with its failure.
    out = run(
        *("ctest", "--test-dir", str(built), "--output-on-failure", "--no-tests=error", "-j2"),
        timeout=600,
        LMKV_ISA=isa,
        ASAN_OPTIONS="detect_leaks=1",
    )
    assert "100% tests passed" in out
