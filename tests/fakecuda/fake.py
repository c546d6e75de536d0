"""A fake libcuda.so.1: its streams are queues that a test may hold, its launches play the kernels'
bodies, and what no event orders comes in any order.

    with FakeCuda() as fake:              # fresh; at the end nothing may be left or wrong
        driver = open_driver(fake.path)   # whoever opens this path in this process has this fake
        fake.hold(stream)                 # what is put into it stays there
        ...
        fake.release(stream)
        assert fake.drain()               # all that is not held is done

Memory of the device is the host's, so its addresses can be looked at. A launch, a copy or a fill
that touches what is neither the device's nor registered loses the context: every later call returns
ILLEGAL_ADDRESS until reset(), and complaints() says what was touched. Streams are known by their
handles; 0 is the default stream of device 0. One thread executes everything: a host function that
does not return stops all streams.
"""

from __future__ import annotations

import ctypes as c
import functools
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.fakecuda import build

needs_compiler = pytest.mark.skipif(build.COMPILER is None, reason="no C++ compiler for the fake")

SETTINGS = (
    *("driver_version", "devices", "compute_major", "compute_minor", "multiprocessors"),
    *("memory", "read_only_registration", "capturing"),
)


class Executed(NamedTuple):
    """What was executed: a launch, copy, batch (of copies), fill, record, wait or host (function).

    `name` is the kernel's, the copies' direction ("h2d", "d2h", "d2d", "h2h"; registered memory is
    the host's) or the event's handle."""

    kind: str
    stream: int
    name: str
    bytes: int


@functools.cache
def loaded(driver: int) -> c.CDLL:
    lib = c.CDLL(str(build.library(driver)))
    text, size, handle = c.c_char_p, c.c_size_t, c.c_uint64
    for name, result, *arguments in (
        ("reset", c.c_bool),
        ("set", c.c_bool, text, c.c_uint64),
        ("set_device_name", c.c_bool, text),
        ("seed", c.c_bool, c.c_uint32),
        ("adopt", c.c_bool, size, size),
        ("disown", c.c_bool, size),
        ("fail", c.c_bool, text, c.c_uint64, c.c_int, c.c_bool),
        ("calls", c.c_int64, text),
        ("lose_context", c.c_bool, c.c_int, c.c_int),
        ("hold", c.c_bool, handle, c.c_bool),
        ("hold_all", c.c_bool, c.c_bool),
        ("step", c.c_bool, handle, c.c_double),
        ("drain", c.c_bool, c.c_double),
        ("settle", c.c_bool, c.c_double),
        ("pending", c.c_int, handle),
        ("read", text, text),
    ):
        function = getattr(lib, f"lmkv_fake_{name}")
        function.restype, function.argtypes = result, arguments
    return lib


