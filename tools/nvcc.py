"""`make kernels`: compile kernels/ for every architecture, and say what came out.

First ptxas -v's own lines for each variant (an entry point on an architecture), then a table:
registers, spills, and 128-bit loads and stores counted in cuobjdump's listing. Red when a variant
spills. nvcc compiles without a GPU. CMake builds the package's fatbin with the same options file.
Only Python's own library is used.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KERNELS = ROOT / "kernels"
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
NO_NVCC = "no nvcc on PATH, in CUDA_HOME or in /usr/local/cuda: the GPU kernels are not compiled"

ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(sm_\d+)'")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")


@dataclass
class Variant:
    """An entry point on an architecture; `lines` are ptxas's about it."""

    name: str
    arch: str
    lines: list[str]
    registers: int = -1
    stack: int = -1
    spills: int = -1  # bytes stored and loaded
    loads: int | None = None  # of 128 bits; None: not counted
    stores: int | None = None


def program(name: str) -> str | None:
    """A CUDA tool: on PATH, in CUDA_HOME, in the usual place, or (cuobjdump) in triton's wheel."""
    homes = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    places = [Path(home) / "bin" / name for home in homes if home]
    places += [Path(top) / "triton/backends/nvidia/bin" / name for top in sys.path]
    found = shutil.which(name)
    return found or next((str(p) for p in places if os.access(p, os.X_OK)), None)


def build(compiler: str, fatbin: Path) -> list[Variant]:
    """Compile; raises CalledProcessError with nvcc's words in `output`."""
    words = [compiler, "--options-file", str(KERNELS / "nvcc.flags"), "-fatbin", "-Xptxas", "-v"]
    ran = subprocess.run(
        [*words, "-o", str(fatbin), str(KERNELS / "lmkv.cu")],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return list(read_ptxas(ran.stdout.splitlines()))


def read_ptxas(lines: Iterable[str]) -> Iterable[Variant]:
    variant = None
    for line in lines:
        if entry := ENTRY.search(line):
            if variant:
                yield variant
            variant = Variant(entry[1], entry[2], [])
        if variant and (entry or "spill" in line or "Used" in line):
            variant.lines.append(line)
            if stack := STACK.search(line):
                variant.stack = int(stack[1])
                variant.spills = int(stack[2]) + int(stack[3])
            if registers := REGISTERS.search(line):
                variant.registers = int(registers[1])
    if variant:
        yield variant


def count_wide(cuobjdump: str, fatbin: Path, variants: Iterable[Variant]) -> None:
    """Fill in the 128-bit global loads and stores of each variant."""
    ran = subprocess.run(
        [cuobjdump, "-sass", str(fatbin)], check=True, capture_output=True, text=True
    )
    by_name = {(v.arch, v.name): v for v in variants}
    arch, variant = "", None
    for line in ran.stdout.splitlines():
        if found := re.search(r"code for (sm_\d+)", line):
            arch = found[1]
        elif found := re.search(r"Function : (\w+)", line):
            variant = by_name[arch, found[1]]
            variant.loads = variant.stores = 0
        elif variant and re.search(r"\bLDG\.E(\.\w+)*\.128\b", line):
            variant.loads += 1
        elif variant and re.search(r"\bSTG\.E(\.\w+)*\.128\b", line):
            variant.stores += 1


def table(variants: Iterable[Variant]) -> str:
    def row(*cells: object) -> str:
        words = ["-" if cell is None else str(cell) for cell in cells]
        return "{:16} {:7} {:>9} {:>12} {:>10} {:>10}".format(*words)

    head = row("variant", "arch", "registers", "spill bytes", "LDG 128", "STG 128")
    rows = [row(v.name, v.arch, v.registers, v.spills, v.loads, v.stores) for v in variants]
    return "\n".join([head, *rows])


def main() -> int:
    compiler, cuobjdump = program("nvcc"), program("cuobjdump")
    if compiler is None:
        print(NO_NVCC, file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        fatbin = Path(folder) / "lmkv.fatbin"
        try:
            variants = build(compiler, fatbin)
        except subprocess.CalledProcessError as failure:
            print(failure.output, file=sys.stderr)
            return 1
        if cuobjdump is not None:
            count_wide(cuobjdump, fatbin, variants)
        size = fatbin.stat().st_size
    for variant in variants:
        print("\n".join(variant.lines))
    print(f"\n{table(variants)}")
    spilling = [v for v in variants if v.spills or v.stack]
    print(
        f"\n{len(variants)} variants, {len(spilling)} of them spill; {size / 1024:.0f} KiB "
        f"with the PTX for later architectures"
    )
    if cuobjdump is None:
        print("no cuobjdump: 128-bit accesses are not counted")
    return 1 if spilling or not variants else 0


if __name__ == "__main__":
    sys.exit(main())
