"""A GPU with lmkv's kernels loaded: from the package's fatbin, else compiled by CuPy.

The fatbin is there when nvcc was at hand as the package was built, and a driver that is older than
that nvcc may not take it. CuPy's NVRTC compiles the package's sources for the GPU at hand instead.
"""

from __future__ import annotations

import logging
from pathlib import Path

from lmkv import _native

log = logging.getLogger("lmkv.worker")

FOLDER = Path(_native.__file__).with_name("kernels")
FATBIN = "lmkv.fatbin"
SOURCE = "lmkv.cu"
LIBRARY = "libcuda.so.1"


def open_gpu(ordinal: int, folder: Path = FOLDER, library: str = LIBRARY) -> _native.Gpu:
    """RuntimeError with a sentence: no driver, no such GPU, one that is too old, or no kernels for
    it."""
    gpu = _native.Gpu(ordinal, library)
    try:
        gpu.load((folder / FATBIN).read_bytes())
        return gpu
    except FileNotFoundError:
        why = "this package was built without nvcc"
    except (RuntimeError, ValueError) as error:  # the latter: of an empty file
        why = f"the package's kernels do not run here ({error})"
    log.info("lmkv: %s: CuPy compiles the kernels for %s", why, gpu.name)
    gpu.load(compiled(gpu.capability, folder, why))
    return gpu


def compiled(capability: int, folder: Path = FOLDER, why: str = "") -> bytes:
    """The kernels as a cubin for this compute capability (90: sm_90). RuntimeError without CuPy, or
    when its compiler refuses them."""
    try:
        from cupy.cuda import nvrtc
    except ImportError as error:
        raise RuntimeError(
            f"{why}, and CuPy is not there to compile them ({error}); install lmkv[cuda13], or"
            " lmkv[cuda12] for a driver of CUDA 12"
        ) from None
    headers = sorted(path for path in folder.iterdir() if path.suffix in (".h", ".cu"))
    texts = [path.read_bytes() for path in headers]
    names = [path.name.encode() for path in headers]
    try:
        program = nvrtc.createProgram((folder / SOURCE).read_text(), SOURCE, texts, names)
    except Exception as error:  # its library is not there: CuPy has an exception of its own for it
        raise RuntimeError(f"{why}, and CuPy has no compiler ({error})") from None
    try:
        nvrtc.compileProgram(program, ["-std=c++17", f"-arch=sm_{capability}"])
        return bytes(nvrtc.getCUBIN(program))
    except nvrtc.NVRTCError as error:
        said = nvrtc.getProgramLog(program).strip()
        raise RuntimeError(f"{why}, and CuPy does not compile them: {error}: {said}") from None
    finally:
        nvrtc.destroyProgram(program)
