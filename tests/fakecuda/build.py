"""Builds the fake libcuda.so.1, once for all processes that see the same sources: two objects, then
a library for each driver, in a folder of build/fakecuda.

`library(13000)` is a driver of CUDA 13.0, with all functions of csrc/cuda/api.h; 12080 (CUDA 12.8)
has copy_batch_12 but not copy_batch, and 12020 has neither: the linker leaves them out.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILT = ROOT / "build" / "fakecuda"
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
def folder() -> Path:
    """What the present sources are made into."""
    made_of = hashlib.sha256(repr((COMPILER, FLAGS, SANITIZE)).encode())
    headers = (path for top in ("csrc", "kernels") for path in (ROOT / top).rglob("*.h"))
    for path in sorted([*headers, *HERE.glob("*.h"), *HERE.glob("*.cpp"), Path(__file__)]):
        made_of.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return BUILT / made_of.hexdigest()[:16]


@contextlib.contextmanager
def building() -> Iterator[None]:
    """No other process does meanwhile; what older sources were made into goes."""
    BUILT.mkdir(parents=True, exist_ok=True)
    with open(BUILT / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for old in BUILT.iterdir():
            if old.is_dir() and old != folder():
                shutil.rmtree(old)
        folder().mkdir(exist_ok=True)
        yield


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
        self.made, self._part = made, made.with_suffix(".part")
        self.process = subprocess.Popen(
            [COMPILER, *FLAGS, *INCLUDES, *options, written, "-o", self._part],
            stderr=subprocess.PIPE,
            text=True,
        )

    def done(self) -> Path:
        _, said = self.process.communicate(timeout=240)
        assert self.process.returncode == 0, said
        return self._part.rename(self.made)


def objects() -> list[Path]:
    """The bodies take as long as all the rest; both at a time. (The driver's bookkeeping compiles
    faster unoptimized, and loses nothing by it.)"""
    made = [folder() / "kernels.o", folder() / "driver.o"]
    if all(each.exists() for each in made):
        return made
    kernels = Compiling(folder() / "kernels.o", one_unit("kernels"), *SANITIZE, "-O1", "-c")
    driver = Compiling(folder() / "driver.o", one_unit(*DRIVER), *SANITIZE, "-O0", "-c")
    return [kernels.done(), driver.done()]


@functools.cache
def library(driver: int = 13000) -> Path | None:
    """None without a compiler."""
    if COMPILER is None:
        return None
    built = folder() / str(driver) / "libcuda.so.1"
    with building():
        if not built.exists():
            link(driver, built)
    return built


def link(driver: int, built: Path) -> None:
    built.parent.mkdir(exist_ok=True)
    hidden = "".join(f"{symbol}; " for symbol in WITHOUT[driver])
    script, part = built.with_suffix(".map"), built.with_suffix(".part")
    script.write_text(f"{{ global: cu*; lmkv_fake_*; local: {hidden}*; }};")
    options = ["-shared", "-pthread", "-Wl,--no-undefined", f"-Wl,--version-script={script}"]
    words = [COMPILER, *SANITIZE, *options, *objects(), "-o", part]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    part.rename(built)


@functools.cache
def system_folder(driver: int = 13000) -> Path:
    """With what a machine with a GPU has under these names: for LD_LIBRARY_PATH of a process that
    opens them by name, as a mover and its UCX do."""
    cuda = library(driver)
    assert cuda is not None
    management = cuda.with_name("libnvidia-ml.so.1")
    with building():
        if not management.exists():
            Compiling(management, one_unit("nvml"), "-shared").done()
    return cuda.parent
