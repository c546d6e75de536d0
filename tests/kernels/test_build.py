"""What nvcc makes of the kernels, without a GPU; and NVRTC, CuPy's compiler, takes them too."""

import ctypes as c
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools import nvcc

COMPILER, CUOBJDUMP = nvcc.program("nvcc"), nvcc.program("cuobjdump")
PAGES = ("gather", "scatter", "audit")
NAMES = {
    *(f"lmkv_{copy}_{piece}" for copy in PAGES for piece in (16, 8, 4)),
    *("lmkv_verify_16", "lmkv_hash_16", "lmkv_hash_4", "lmkv_clear", "lmkv_publish"),
}

needs_nvcc = pytest.mark.skipif(COMPILER is None, reason=nvcc.NO_NVCC)


@pytest.fixture(scope="module")
def fatbin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels") / "lmkv.fatbin"


@pytest.fixture(scope="module")
def variants(fatbin: Path) -> list[nvcc.Variant]:
    assert COMPILER is not None
    return nvcc.build(COMPILER, fatbin)


@needs_nvcc
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_kernel_on_every_architecture_without_a_spill(variants: list[nvcc.Variant]) -> None:
    made = {(v.arch, v.name) for v in variants}
    assert made == {(arch, name) for arch in nvcc.ARCHITECTURES for name in NAMES}
    for v in variants:
        assert (v.spills, v.stack) == (0, 0), v
        assert 0 < v.registers <= 128, v  # two blocks of 256 threads a multiprocessor
        assert any("bytes spill stores" in line for line in v.lines)


@needs_nvcc
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(CUOBJDUMP is None, reason="no cuobjdump: 128-bit accesses are not counted")
def test_bytes_are_moved_by_16(variants: list[nvcc.Variant], fatbin: Path) -> None:
    """Slots always; pages and tokens where they are aligned. All loads of a turn are in flight."""
    assert CUOBJDUMP is not None
    nvcc.count_wide(CUOBJDUMP, fatbin, variants)
    wide = {(v.arch, v.name.removeprefix("lmkv_")): (v.loads, v.stores) for v in variants}
    for arch in nvcc.ARCHITECTURES:
        for copy in ("gather_16", "scatter_16"):
            loads, stores = wide[arch, copy]
            assert loads is not None and loads >= 8, (arch, copy)
            assert stores is not None and stores >= 8, (arch, copy)
        for copy in ("audit_16", "verify_16", "hash_16", "scatter_8", "scatter_4"):
            assert wide[arch, copy][0], (arch, copy)
        for copy in ("gather_8", "gather_4", "hash_4"):
            assert wide[arch, copy][1], (arch, copy)
    listed = subprocess.run(
        [CUOBJDUMP, "-lptx", str(fatbin)], capture_output=True, text=True, check=True
    )
    assert "sm_80.ptx" in listed.stdout  # for architectures to come


def nvrtc() -> c.CDLL | None:
    """NVIDIA's wheel (which CuPy's extra brings), or the toolkit's."""
    spec = importlib.util.find_spec("nvidia")
    tops = [Path(top) for top in (spec.submodule_search_locations or [])] if spec else []
    homes = [*(top / "cu13" for top in tops), *(top / "cuda_nvrtc" for top in tops)]
    homes += [Path(os.environ.get("CUDA_HOME") or "/usr/local/cuda")]
    for folder in (home / sub for home in homes for sub in ("lib", "lib64")):
        for name in sorted(folder.glob("libnvrtc-builtins.so*")):
            c.CDLL(str(name))  # NVRTC looks for it by name
        for name in sorted(folder.glob("libnvrtc.so.*")):
            return c.CDLL(str(name))
    return None


NVRTC = nvrtc()


@pytest.mark.skipif(NVRTC is None, reason="no libnvrtc (pip install nvidia-cuda-nvrtc)")
@pytest.mark.parametrize("arch", ["compute_80", "sm_90"])
def test_nvrtc_compiles_the_same_sources(arch: str) -> None:
    """One program from kernels/lmkv.cu, its includes by name, no other header."""
    assert NVRTC is not None
    files = [p for p in nvcc.KERNELS.iterdir() if p.suffix in (".h", ".cu")]
    texts = (c.c_char_p * len(files))(*(p.read_bytes() for p in files))
    names = (c.c_char_p * len(files))(*(p.name.encode() for p in files))
    program, size = c.c_void_p(), c.c_size_t()
    source = (nvcc.KERNELS / "lmkv.cu").read_bytes()
    count = len(files)
    assert NVRTC.nvrtcCreateProgram(c.byref(program), source, b"lmkv.cu", count, texts, names) == 0
    options = (c.c_char_p * 2)(b"-std=c++17", f"-arch={arch}".encode())
    failed = NVRTC.nvrtcCompileProgram(program, 2, options)
    NVRTC.nvrtcGetProgramLogSize(program, c.byref(size))
    log = c.create_string_buffer(size.value)
    NVRTC.nvrtcGetProgramLog(program, log)
    assert failed == 0, log.value.decode()
    NVRTC.nvrtcGetPTXSize(program, c.byref(size))
    ptx = c.create_string_buffer(size.value)
    NVRTC.nvrtcGetPTX(program, ptx)
    for name in NAMES:
        assert f".entry {name}(".encode() in ptx.value
    NVRTC.nvrtcDestroyProgram(c.byref(program))


def test_without_nvcc_make_kernels_says_so_in_one_line(tmp_path: Path) -> None:
    """Run where nothing is to be found."""
    script = "import sys; from tools import nvcc; nvcc.program = lambda name: None\n"
    ran = subprocess.run(
        [sys.executable, "-c", script + "sys.exit(nvcc.main())"],
        cwd=nvcc.ROOT,
        capture_output=True,
        text=True,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (1, "", f"{nvcc.NO_NVCC}\n")


def test_ptxas_lines_are_read() -> None:
    lines = [
        "ptxas info    : 0 bytes gmem",
        "ptxas info    : Compiling entry function 'lmkv_clear' for 'sm_90'",
        "ptxas info    : Function properties for lmkv_clear",
        "    8 bytes stack frame, 12 bytes spill stores, 4 bytes spill loads",
        "ptxas info    : Used 40 registers, used 1 barriers",
        "ptxas info    : Compiling entry function 'lmkv_hash_4' for 'sm_80'",
        "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads",
        "ptxas info    : Used 72 registers, used 1 barriers",
    ]
    one, two = nvcc.read_ptxas(lines)
    assert (one.name, one.arch, one.registers) == ("lmkv_clear", "sm_90", 40)
    assert (one.stack, one.spills) == (8, 16)
    assert (two.name, two.arch, two.registers, two.spills) == ("lmkv_hash_4", "sm_80", 72, 0)
    assert one.lines == [lines[1], lines[3], lines[4]]