class FakeCuda:
    """`driver`: 13000, 12080 (without cuMemcpyBatchAsync_v2) or 12020 (without any batch)."""

    def __init__(self, driver: int = 13000, **settings: int | str) -> None:
        path = build.library(driver)
        assert path is not None, "no C++ compiler: mark the test with needs_compiler"
        self.path: Path = path
        self.driver = driver
        self.lib = loaded(driver)
        self._settings = settings
        self._adopted: list[Any] = []  # kept alive

    def __enter__(self) -> FakeCuda:
        self.reset()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.check()
        self.reset()

    def reset(self) -> list[str]:
        """As at the process's start (cuInit is still to be called); work that waits is dropped.
        What was found written behind the end of memory that was not freed."""
        assert self.lib.lmkv_fake_reset(), "an operation does not end"
        self._adopted.clear()
        self.set(driver_version=self.driver)
        self.set(**self._settings)
        return self.complaints()

    def check(self) -> None:
        """Nothing is left, and nothing was wrong that the test did not read; resets."""
        wrong = [f"left: {one}" for one in self.live()] + self.complaints() + self.reset()
        assert not wrong, "\n".join(wrong)

    def live(self) -> list[str]:
        """Allocations, registrations, IPC mappings, streams and their work, events, modules and
        retained contexts."""
        return self._read("live")

    def complaints(self) -> list[str]:
        """What was wrong since the last call of this: contexts lost by what was touched, handles
        used when they were gone, `arrived` not zero, bytes behind an allocation's end."""
        return self._read("complaints")

    def set(self, **settings: int | str) -> None:
        """Any of SETTINGS, or `device_name`."""
        for name, value in settings.items():
            if name == "device_name":
                self.lib.lmkv_fake_set_device_name(str(value).encode())
            elif not self.lib.lmkv_fake_set(name.encode(), int(value)):
                raise ValueError(f"{name} is none of {SETTINGS}")

    def adopt(self, memory: Any, size: int = 0) -> None:
        """An array or a tensor, or an address and its bytes, plays memory of the device."""
        at, count = memory, size
        if isinstance(memory, np.ndarray):
            at, count = memory.ctypes.data, memory.nbytes
        elif hasattr(memory, "data_ptr"):
            at, count = memory.data_ptr(), memory.nbytes
        if not self.lib.lmkv_fake_adopt(at, count):
            raise ValueError(f"{count} bytes at {at:#x} overlap with what the device knows")
        self._adopted.append(memory)

    def disown(self, address: int) -> None:
        if not self.lib.lmkv_fake_disown(address):
            raise ValueError(f"nothing was adopted at {address:#x}")

    # Streams and their work.

    def seed(self, seed: int) -> None:
        """Of the order among streams, of copies in a batch, and of a kernel's threads."""
        self.lib.lmkv_fake_seed(seed)

    def streams(self) -> list[int]:
        """Handles, in the order of creation."""
        return [int(line) for line in self._read("streams")]

    def hold(self, stream: int) -> None:
        self._known(stream, self.lib.lmkv_fake_hold(stream, True))

    def release(self, stream: int) -> None:
        self._known(stream, self.lib.lmkv_fake_hold(stream, False))

    def hold_all(self) -> None:
        """Also the streams that are yet to be made."""
        self.lib.lmkv_fake_hold_all(True)

    def release_all(self) -> None:
        self.lib.lmkv_fake_hold_all(False)

    def step(self, stream: int, timeout: float = 1.0) -> bool:
        """Executes one operation of a held stream; False: there is none, or it waits."""
        return bool(self.lib.lmkv_fake_step(stream, timeout))

    def drain(self, timeout: float = 10.0) -> bool:
        """Until all streams that are not held are empty; False: they are not."""
        return bool(self.lib.lmkv_fake_drain(timeout))

    def settle(self, timeout: float = 10.0) -> bool:
        """Until nothing goes on: what is left is held, or waits for what is. False: it goes on."""
        return bool(self.lib.lmkv_fake_settle(timeout))

    def pending(self, stream: int) -> int:
        """Operations that were put into it and are not done."""
        count = int(self.lib.lmkv_fake_pending(stream))
        self._known(stream, count >= 0)
        return count

    # Failures. Functions go by lmkv's names ("mem_alloc") or the driver's; "*" is any of them.

    def fail(self, function: str, nth: int, error: int, sticky: bool = False) -> None:
        """The nth call from now on (from 1) does nothing and returns this error; `sticky`: so do
        all after it."""
        if not self.lib.lmkv_fake_fail(function.encode(), nth, error, sticky):
            raise ValueError(f"{function}, call {nth}")

    def calls(self, function: str = "*") -> int:
        """Since the last reset; those of error names and texts are not counted."""
        count = int(self.lib.lmkv_fake_calls(function.encode()))
        if count < 0:
            raise ValueError(function)
        return count

    def lose_context(self, error: int = 700, device: int = 0) -> None:
        """Its work is dropped, and its calls return this error until reset()."""
        self.lib.lmkv_fake_lose_context(device, error)

    # What was executed.

    def log(self) -> list[Executed]:
        return [Executed(*line[:4]) for line in self._log()]

    def launches(self) -> Counter[str]:
        """By kernel."""
        return Counter(one.name for one in self.log() if one.kind == "launch")

    def grids(self, kernel: str) -> list[int]:
        """Blocks of its launches."""
        return [line[4] for line in self._log() if line[0] == "launch" and line[2] == kernel]

    def copied(self) -> Counter[str]:
        """Bytes by direction, of copies alone and in batches."""
        moved: Counter[str] = Counter()
        for one in self.log():
            if one.kind in ("copy", "batch"):
                moved[one.name] += one.bytes
        return moved

    def count(self, kind: str) -> int:
        """Operations of this kind; a batch with copies in two directions counts as two."""
        return sum(one.kind == kind for one in self.log())

    def _log(self) -> list[tuple[str, int, str, int, int]]:
        rows = (line.split("\t") for line in self._read("log"))
        return [
            (kind, int(at), name, int(size), int(blocks)) for kind, at, name, size, blocks in rows
        ]

    def _read(self, what: str) -> list[str]:
        return self.lib.lmkv_fake_read(what.encode()).decode().splitlines()

    @staticmethod
    def _known(stream: int, known: bool) -> None:
        if not known:
            raise ValueError(f"there is no stream {stream:#x}")
