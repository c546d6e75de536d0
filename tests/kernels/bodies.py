"""The kernels' bodies on a CPU, and a small world of pages and slots to move bytes in.

`Bodies` is tests/kernels/bodies.cpp: launches whose threads run in shuffled order. `World` holds
vLLM's KV as an array [layer, plane, block, head, token, byte] that lies in memory in any order, and
slots for chunks of it; `payload` is the oracle.
"""

from __future__ import annotations

import ctypes as c
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from lmkv import _native
from lmkv._native import SKIPPED_BLOCK

ROOT = Path(__file__).resolve().parents[2]
COPIES = ("gather", "scatter", "verify", "audit")
FLAGS = ["-std=c++20", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread"]
SANITIZE = ["-fsanitize=undefined", "-fno-sanitize-recover=all"]

PAGE_FORMAT, FINGERPRINT = 1, 0xABC
WORD0 = int.from_bytes(b"LMKV\x01\x00\x01\x00", "little")


class Launch(c.Structure):
    _fields_ = (("teams", c.c_uint32), ("threads", c.c_uint32), ("seed", c.c_uint64))


class SlotShape(c.Structure):
    _fields_ = (
        ("word0", c.c_uint64),
        ("fingerprint", c.c_uint64),
        ("segments", c.c_uint32),
        ("payload_units", c.c_uint32),
    )


class Copying(c.Structure):
    _fields_ = (
        *((name, c.c_uint32) for name in ("copy", "piece")),
        ("layers", c.c_void_p),
        *((name, c.c_uint32) for name in ("planes", "blocks", "tokens", "run_bytes")),
        *((name, c.c_int64) for name in ("block_stride", "head_stride", "plane_stride")),
        ("token_stride", c.c_uint32),
        *((name, c.c_void_p) for name in ("chunk_blocks", "slots", "names")),
        ("shape", SlotShape),
        ("segment_bytes", c.c_uint64),
        ("head_offset", c.c_int64),
        *(
            (name, c.c_uint32)
            for name in ("chunks", "layer_count", "heads", "slot_heads", "first_segment")
        ),
        *((name, c.c_void_p) for name in ("headers", "verdicts")),
    )


@functools.cache
def library() -> c.CDLL | None:
    """Built once a session; None without a compiler."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        return None
    folder = Path(tempfile.mkdtemp(prefix="lmkv-bodies-"))
    built, source = folder / "bodies.so", Path(__file__).with_suffix(".cpp")
    include = f"-I{ROOT / 'kernels'}"
    ran = subprocess.run(
        [compiler, *FLAGS, *SANITIZE, include, str(source), "-o", str(built)],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    loaded = c.CDLL(str(built))
    shutil.rmtree(folder)
    loaded.lmkv_test_copy.restype = c.c_bool
    return loaded


def addresses(of: Sequence[int]) -> np.ndarray:
    return np.array(of, np.uint64)


def aligned(bytes_: int, offset: int = 0) -> np.ndarray:
    """Zeros from `offset` behind a multiple of 4096 on."""
    room = np.zeros(bytes_ + 8192, np.uint8)
    start = -room.ctypes.data % 4096 + offset
    return room[start : start + bytes_]


@dataclass
class Case:
    """`order` has the axes l p b h t, outermost first; `gap` bytes after a run are nobody's."""

    layers: int
    planes: int
    blocks: int
    heads: int
    tokens: int
    run: int
    order: str
    per_chunk: int
    gap: int = 0
    offset: int = 64
    name: str = ""

    def __str__(self) -> str:
        return self.name or f"{self.order}-{self.run}"


class World:
    def __init__(self, case: Case, chunks: int = 1, seed: int = 1, teams: int = 3) -> None:
        self.case, self.chunks = case, chunks
        self.launch = Launch(teams, 1, seed)
        self.random = np.random.default_rng(seed)
        sizes = dict(zip("lpbht", (case.layers, case.planes, case.blocks, case.heads, case.tokens)))
        self.strides, step = {}, case.run + case.gap
        for axis in reversed(case.order):
            self.strides[axis] = step
            step *= sizes[axis]
        self.memory = aligned(case.offset + step)
        self.memory[:] = self.random.integers(0, 256, self.memory.size, np.uint8)
        self.kv = self.view(self.memory)
        content = case.planes * case.per_chunk * case.tokens * case.run
        self.segment_bytes = -(-content // 64) * 64
        self.segments = case.layers * case.heads
        self.layout = _native.SlotLayout(
            self.segments, self.segment_bytes, PAGE_FORMAT, FINGERPRINT
        )
        self.used = self.layout.used_bytes
        self.slots = [aligned(self.used) for _ in range(chunks)]
        for slot in self.slots:  # what an earlier life has left; between table and payload: zeros
            slot[: 64 + 8 * self.segments] = 0xEE
            slot[self.layout.payload_offset :] = 0xEE
        self.keys = [bytes([n + 1]) * 16 for n in range(chunks)]
        self.generations = [(5 << 32) + n + 1 for n in range(chunks)]
        self.headers = np.zeros((chunks, 64), np.uint8)
        self.arrived = np.zeros(chunks, np.uint32)

    def view(self, memory: np.ndarray) -> np.ndarray:
        case, axes = self.case, "lpbht"
        shape = (case.layers, case.planes, case.blocks, case.heads, case.tokens, case.run)
        strides = [*(self.strides[a] for a in axes), 1]
        return np.lib.stride_tricks.as_strided(memory[case.offset :], shape, strides)

    def some_blocks(self) -> list[list[int]]:
        """Each chunk's blocks; no block twice."""
        count = self.case.per_chunk
        order = self.random.permutation(self.case.blocks)[: count * self.chunks].tolist()
        return [order[n * count : (n + 1) * count] for n in range(self.chunks)]

    def payload(self, blocks: Sequence[int]) -> np.ndarray:
        """The oracle: [segment, byte], with zero padding."""
        chunk = self.kv[:, :, list(blocks)].transpose(0, 3, 1, 2, 4, 5)
        chunk = chunk.reshape(self.segments, -1)
        return np.pad(chunk, ((0, 0), (0, self.segment_bytes - chunk.shape[1])))

    def slot_like_the_host(self, blocks: Sequence[int], chunk: int = 0) -> np.ndarray:
        """What csrc makes of the oracle's payload."""
        slot = aligned(self.used)
        payload = self.payload(blocks).tobytes()
        key, generation = self.keys[chunk], self.generations[chunk]
        _native.write_slot(slot.ctypes.data, self.layout, key, generation, payload)
        return slot

    def piece(self) -> int:
        bits = self.case.run | self.kv.ctypes.data
        for stride in self.strides.values():
            bits |= stride
        lib = library()
        assert lib is not None
        return int(lib.lmkv_test_widest_piece(c.c_uint64(bits)))

    def copy(
        self,
        copy: str,
        blocks: Sequence[Sequence[int]],
        *,
        piece: int = 0,
        layers: slice = slice(None),
        heads: slice = slice(None),
        slot_heads: int = 0,
        first_segment: int = 0,
        slot_segments: int = 0,
    ) -> list[int]:
        """One launch over all chunks; the verdicts. Slices take some of the engine's layers and
        heads, as segments from `first_segment` on of slots with `slot_heads` heads a layer."""
        case = self.case
        some_layers = range(case.layers)[layers]
        some_heads = range(case.heads)[heads]
        segments = slot_segments or self.segments
        layer_at = addresses([self.kv[n].ctypes.data for n in some_layers])
        slot_at = addresses([slot.ctypes.data for slot in self.slots])
        chunk_blocks = np.array(blocks, np.uint32)
        names = b"".join(
            key + generation.to_bytes(8, "little")
            for key, generation in zip(self.keys, self.generations)
        )
        verdicts = np.full(self.chunks, 99, np.uint32)
        digests = np.zeros(self.chunks * len(some_layers) * len(some_heads), np.uint64)
        job = Copying(
            COPIES.index(copy),
            piece or self.piece(),
            layer_at.ctypes.data,
            *(case.planes, case.per_chunk, case.tokens, case.run),
            *(self.strides[axis] for axis in "bhpt"),
            *(chunk_blocks.ctypes.data, slot_at.ctypes.data),
            c.cast(names, c.c_void_p),
            SlotShape(WORD0, FINGERPRINT, segments, segments * self.segment_bytes // 64),
            self.segment_bytes,
            some_heads.start * self.strides["h"],
            *(self.chunks, len(some_layers), len(some_heads)),
            *(slot_heads or case.heads, first_segment),
            *(self.headers.ctypes.data, verdicts.ctypes.data),
        )
        lib = library()
        assert lib is not None
        self.launch.seed += 1
        assert lib.lmkv_test_copy(
            c.byref(job),
            c.byref(self.launch),
            c.c_void_p(digests.ctypes.data),
            c.c_void_p(self.arrived.ctypes.data),
        )
        assert not self.arrived.any()  # ready for the next launch
        return [] if copy == "gather" else verdicts.tolist()

    def put_headers(self, publish: bool) -> None:
        """The launch before a gather (clear) or after it (publish)."""
        lib = library()
        assert lib is not None
        slot_at = addresses([slot.ctypes.data for slot in self.slots])
        lib.lmkv_test_headers(
            c.c_void_p(slot_at.ctypes.data),
            c.c_void_p(self.headers.ctypes.data),
            c.c_uint32(self.chunks),
            c.c_bool(publish),
            c.byref(self.launch),
        )

    def gather(self, blocks: Sequence[Sequence[int]], piece: int = 0) -> None:
        """The whole write path."""
        self.put_headers(publish=False)
        self.copy("gather", blocks, piece=piece)
        self.put_headers(publish=True)

    def expect_scatter(self, blocks: Sequence[Sequence[int]], payloads: Sequence[np.ndarray]):
        """Memory as it must be after a scatter of these payloads; skipped blocks stay."""
        case, expected = self.case, self.memory.copy()
        twin = self.view(expected)
        shape = (case.layers, case.heads, case.planes, case.per_chunk, case.tokens, case.run)
        size = int(np.prod(shape[2:]))
        for of_chunk, payload in zip(blocks, payloads):
            chunk = payload[:, :size].reshape(shape)
            for n, block in enumerate(of_chunk):
                if block != SKIPPED_BLOCK:
                    twin[:, :, block] = chunk[:, :, :, n].transpose(0, 2, 1, 3, 4)
        return expected


def hash_chunks(chunks: Sequence[np.ndarray], piece: int, teams: int = 2, seed: int = 1) -> bytes:
    """Digests, 32 bytes each, of chunks of equal length wherever they lie."""
    lib = library()
    assert lib is not None
    at = addresses([chunk.ctypes.data for chunk in chunks])
    out = aligned(32 * len(chunks))
    blocks = chunks[0].nbytes // 64
    lib.lmkv_test_hash(
        c.c_void_p(at.ctypes.data),
        c.c_void_p(out.ctypes.data),
        c.c_uint32(len(chunks)),
        c.c_uint32(blocks),
        c.c_uint32(piece),
        c.byref(Launch(teams, 1, seed)),
    )
    return out.tobytes()
