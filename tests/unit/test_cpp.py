"""csrc's own tests, under the address and undefined sanitizers, and the thread one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILDS = {"-DLMKV_SANITIZE=ON": "build/sanitize", "-DLMKV_SANITIZE_THREADS=ON": "build/threads"}


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


def built(sanitizer: str) -> Path:
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    build = ROOT / BUILDS[sanitizer]
    options = [sanitizer, "-DLMKV_BUILD_TESTS=ON", "-DLMKV_BUILD_EXTENSION=OFF"]
    options += ["-DCMAKE_BUILD_TYPE=RelWithDebInfo", f"-DPython_EXECUTABLE={sys.executable}"]
    run("cmake", "-S", ".", "-B", str(build), *generator, *options, timeout=60)
    run("cmake", "--build", str(build), "--parallel", "2", timeout=600)
    return build


def passes(build: Path, *before: str, **environment: str) -> None:
    """What a test writes comes with its failure."""
    words = ["ctest", "--test-dir", str(build), "--output-on-failure", "--no-tests=error", "-j2"]
    out = run(*before, *words, timeout=600, **environment)
    assert "100% tests passed" in out


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("isa", ["", "scalar"], ids=["best", "scalar"])
def test_under_sanitizers(isa: str) -> None:
    """A leak is an error too."""
    passes(built("-DLMKV_SANITIZE=ON"), LMKV_ISA=isa, ASAN_OPTIONS="detect_leaks=1")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_under_the_thread_sanitizer() -> None:
    if shutil.which("setarch") is None:
        pytest.skip("setarch is not installed: the thread sanitizer needs fixed addresses")
    # Where vm.mmap_rnd_bits is above 28, gcc's thread sanitizer does not know the addresses that
    # its programs get: so they run without that randomness.
    build = built("-DLMKV_SANITIZE_THREADS=ON")
    passes(build, "setarch", "-R", TSAN_OPTIONS="halt_on_error=1")
