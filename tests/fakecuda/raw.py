"""The driver's functions as lmkv calls them, for tests that call them directly.

Names and arguments are read from csrc/cuda/api.h. `Driver(fake)` has each by lmkv's name, returning
the driver's number; and a few that make something and expect success. `Driver(RealCuda())` has
those of the machine's own.
"""

from __future__ import annotations

import ctypes as c
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

from tests.fakecuda.build import ROOT
from tests.fakecuda.fake import FakeCuda

API = (ROOT / "csrc/cuda/api.h").read_text()
ENTRY = re.compile(r"X\((\w+), (\w+),\s*\(([^()]*)\)\)")
NEWER = ("copy_batch", "copy_batch_12")


class IpcHandle(c.Structure):
    _fields_ = (("reserved", c.c_char * 64),)


class CopyAttributes(c.Structure):
    _fields_ = (("order", c.c_int), ("hints", c.c_int * 4), ("flags", c.c_uint))


VALUES = {
    "int": c.c_int,
    "unsigned int": c.c_uint,
    "std::size_t": c.c_size_t,
    "CUdeviceptr": c.c_uint64,
    "CUipcMemHandle": IpcHandle,
    **dict.fromkeys(("CUresult", "CUdevice", "CUdevice_attribute"), c.c_int),
}

# lmkv's name: the symbol, and its arguments' types.
FUNCTIONS = {
    name: (
        symbol,
        [VALUES.get(one.rpartition(" ")[0].strip(), c.c_void_p) for one in arguments.split(",")],
    )
    for name, symbol, arguments in ENTRY.findall(API.replace("\\\n", ""))
}
NUMBERS = {name: int(n) for name, n in re.findall(r"^  ([A-Z_]+) = (\d+),$", API, re.MULTILINE)}

WAIT_S = 30.0

HOST_FUNCTION = c.CFUNCTYPE(None, c.c_void_p)


class RealCuda:
    """OSError: this machine has no driver."""

    path = "libcuda.so.1"

    def __init__(self) -> None:
        self.lib = c.CDLL(self.path)


class Driver:
    def __init__(self, fake: FakeCuda | RealCuda) -> None:
        self._fake, self._kept = fake, []
        for name, (symbol, arguments) in FUNCTIONS.items():
            function = getattr(fake.lib, symbol, None)  # an older driver has not all
            if function is not None:
                function.restype, function.argtypes = c.c_int, arguments
            setattr(self, name, function)

    def begin(self, device: int = 0) -> int:
        """cuInit, and the device's primary context for this thread."""
        self.good(self.init(0))
        context = self.made(self.primary_retain, device)
        self.good(self.set_current(context))
        return context

    @staticmethod
    def good(error: int) -> None:
        assert error == 0, error

    def made(self, make: Callable[..., int], *arguments: Any) -> int:
        """What the function writes to its first argument."""
        to = c.c_uint64()
        self.good(make(c.byref(to), *arguments))
        return to.value

    def stream(self) -> int:
        return self.made(self.stream_create, NUMBERS["STREAM_NON_BLOCKING"], 0)

    def event(self, timed: bool = False) -> int:
        return self.made(self.event_create, 0 if timed else NUMBERS["EVENT_DISABLE_TIMING"])

    def alloc(self, size: int) -> int:
        return self.made(self.mem_alloc, size)

    def await_event(self, event: int) -> None:
        deadline = time.monotonic() + WAIT_S
        while (error := self.event_query(event)) == NUMBERS["NOT_READY"]:
            assert time.monotonic() < deadline, f"the stream is not done after {WAIT_S:g} s"
        self.good(error)

    def wait(self, stream: int) -> None:
        """Until all that was put into it is done."""
        event = self.event()
        try:
            self.good(self.event_record(event, stream))
            self.await_event(event)
        finally:
            self.event_destroy(event)

    def call(self, stream: int, work: Callable[[], object]) -> None:
        """cuLaunchHostFunc."""
        function = HOST_FUNCTION(lambda _: work() and None)
        self._kept.append(function)
        launch = self._fake.lib.cuLaunchHostFunc
        launch.argtypes = [c.c_void_p, HOST_FUNCTION, c.c_void_p]
        self.good(launch(stream, function, None))

    def run(
        self,
        function: int,
        job: c.Structure,
        stream: int = 0,
        *,
        blocks: int = 2,
        threads: int = 256,
        shared: int = 0,
    ) -> int:
        """cuLaunchKernel with the job as its one parameter; the error."""
        parameters = (c.c_void_p * 1)(c.addressof(job))
        grid = (blocks, 1, 1, threads, 1, 1, shared)
        return self.launch(function, *grid, stream, parameters, None)

    def batch(self, copies: Sequence[tuple[int, int, int]], stream: int, order: int = 1) -> int:
        """Copies (to, from, bytes) by whichever function this driver has."""
        count = len(copies)
        to, source, sizes = ((c.c_uint64 * count)(*column) for column in zip(*copies))
        attributes, first = CopyAttributes(order), c.c_size_t(0)
        arguments = [to, source, sizes, count, c.byref(attributes), c.byref(first), 1]
        if self.copy_batch is not None:
            return self.copy_batch(*arguments, stream)
        return self.copy_batch_12(*arguments, c.byref(c.c_size_t()), stream)
