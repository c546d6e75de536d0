"""Where a GPU's kernels come from: the package's fatbin, else CuPy's compiler, else a sentence."""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from lmkv import _native
from lmkv.worker import kernels

from tests.fakecuda.fake import FakeCuda, needs_compiler
from tests.fakecuda.raw import NUMBERS

ROOT = Path(__file__).resolve().parents[2]
FATBIN = b"\x50\xed\x55\xba" + bytes(60)
ELF = b"\x7fELF" + bytes(60)


class Nvrtc(ModuleType):
    """CuPy's module, whose compiler makes `image`; or fails, where a function's name says so."""

    class NVRTCError(Exception): ...

    def __init__(self, fails: str = "") -> None:
        super().__init__("cupy.cuda.nvrtc")
        self.fails, self.programs = fails, 0
        self.told: dict[str, Any] = {}

    def createProgram(
        self, source: str, name: str, headers: list[bytes], names: list[bytes]
    ) -> int:
        if self.fails == "createProgram":
            raise RuntimeError("CuPy failed to load libnvrtc.so.13")
        self.told |= {"source": source, "name": name, "headers": dict(zip(names, headers))}
        self.programs += 1
        return 7

    def compileProgram(self, program: int, options: list[str]) -> None:
        self.told["options"] = options
        if self.fails == "compileProgram":
            raise self.NVRTCError("NVRTC_ERROR_COMPILATION (6)")

    def getCUBIN(self, program: int) -> bytes:
        return ELF

    def getProgramLog(self, program: int) -> str:
        return "team.h(3): error: expected a ;"

    def destroyProgram(self, program: int) -> None:
        self.programs -= 1


@pytest.fixture
def fake() -> Iterator[FakeCuda]:
    with FakeCuda(device_name="Card") as fake:
        yield fake


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The package's sources, as far as their names go."""
    (tmp_path / "lmkv.cu").write_text("the kernels")
    (tmp_path / "team.h").write_text("a team")
    (tmp_path / "README").write_text("no source")
    return tmp_path


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    caplog.set_level(logging.INFO, "lmkv.worker")
    return caplog.messages


def cupy(monkeypatch: pytest.MonkeyPatch, fails: str = "") -> Nvrtc:
    nvrtc = Nvrtc(fails)
    package, cuda = ModuleType("cupy"), ModuleType("cupy.cuda")
    package.cuda, cuda.nvrtc = cuda, nvrtc  # type: ignore[attr-defined]
    for module in (package, cuda, nvrtc):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return nvrtc


def without_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)


def opened(fake: FakeCuda, folder: Path) -> _native.Gpu:
    return kernels.open_gpu(0, folder, str(fake.path))


@needs_compiler
def test_the_fatbin_is_taken(
    fake: FakeCuda, folder: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    without_cupy(monkeypatch)
    (folder / kernels.FATBIN).write_bytes(FATBIN)
    gpu = opened(fake, folder)
    assert (gpu.name, fake.calls("module_load"), lines) == ("Card", 1, [])


@needs_compiler
def test_without_a_fatbin_cupy_compiles(
    fake: FakeCuda, folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "lmkv.worker")
    fake.set(compute_major=10)
    nvrtc = cupy(monkeypatch)
    opened(fake, folder)
    assert caplog.messages == [
        "lmkv: this package was built without nvcc: CuPy compiles the kernels for Card"
    ]
    assert nvrtc.programs == 0
    assert nvrtc.told == {
        "source": "the kernels",
        "name": "lmkv.cu",
        "headers": {b"lmkv.cu": b"the kernels", b"team.h": b"a team"},
        "options": ["-std=c++17", "-arch=sm_100"],
    }


@needs_compiler
@pytest.mark.parametrize("error", ["INVALID_IMAGE", "NO_BINARY_FOR_GPU", "UNSUPPORTED_PTX_VERSION"])
def test_a_fatbin_that_this_card_does_not_take(
    fake: FakeCuda,
    folder: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    error: str,
) -> None:
    caplog.set_level(logging.INFO, "lmkv.worker")
    nvrtc = cupy(monkeypatch)
    (folder / kernels.FATBIN).write_bytes(FATBIN)
    fake.fail("module_load", 1, NUMBERS[error])
    opened(fake, folder)
    (line,) = caplog.messages
    assert line.startswith("lmkv: the package's kernels do not run here (cuModuleLoadData: ")
    assert f"CUDA_ERROR_{error})): CuPy compiles the kernels for Card" in line
    assert nvrtc.programs == 0


@needs_compiler
def test_a_torn_fatbin_too(fake: FakeCuda, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cupy(monkeypatch)
    for torn in (b"torn", b""):
        (folder / kernels.FATBIN).write_bytes(torn)
        opened(fake, folder)


@needs_compiler
def test_without_cupy_it_is_one_sentence(
    fake: FakeCuda, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_cupy(monkeypatch)
    with pytest.raises(
        RuntimeError,
        match=r"^this package was built without nvcc, and CuPy is not there to compile them"
        r" \(.*\); install lmkv\[cuda13\], or lmkv\[cuda12\] for a driver of CUDA 12$",
    ):
        opened(fake, folder)


@needs_compiler
@pytest.mark.parametrize(
    ("fails", "text"),
    [
        ("createProgram", r", and CuPy has no compiler \(CuPy failed to load libnvrtc.so.13\)$"),
        ("compileProgram", r", and CuPy does not compile them: NVRTC_ERROR.* \(6\): team.h\(3\)"),
    ],
)
def test_a_compiler_that_fails(
    fake: FakeCuda, folder: Path, monkeypatch: pytest.MonkeyPatch, fails: str, text: str
) -> None:
    nvrtc = cupy(monkeypatch, fails)
    with pytest.raises(RuntimeError, match=f"^this package was built without nvcc{text}"):
        opened(fake, folder)
    assert nvrtc.programs == 0


@needs_compiler
def test_no_compiler_helps_a_lost_context(
    fake: FakeCuda, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cupy(monkeypatch)
    (folder / kernels.FATBIN).write_bytes(FATBIN)
    fake.fail("module_load", 1, NUMBERS["ILLEGAL_ADDRESS"], sticky=True)
    with pytest.raises(RuntimeError, match=r"cuModuleLoadData: .*CUDA_ERROR_ILLEGAL_ADDRESS"):
        opened(fake, folder)


@pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="CuPy is not installed")
@pytest.mark.parametrize("capability", [80, 90])
def test_cupy_compiles_the_packages_sources(capability: int) -> None:
    """Where NVRTC is there; a GPU need not be."""
    image = kernels.compiled(capability, ROOT / "kernels")
    assert image[:4] == b"\x7fELF"
    assert b"lmkv_gather_16" in image
