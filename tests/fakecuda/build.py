"""Builds the fake libcuda.so.1, once a session: two objects, then a library for each driver.

A process that a test starts takes what FAKE_CUDA_FOLDER says was built (see `environment`).

`library(13000)` is a driver of CUDA 13.0, with all functions of csrc/cuda/api.h; 12080 (CUDA 12.8)
has copy_batch_12 but not copy_batch, and 12020 has neither: the linker leaves them out.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
INCLUDES = [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'kernels'}", f"-I{HERE}"]
FLAGS = ["-std=c++20", "-g", "-Wall", "-Wextra", "-Werror", "-fPIC", "-pthread"]
FLAGS += ["-fvisibility=hidden"]
SANITIZE = ["-fsanitize=undefined", "-fno-sanitize-recover=all"]
WITHOUT = {
    13000: (),
    12080: ("cuMemcpyBatchAsync_v2",),
    12020: ("cuMemcpyBatchAsync_v2", "cuMemcpyBatchAsync"),
}

COMPILER = shutil.which("g++") or shutil.which("c++")


@functools.cache
def own_folder() -> tempfile.TemporaryDirectory[str]:
    """As long as the session: lmkv opens the library by its path."""
    return tempfile.TemporaryDirectory(prefix="lmkv-fake-cuda-")


def folder() -> Path:
    return Path(os.environ.get("FAKE_CUDA_FOLDER") or own_folder().name)


def environment() -> dict[str, str]:
    """For processes that take this one's libraries."""
    return os.environ | {"FAKE_CUDA_FOLDER": str(folder())}


def one_unit(*stems: str) -> str:
    """These sources as one, which compiles in half the time."""
    return "".join(f'#include "{HERE / stem}.cpp"\n' for stem in stems)


DRIVER = ("control", "driver", "driver_device", "driver_memory", "driver_streams", "driver_ucx")
DRIVER += ("executor", "ipc", "memory", "streams", "touches")


class Compiling:
    """Begun; `done` waits for it, and fails with the compiler's words."""

    def __init__(self, made: Path, source: str, *options: str) -> None:
        assert COMPILER is not None
        written = made.with_suffix(".cpp")
        written.write_text(source)
        self.made = made
        self.process = subprocess.Popen(
            [COMPILER, *FLAGS, *INCLUDES, *options, written, "-o", made],
            stderr=subprocess.PIPE,
            text=True,
        )

    def done(self) -> Path:
        _, said = self.process.communicate(timeout=240)
        assert self.process.returncode == 0, said
        return self.made


@functools.cache
def objects() -> list[Path]:
    """The bodies take as long as all the rest; both at a time. (The driver's bookkeeping compiles
    faster unoptimized, and loses nothing by it.)"""
    kernels = Compiling(folder() / "kernels.o", one_unit("kernels"), *SANITIZE, "-O1", "-c")
    driver = Compiling(folder() / "driver.o", one_unit(*DRIVER), *SANITIZE, "-O0", "-c")
    return [kernels.done(), driver.done()]


@functools.cache
def library(driver: int = 13000) -> Path | None:
    """None without a compiler."""
    if COMPILER is None:
        return None
    built = folder() / str(driver) / "libcuda.so.1"
    if built.exists():
        return built
    built.parent.mkdir()
    hidden = "".join(f"{symbol}; " for symbol in WITHOUT[driver])
    script = built.with_suffix(".map")
    script.write_text(f"{{ global: cu*; lmkv_fake_*; local: {hidden}*; }};")
    link = ["-shared", "-pthread", "-Wl,--no-undefined", f"-Wl,--version-script={script}"]
    words = [COMPILER, *SANITIZE, *link, *objects(), "-o", built]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return built


@functools.cache
def system_folder(driver: int = 13000) -> Path:
    """With what a machine with a GPU has under these names: for LD_LIBRARY_PATH of a process that
    opens them by name, as a mover and its UCX do."""
    cuda = library(driver)
    assert cuda is not None
    management = cuda.with_name("libnvidia-ml.so.1")
    if not management.exists():
        Compiling(management, one_unit("nvml"), "-shared").done()
    return cuda.parent
