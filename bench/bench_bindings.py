"""One hot call through nanobind and through pybind11: the digest of a 64-byte segment.

Why lmkv binds with nanobind. The pybind11 side is built on the fly, from the same header and with
the extension's own flags; what is timed is the call, for the work is a few nanoseconds.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType

from bench.harness import Row, measure

ROOT = Path(__file__).resolve().parent.parent
CALLS = 20_000
DATA = bytes(range(64))
SOURCE = r"""
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>

#include "digest.h"

// As the extension does it: a plain buffer, the checks, the interpreter lock released.
static uint64_t digest(pybind11::handle data, uint64_t segment) {
  Py_buffer view;
  if (PyObject_GetBuffer(data.ptr(), &view, PyBUF_C_CONTIGUOUS) != 0) {
    throw pybind11::error_already_set();
  }
  const uint64_t bytes = uint64_t(view.len);
  if (bytes == 0 || bytes % 16 != 0) throw std::invalid_argument("length");
  if (segment >> 24 != 0) throw std::invalid_argument("segment");
  lmkv::Lmx64 sums;
  {
    pybind11::gil_scoped_release release;
    const uint64_t* words = static_cast<const uint64_t*>(view.buf);
    for (uint32_t n = 0; n < bytes / 16; ++n) {
      lmkv::lmx64_unit(sums, words[2 * n], words[2 * n + 1], n + 1);
    }
  }
  PyBuffer_Release(&view);
  return lmkv::lmx64_finish(sums, bytes, uint32_t(segment));
}

PYBIND11_MODULE(with_pybind11, m) {
  m.def("lmx64", &digest, pybind11::arg("data"), pybind11::arg("segment"));
}
"""


def build(folder: Path) -> ModuleType:
    import pybind11

    source = folder / "with_pybind11.cpp"
    source.write_text(SOURCE)
    built = folder / f"with_pybind11{sysconfig.get_config_var('EXT_SUFFIX')}"
    subprocess.run(
        [
            *(os.environ.get("CXX", "c++"), "-O3", "-std=c++20", "-shared", "-fPIC"),
            *("-fvisibility=hidden", f"-I{ROOT / 'kernels'}", f"-I{pybind11.get_include()}"),
            *(f"-I{sysconfig.get_path('include')}", str(source), "-o", str(built)),
        ],
        check=True,
    )
    spec = importlib.util.spec_from_file_location("with_pybind11", built)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows() -> list[Row]:
    from lmkv import _native

    with tempfile.TemporaryDirectory() as folder:
        other = build(Path(folder))
    assert _native.lmx64(DATA, 7) == other.lmx64(DATA, 7)

    def calls(function: object) -> object:
        def run() -> None:
            for _ in range(CALLS):
                function(DATA, 7)

        return run

    ours, theirs = measure(
        calls(_native.lmx64), calls(other.lmx64), figure=lambda seconds: seconds / CALLS * 1e9
    )
    note = "limit: the same call through pybind11"
    return [Row("hot call through nanobind", "ns", ours, theirs, 1.0, at_least=False, note=note)]
