"""Keys: one core against one-shot BLAKE3 of the same bytes, and from vLLM's Python list.

The limit is the `blake3` package (its best instruction set, one thread); the second row's limit is
DESIGN's millisecond, a number and not a measurement.
"""

from __future__ import annotations

import array
import random
import struct

from blake3 import blake3
from lmkv import _native

from bench.harness import Figure, Row, measure

TOKENS = 131_072
SPEC = "head_size=128\nkind=full\nkv_heads=8\nlayers=0-31\nwindow=0\n"


def rows() -> list[Row]:
    draw = random.Random(1)
    tokens = [draw.randrange(151_936) for _ in range(TOKENS)]
    buffer = array.array("I", tokens)
    data = buffer.tobytes()
    hasher = _native.KeyHasher("format=1\n", [SPEC], 256)

    def keys(source: list[int] | array.array[int]) -> bytes:
        chain = hasher.chain()
        chain.extend(source)
        return chain.keys()

    expected = oracle(data)
    assert keys(buffer) == expected
    assert keys(tokens) == expected

    def gigabytes(seconds: float) -> float:
        return len(data) / seconds / 1e9

    ours, limit = measure(
        lambda: keys(buffer),
        lambda: blake3(data, max_threads=1).digest(),
        rounds=201,
        figure=gigabytes,
    )
    (listed,) = measure(lambda: keys(tokens), rounds=201, figure=lambda s: s * 1e3)
    note = f"{TOKENS} tokens, 1 group, {_native.isa()}"
    target = Figure(1.0, 1.0, 1.0)  # DESIGN 11: a number, not a measurement
    return [
        Row("keys, one core, from a buffer", "GB/s", ours, limit, 0.7, note=note),
        Row("keys from a Python list", "ms", listed, target, 1.0, at_least=False, note=note),
    ]


def oracle(data: bytes) -> bytes:
    """The keys of 256-token chunks by the `blake3` package."""
    link = blake3(b"format=1\n", derive_key_context="lmkv 1 root").digest()
    found = []
    for (chunk,) in struct.iter_unpack("1024s", data):
        link = blake3(link + blake3(chunk).digest(), derive_key_context="lmkv 1 link").digest()
        found.append(blake3(link + SPEC.encode(), derive_key_context="lmkv 1 key").digest()[:16])
    return b"".join(found)


if __name__ == "__main__":
    for row in rows():
        print(row.name, row.unit, row.lmkv, row.limit, f"{row.ratio:.3f}", row.met, row.note)
