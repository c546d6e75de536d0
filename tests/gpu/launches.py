"""lmkv's kernels launched alone, with slots in the card's memory: on a fake driver or a real one.

    with Launcher(device) as launcher:
        alone = launcher.of(world)        # KV, slots and what a launch is told are on the card
        alone.gather(blocks)              # clear, gather, publish
        alone.slot(0)                     # its bytes
        alone.copy("scatter", blocks)     # verdicts

All memory is the driver's own, so this needs no torch.
"""

from __future__ import annotations

import ctypes as c
import math
from collections.abc import Callable, Sequence

import numpy as np

from tests.fakecuda.jobs import HashJob, HeaderJob, copy_job, slot_names
from tests.fakecuda.raw import Driver
from tests.gpu.cards import OnFake, OnReal
from tests.kernels.bodies import World, addresses

Launch = Callable[[], None]  # puts something into the launcher's stream
COPY_THREADS, HASH_THREADS, HEADER_THREADS = 256, 64, 64  # kernels/jobs.h


class Launcher:
    """A stream, the kernels, and memory that is given back at the end."""

    def __init__(self, device: OnFake | OnReal) -> None:
        self.driver = Driver(device.cuda)
        self.driver.begin()
        self.stream = self.driver.stream()
        self.module = self.driver.made(self.driver.module_load, device.image)
        self.events = [self.driver.event(timed=True) for _ in range(2)]
        self._held: list[int] = []

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        driver = self.driver
        if kind is None:
            driver.wait(self.stream)
        self.free()
        for event in self.events:
            driver.event_destroy(event)
        driver.module_unload(self.module)
        driver.stream_destroy(self.stream)
        driver.primary_release(0)

    def free(self) -> None:
        for address in self._held:
            self.driver.mem_free(address)
        self._held.clear()

    def alloc(self, size: int) -> int:
        self._held.append(self.driver.alloc(size))
        return self._held[-1]

    def put(self, array: np.ndarray) -> int:
        """A copy on the card; its address."""
        at = self.alloc(array.nbytes)
        self.write(at, array)
        return at

    def write(self, at: int, array: np.ndarray) -> None:
        self.enqueue_copy(at, array.ctypes.data, array.nbytes)
        self.driver.wait(self.stream)

    def read(self, at: int, into: np.ndarray) -> np.ndarray:
        self.enqueue_copy(into.ctypes.data, at, into.nbytes)
        self.driver.wait(self.stream)
        return into

    def enqueue_copy(self, to: int, source: int, size: int) -> None:
        self.driver.good(self.driver.copy(to, source, size, self.stream))

    def function(self, name: str) -> int:
        return self.driver.made(self.driver.module_function, self.module, name.encode())

    def prepared(self, name: str, job: c.Structure, blocks: int, threads: int) -> Launch:
        """A launch to be made again and again, which costs the host little."""
        run, function, stream = self.driver.run, self.function(name), self.stream

        def launch() -> None:
            self.driver.good(run(function, job, stream, blocks=blocks, threads=threads))

        return launch

    def fill(self, at: int, word: int, size: int) -> None:
        self.driver.good(self.driver.fill(at, word, size // 4, self.stream))

    def seconds(self, enqueue: Launch, behind: Launch | None = None) -> float:
        """By the card's clock, from where the stream comes to it to where it is done. `behind`:
        what the card does while the host puts the rest into the stream; else that counts too."""
        driver, (begin, end) = self.driver, self.events
        if behind is not None:
            behind()
        driver.good(driver.event_record(begin, self.stream))
        enqueue()
        driver.good(driver.event_record(end, self.stream))
        driver.await_event(end)
        milliseconds = c.c_float()
        driver.good(driver.event_elapsed(c.byref(milliseconds), begin, end))
        return milliseconds.value / 1e3

    def of(self, world: World, blocks: int = 3) -> Alone:
        return Alone(self, world, blocks)

    def hash(self, tokens: np.ndarray, offsets: Sequence[int], size: int, piece: int) -> bytes:
        """Digests of the chunks of `size` bytes at these offsets."""
        at, count = self.put(tokens), len(offsets)
        digests = self.put(np.zeros(32 * count, np.uint8))
        chunks = self.put(addresses([at + offset for offset in offsets]))
        job = HashJob(chunks, digests, count, size // 64)
        self.prepared(f"lmkv_hash_{piece}", job, 2, HASH_THREADS)()
        return self.read(digests, np.empty(32 * count, np.uint8)).tobytes()


class Alone:
    """A world's copies, `blocks` blocks a launch."""

    def __init__(self, launcher: Launcher, world: World, blocks: int) -> None:
        self.launcher, self.world, self.blocks = launcher, world, blocks
        self.piece = math.gcd(16, world.case.offset, world.case.run, *world.strides.values())
        case, put = world.case, launcher.put
        self.kv = put(world.memory)
        self.slots = [put(slot) for slot in world.slots]
        first = world.memory.ctypes.data
        self.at = {
            "layers": put(addresses([self.kv + layer.ctypes.data - first for layer in world.kv])),
            "chunk_blocks": put(np.zeros((world.chunks, case.per_chunk), np.uint32)),
            "slots": put(addresses(self.slots)),
            "names": put(slot_names(world)),
            "digests": put(np.zeros(world.chunks * world.segments, np.uint64)),
            "arrived": put(np.zeros(world.chunks, np.uint32)),
            "headers": put(np.zeros((world.chunks, 64), np.uint8)),
            "verdicts": put(np.full(world.chunks, 99, np.uint32)),
        }

    def tell(self, blocks: Sequence[Sequence[int]]) -> None:
        self.launcher.write(self.at["chunk_blocks"], np.array(blocks, np.uint32))

    def tell_slots(self, slots: Sequence[int]) -> None:
        self.launcher.write(self.at["slots"], addresses(slots))

    def prepared(self, copy: str, piece: int = 0) -> Launch:
        """lmkv_<copy>, of the blocks that were told last when it comes to it."""
        piece = piece or self.piece
        job = copy_job(self.world, piece, self.at)
        width = 16 if copy == "verify" else piece  # that one touches no pages
        return self.launcher.prepared(f"lmkv_{copy}_{width}", job, self.blocks, COPY_THREADS)

    def copy(self, copy: str, blocks: Sequence[Sequence[int]], piece: int = 0) -> list[int]:
        """Its verdicts; of a gather, those of the launch before."""
        self.tell(blocks)
        self.prepared(copy, piece)()
        return self.verdicts()

    def verdicts(self) -> list[int]:
        found = np.empty(self.world.chunks, np.uint32)
        return self.launcher.read(self.at["verdicts"], found).tolist()

    def headers(self, name: str) -> Launch:
        """lmkv_clear or lmkv_publish."""
        chunks = self.world.chunks
        job = HeaderJob(self.at["slots"], self.at["headers"], chunks)
        return self.launcher.prepared(f"lmkv_{name}", job, -(-chunks // 64), HEADER_THREADS)

    def gather(self, blocks: Sequence[Sequence[int]], piece: int = 0) -> None:
        """The whole write path of a pool in the card's memory."""
        self.headers("clear")()
        self.copy("gather", blocks, piece)
        self.headers("publish")()

    def slot(self, n: int) -> np.ndarray:
        return self.launcher.read(self.slots[n], np.empty(self.world.used, np.uint8))

    def memory(self) -> np.ndarray:
        return self.launcher.read(self.kv, np.empty_like(self.world.memory))
