"""Launches as kernels/jobs.h tells them, and a World (tests/kernels) on the fake's device.

Pages, job arrays and scratch are memory of the device; slots, registered memory of the host.
"""

from __future__ import annotations

import ctypes as c
from collections.abc import Mapping, Sequence

import numpy as np

from tests.fakecuda.fake import FakeCuda
from tests.fakecuda.raw import Driver
from tests.kernels.bodies import FINGERPRINT, WORD0, SlotShape, World, addresses

FATBIN = c.create_string_buffer(b"\x50\xed\x55\xba\1\0\x10\0")


class Divider(c.Structure):
    _fields_ = tuple((name, c.c_uint32) for name in ("divisor", "multiplier", "shift"))

    @classmethod
    def by(cls, divisor: int) -> Divider:
        shift = (divisor - 1).bit_length()
        return cls(divisor, ((2**shift - divisor) * 2**32 // divisor + 1) % 2**32, shift)


class PagedKv(c.Structure):
    _fields_ = (
        ("layers", c.c_void_p),
        *((name, c.c_int64) for name in ("block_stride", "head_stride", "plane_stride")),
        *(("token_stride", c.c_uint32), ("run_pieces", Divider), ("page_runs", Divider)),
        *(("planes", c.c_uint32), ("blocks", c.c_uint32)),
    )


class CopyJob(c.Structure):
    _fields_ = (
        ("pages", PagedKv),
        *((name, c.c_void_p) for name in ("chunk_blocks", "slots", "names")),
        *(("shape", SlotShape), ("segment_bytes", c.c_uint64), ("head_offset", c.c_int64)),
        *((name, c.c_uint32) for name in ("chunks", "layers", "heads")),
        *((name, c.c_uint32) for name in ("slot_heads", "first_segment")),
        *((name, c.c_void_p) for name in ("digests", "arrived", "headers", "verdicts")),
    )


class HeaderJob(c.Structure):
    _fields_ = (("slots", c.c_void_p), ("headers", c.c_void_p), ("chunks", c.c_uint32))


class HashJob(c.Structure):
    _fields_ = (
        *(("chunks", c.c_void_p), ("digests", c.c_void_p)),
        *(("count", c.c_uint32), ("blocks", c.c_uint32)),
    )


ARRAYS = ("layers", "chunk_blocks", "slots", "names", "digests", "arrived", "headers", "verdicts")


def slot_names(world: World) -> np.ndarray:
    names = (key + n.to_bytes(8, "little") for key, n in zip(world.keys, world.generations))
    return np.frombuffer(b"".join(names), np.uint8)


def copy_job(world: World, piece: int, at: Mapping[str, int]) -> CopyJob:
    """Of all chunks; `at` is where each of ARRAYS is on the device."""
    case, strides = world.case, world.strides
    touch = strides["t"] == case.run
    pages = PagedKv(
        at["layers"],
        *(strides[axis] for axis in "bhp"),
        0 if touch else strides["t"],
        Divider.by(case.run * (case.tokens if touch else 1) // piece),
        Divider.by(1 if touch else case.tokens),
        *(case.planes, case.per_chunk),
    )
    units = world.segments * world.segment_bytes // 64
    return CopyJob(
        pages,
        *(at[name] for name in ("chunk_blocks", "slots", "names")),
        SlotShape(WORD0, FINGERPRINT, world.segments, units),
        *(world.segment_bytes, 0, world.chunks, case.layers, case.heads, case.heads, 0),
        *(at[name] for name in ("digests", "arrived", "headers", "verdicts")),
    )


class OnDevice:
    """`adopted`: every array that launches use, but for the slots."""

    def __init__(self, world: World, fake: FakeCuda, driver: Driver) -> None:
        self.world, self.fake, self.driver = world, fake, driver
        self.put_on()

    def put_on(self) -> None:
        world, fake, driver = self.world, self.fake, self.driver
        case = world.case
        self.stream = driver.stream()
        self.module = driver.made(driver.module_load, FATBIN)
        segments = case.layers * case.heads
        self.layers = addresses([world.kv[n].ctypes.data for n in range(case.layers)])
        self.slots = addresses([slot.ctypes.data for slot in world.slots])
        self.names = slot_names(world)
        self.chunk_blocks = np.zeros((world.chunks, case.per_chunk), np.uint32)
        self.digests = np.zeros(world.chunks * segments, np.uint64)
        self.verdicts = np.full(world.chunks, 99, np.uint32)
        self.adopted = [
            *(world.memory, self.layers, self.slots, self.names, self.chunk_blocks),
            *(self.digests, world.arrived, world.headers, self.verdicts),
        ]
        for array in self.adopted:
            fake.adopt(array)
        for slot in world.slots:
            driver.good(driver.host_register(slot.ctypes.data, slot.nbytes, 0))

    def function(self, name: str) -> int:
        return self.driver.made(self.driver.module_function, self.module, name.encode())

    def copy(self, name: str, blocks: Sequence[Sequence[int]]) -> int:
        """One launch of lmkv_<name>; the error."""
        self.chunk_blocks[:] = blocks
        return self.driver.run(self.function(f"lmkv_{name}"), self.job(name), self.stream, blocks=3)

    def job(self, name: str) -> CopyJob:
        world = self.world
        arrays = vars(self) | {"arrived": world.arrived, "headers": world.headers}
        at = {array: arrays[array].ctypes.data for array in ARRAYS}
        return copy_job(world, int(name.rpartition("_")[2]), at)

    def put_headers(self, name: str) -> int:
        """lmkv_clear or lmkv_publish."""
        job = HeaderJob(self.slots.ctypes.data, self.world.headers.ctypes.data, self.world.chunks)
        return self.driver.run(self.function(name), job, self.stream, blocks=1, threads=64)

    def gather(self, blocks: Sequence[Sequence[int]]) -> None:
        """Clear, gather, publish: three launches in the stream."""
        self.driver.good(self.put_headers("lmkv_clear"))
        self.driver.good(self.copy("gather_16", blocks))
        self.driver.good(self.put_headers("lmkv_publish"))

    def put_back(self) -> None:
        """A new life of the process after a lost context."""
        self.fake.reset()
        self.driver.begin()
        self.put_on()

    def put_away(self) -> None:
        """All is as before; errors of a lost context are the test's."""
        for slot in self.world.slots:
            self.driver.host_unregister(slot.ctypes.data)
        self.driver.module_unload(self.module)
        self.driver.stream_destroy(self.stream)
