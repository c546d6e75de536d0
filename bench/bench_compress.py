"""Compressed slots on real KV: SmolLM2-135M's (demo/model.py) of a page of English.

Ratio, and how fast chunks are compressed and loaded. The limit of the two speeds is zstd alone on
the same planes, by Python's own module: what is left is splitting and joining, digests and copies.

Tried on these chunks, planes of 32 KiB: of the exponents zstd leaves 0.38 at level 1 and 0.40 at 3,
lz4 0.70, as it does not code bytes by how often they occur; of signs and mantissas zstd leaves 0.99
and lz4 1.00. So it is zstd at level 1, and a plane that does not shrink by a 16th is left as it is.
"""

from __future__ import annotations

import sys
from pydoc_data.topics import topics
from typing import Any

import numpy as np
from lmkv import _native
from lmkv.core import zstd

from bench.harness import Figure, Row, measure
from demo.model import MODEL, make_model

LAYERS, HEADS, HEAD, TOKENS, CHUNKS = 30, 3, 64, 256, 4
SEGMENT = 2 * TOKENS * HEAD * 2  # K of all tokens, then V, in bfloat16
LAYOUT = _native.SlotLayout(LAYERS * HEADS, SEGMENT, 1, 1)
KEY, CODEC, GENERATION = bytes(16), 2, 1


def real_kv() -> list[bytes]:
    """The payloads of the first chunks of a text: computed in float32, which CPUs are faster at,
    and rounded to what the demo's servers keep."""
    import torch
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    make_model(MODEL, MODEL.with_suffix(".log"))
    text = " ".join(topics[name] for name in ("types", "operator-summary", "context-managers"))
    tokens = AutoTokenizer.from_pretrained(MODEL)(text)["input_ids"][: CHUNKS * TOKENS]
    assert len(tokens) == CHUNKS * TOKENS
    model = AutoModel.from_pretrained(MODEL, dtype=torch.float32)  # logits are not asked for
    with torch.inference_mode():
        cache: Any = model(torch.tensor([tokens]), use_cache=True).past_key_values
    kv = torch.stack([torch.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers])
    words = kv.to(torch.bfloat16).transpose(1, 2).contiguous().view(torch.uint16)
    layers = words.numpy()  # layer, head, K and V, ..
    chunks = layers.reshape(LAYERS, HEADS, 2, CHUNKS, TOKENS * HEAD)
    return [chunks[:, :, :, n].tobytes() for n in range(CHUNKS)]


class World:
    """Each chunk's full slot, its compressed one, and blocks to load it into."""

    def __init__(self) -> None:
        zstd.load()
        self.payloads = real_kv()
        self.pool = _native.Pool(LAYOUT.granule_bytes, 2 * CHUNKS, 2 * CHUNKS)
        self.pool.add_segment()
        self.images: list[bytes] = []
        page = TOKENS * HEAD * 2
        self.kv = np.zeros((LAYERS, 2, CHUNKS, HEADS, page), np.uint8)  # as vLLM's, K and V apart
        pages = _native.Pages(
            [layer.ctypes.data for layer in self.kv],
            CHUNKS, HEADS, 1, page, HEADS * page, page, page, 2, CHUNKS * HEADS * page,
        )  # fmt: skip
        self.copier = _native.Copier(LAYOUT, pages, 1)
        for n, payload in enumerate(self.payloads):
            _native.write_slot(self.full(n), LAYOUT, KEY, GENERATION, payload)
        self.compress()
        for n, image in enumerate(self.images):
            room = LAYOUT.slot_bytes
            _native.place_compressed(self.short(n), room, LAYOUT, KEY, GENERATION, CODEC, image)

    def full(self, n: int) -> int:
        return self.pool.segment(0)[0] + n * LAYOUT.slot_bytes

    def short(self, n: int) -> int:
        return self.full(CHUNKS + n)

    def compress(self) -> None:
        self.images = []
        for n in range(CHUNKS):
            _, image = _native.compress_slot(self.full(n), LAYOUT, KEY, GENERATION, CODEC)
            self.images.append(image)

    def load(self) -> None:
        for n in range(CHUNKS):
            status = self.copier.scatter(self.short(n), KEY, GENERATION, [n], LAYOUT.slot_bytes)
            assert status == _native.SlotStatus.GOOD

    def check(self) -> None:
        self.load()
        for n, payload in enumerate(self.payloads):
            chunk = self.kv[:, :, n].transpose(0, 2, 1, 3)
            assert np.ascontiguousarray(chunk).tobytes() == payload, f"chunk {n} differs"

    def exponents(self) -> list[bytes]:
        """The planes that shrink."""
        found = []
        for payload in self.payloads:
            words = np.frombuffer(payload, "<u2").reshape(LAYERS * HEADS, -1)
            high = (((words << 1) | (words >> 15)) >> 8).astype(np.uint8)
            found += [plane.tobytes() for plane in high]
        return found

    def granules(self) -> list[int]:
        return [-(-len(image) // LAYOUT.granule_bytes) for image in self.images]


def rows() -> list[Row]:
    if sys.version_info >= (3, 14):
        from compression import zstd as module
    else:
        from backports import zstd as module
    world = World()
    world.check()
    planes = world.exponents()
    frames = [module.compress(plane, level=1) for plane in planes]
    gigabytes = sum(map(len, world.payloads)) / 1e9
    rate = {"rounds": 7, "figure": lambda seconds: gigabytes / seconds}
    packing = measure(
        world.compress, lambda: [module.compress(plane, level=1) for plane in planes], **rate
    )
    loading = measure(world.load, lambda: [module.decompress(frame) for frame in frames], **rate)
    stored = sum(map(len, world.images)) / sum(map(len, world.payloads))
    slots = sum(world.granules()) / CHUNKS
    note = f"zstd {_native.zstd_version()}, {_native.isa()}, one core"
    limit = note + ", limit: zstd alone on the planes that shrink"
    return [
        Row(
            "compressed KV", "bytes a byte", Figure(stored, stored, stored), Figure(1, 1, 1),
            target=0.8, at_least=False, note=f"{slots:.1f} of 16 granules a slot",
        ),
        Row("compress", "GB/s", *packing, target=0.6, note=limit),
        Row("load, decompressed", "GB/s", *loading, target=0.6, note=limit),
    ]  # fmt: skip


if __name__ == "__main__":
    for row in rows():
        print(f"{row.name}: {row.lmkv} {row.unit}, limit {row.limit}, ratio {row.ratio:.2f}")
