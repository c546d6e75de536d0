"""Each kernel alone, on a fake driver and on a real card: slots in the card's memory, and another
process's there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from lmkv import _native
from lmkv._native import SlotStatus

from tests.fakecuda.raw import NUMBERS, IpcHandle
from tests.gpu.cards import ROOT, OnFake, OnReal
from tests.gpu.launches import Launcher
from tests.kernels.bodies import Case, World
from tests.kernels.cases import CASES, kv

GOOD, DIGEST, GONE = SlotStatus.GOOD, SlotStatus.DIGEST, SlotStatus.GONE


@pytest.fixture
def launcher(device: OnFake | OnReal) -> Iterator[Launcher]:
    with Launcher(device) as launcher:
        yield launcher


def world_of(case: Case) -> World:
    world = World(case, chunks=1 if case.per_chunk * 2 > case.blocks else 2)
    for slot in world.slots:
        slot[:] = 0
    return world


@pytest.mark.parametrize("case", CASES, ids=str)
def test_copies_between_pages_and_slots_on_the_card(launcher: Launcher, case: Case) -> None:
    world = world_of(case)
    alone = launcher.of(world)
    source, target = world.some_blocks(), world.some_blocks()
    payloads = [world.payload(blocks) for blocks in source]
    for piece in (piece for piece in (4, 8, 16) if piece <= alone.piece):
        alone.gather(source, piece)
        for n, blocks in enumerate(source):
            assert np.array_equal(alone.slot(n), world.slot_like_the_host(blocks, n))
        assert alone.copy("verify", source) == [GOOD] * world.chunks
        assert alone.copy("audit", source, piece) == [GOOD] * world.chunks
        expected = world.expect_scatter(target, payloads)
        assert alone.copy("scatter", target, piece) == [GOOD] * world.chunks
        assert np.array_equal(alone.memory(), expected)
        launcher.write(alone.kv, world.memory)


def test_a_slot_is_cleared_before_and_published_after(launcher: Launcher) -> None:
    """In between it has no word 0; nobody reads it."""
    world = world_of(kv("small", "lbthp", 64, 4))
    alone, blocks = launcher.of(world), world.some_blocks()
    alone.gather(blocks)
    alone.headers("clear")()
    assert not alone.slot(0)[:8].any() and alone.slot(0)[8:64].any()
    assert alone.copy("verify", blocks) == [GONE] * 2
    alone.headers("publish")()
    assert alone.copy("verify", blocks) == [GOOD] * 2


def test_a_flipped_byte_and_changed_pages_have_their_verdicts(launcher: Launcher) -> None:
    world = world_of(kv("small", "lbthp", 64, 4))
    alone, blocks = launcher.of(world), world.some_blocks()
    alone.gather(blocks)
    wrong = alone.slot(1)
    wrong[-1] ^= 1
    launcher.write(alone.slots[1], wrong)
    assert alone.copy("verify", blocks) == [GOOD, DIGEST]
    assert alone.copy("audit", blocks) == [GOOD, GOOD]  # pages and tables alone
    assert alone.copy("scatter", blocks) == [GOOD, DIGEST]
    alone.gather(blocks)
    launcher.write(alone.kv, np.zeros_like(world.memory))
    assert alone.copy("audit", blocks) == [DIGEST, DIGEST]
    world.generations[0] += 1  # what a reader expects that was told of the slot's next life
    other = launcher.of(world)
    other.tell_slots(alone.slots)
    assert other.copy("verify", blocks) == [GONE, GOOD]


@pytest.mark.parametrize("size", [64, 128, 1024])
@pytest.mark.parametrize("piece", [16, 4])
def test_digests_of_chunks_are_blake3s(launcher: Launcher, size: int, piece: int) -> None:
    count = 300  # more than two blocks of threads have at a time
    tokens = np.random.default_rng(1).integers(0, 256, 16 + count * (size + 16), np.uint8)
    offsets = [(16 if piece == 16 else 4) + n * (size + 16) for n in range(count)]
    chunks = [tokens[offset : offset + size].tobytes() for offset in offsets]
    expected = b"".join(_native.blake3(chunk) for chunk in chunks)
    assert launcher.hash(tokens, offsets, size, piece) == expected


HOLDER = """
import sys
import ctypes as c
from tests.fakecuda.fake import FakeCuda
from tests.fakecuda.raw import Driver, IpcHandle, RealCuda
driver, handle = Driver(FakeCuda() if sys.argv[1] == "fake" else RealCuda()), IpcHandle()
driver.begin()
stream, slot = driver.stream(), sys.stdin.buffer.read(int(sys.argv[2]))
at, source = driver.alloc(2 << 20), c.create_string_buffer(slot)  # less is a part of an allocation
driver.good(driver.copy(at, c.addressof(source), len(slot), stream))
driver.wait(stream)
driver.good(driver.ipc_export(c.byref(handle), at))
print(bytes(handle).hex(), flush=True)
sys.stdin.buffer.read()
"""


def test_a_slot_in_another_processs_memory_on_the_card(
    device: OnFake | OnReal, launcher: Launcher
) -> None:
    """A second process holds it; the first one's kernel reads it there."""
    world = World(kv("small", "lbthp", 64, 4))
    source, target = world.some_blocks(), world.some_blocks()
    slot, payload = world.slot_like_the_host(source[0]), world.payload(source[0])
    kind = "fake" if isinstance(device, OnFake) else "real"
    assert slot.nbytes <= 2 << 20
    words = [sys.executable, "-c", HOLDER, kind, str(slot.nbytes)]
    ends = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    alone, driver = launcher.of(world), launcher.driver
    with subprocess.Popen(words, cwd=ROOT, **ends) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        holder.stdin.write(slot.tobytes())
        holder.stdin.flush()
        handle = IpcHandle.from_buffer_copy(bytes.fromhex(holder.stdout.readline().decode()))
        at = driver.made(driver.ipc_open, handle, NUMBERS["IPC_LAZY_PEER_ACCESS"])
        alone.tell_slots([at])
        assert alone.copy("scatter", target) == [GOOD]
        assert np.array_equal(alone.memory(), world.expect_scatter(target, [payload]))
        driver.good(driver.ipc_close(at))
        holder.stdin.close()
        assert holder.wait(30) == 0
