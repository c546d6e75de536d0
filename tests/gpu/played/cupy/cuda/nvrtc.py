"""CuPy's compiler, played: its functions as CuPy 14 has them, and an image that the fake takes.
What it would compile is not looked at (tests/kernels/test_build.py gives it to the real one)."""

from __future__ import annotations

from collections.abc import Sequence

from tests.gpu.cards import FATBIN


class NVRTCError(RuntimeError): ...


def createProgram(
    src: str, name: str, headers: Sequence[bytes], include_names: Sequence[bytes]
) -> int:
    assert all(isinstance(text, bytes) for text in (*headers, *include_names))
    assert name.encode() in include_names and "#include" in src
    return 1


def compileProgram(prog: int, options: Sequence[str]) -> None:
    assert prog == 1 and any(option.startswith("-arch=sm_") for option in options)


def getCUBIN(prog: int) -> bytes:
    return FATBIN


def getProgramLog(prog: int) -> str:
    return ""


def destroyProgram(prog: int) -> None: ...
