"""csrc/cuda/api.h says what cuda.h says, in every cuda.h that is to be found here."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakecuda.build import COMPILER, ROOT
from tests.fakecuda.raw import NUMBERS

SOURCE = ROOT / "tests/cpp/cuda_header.cpp"
NONE = "no cuda.h beside nvcc, in CUDA_HOME, in /usr/local/cuda* or in triton's wheel"


def headers() -> list[Path]:
    compiler = shutil.which("nvcc")
    homes = [Path(compiler).resolve().parents[1]] if compiler else []
    homes += [Path(os.environ.get("CUDA_HOME") or "/usr/local/cuda")]
    homes += sorted(Path("/usr/local").glob("cuda-*"))
    homes += [Path(top) / "triton/backends/nvidia" for top in sys.path]
    found = (home / "include/cuda.h" for home in homes)
    return list(dict.fromkeys(path.resolve() for path in found if path.is_file()))


HEADERS = headers()


def checked(header: Path, source: str) -> subprocess.CompletedProcess[str]:
    assert COMPILER is not None
    words = [COMPILER, "-std=c++20", "-fsyntax-only", "-x", "c++", "-"]
    places = [f"-I{ROOT / 'csrc'}", "-isystem", str(header.parent)]
    return subprocess.run([*words, *places], input=source, capture_output=True, text=True)


@pytest.mark.skipif(not HEADERS, reason=NONE)
@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
@pytest.mark.parametrize("header", HEADERS, ids=str)
def test_numbers_and_signatures_are_those_of(header: Path) -> None:
    source = SOURCE.read_text()
    ran = checked(header, source)
    assert ran.returncode == 0, ran.stderr
    # And it would say so: a number and a signature that are wrong.
    for right, wrong in (
        ("numbers::name", "numbers::name + 1"),
        ("CUresult(*) arguments", "CUresult (*)(int)"),
    ):
        assert right in source
        ran = checked(header, source.replace(right, wrong))
        assert "static assertion failed" in ran.stderr


SHORT = ("COPY_IN_STREAM_ORDER", "CAPTURE_GLOBAL", "CAPTURE_RELAXED")  # enumerations of a line


def test_every_number_is_compared() -> None:
    compared = re.findall(r"^SAME\w*\((\w+)", SOURCE.read_text(), re.MULTILINE)
    assert sorted(compared) == sorted([*NUMBERS, *SHORT])
