"""Golden vectors of keys, made with the `blake3` package and none of lmkv's code.

    python tests/golden/make_keys.py > tests/golden/keys.json

A case's tokens are (first + i * step) mod modulus for i below count.
"""

import json
import struct
import sys

from blake3 import blake3

FULL = "head_size=64\nkind=full\nkv_heads=4\nlayers=0-7\nwindow=0\n"
WINDOW = "head_size=64\nkind=window\nkv_heads=4\nlayers=8-11\nwindow=512\n"
NAMESPACE = "architecture=LlamaForCausalLM\nchunk_tokens=256\nformat=1\n"


def pack(items):
    """Items (tag, bytes), sorted by tag, then bytes."""
    return b"".join(struct.pack("<BI", tag, len(value)) + value for tag, value in sorted(items))


def keys_of(namespace, specs, chunk_tokens, tokens, extras):
    """Keys by group; `extras` maps a chunk's number to its items (tag, bytes)."""
    link = blake3(namespace.encode(), derive_key_context="lmkv 1 root").digest()
    keys = [[] for _ in specs]
    for chunk in range(len(tokens) // chunk_tokens):
        own = tokens[chunk * chunk_tokens : (chunk + 1) * chunk_tokens]
        digest = blake3(struct.pack(f"<{chunk_tokens}I", *own)).digest()
        message = link + digest + pack(extras.get(chunk, []))
        link = blake3(message, derive_key_context="lmkv 1 link").digest()
        for group, spec in zip(keys, specs):
            key = blake3(link + spec.encode(), derive_key_context="lmkv 1 key").digest()
            group.append(key[:16])
    return keys


def tokens_of(first, step, modulus, count):
    return [(first + i * step) % modulus for i in range(count)]


def case(name, chunk_tokens=256, specs=(FULL,), namespace=NAMESPACE, tokens=None, extras=None):
    tokens = tokens or {"first": 1, "step": 7919, "modulus": 151936, "count": 1100}
    extras = extras or {}
    keys = keys_of(namespace, specs, chunk_tokens, tokens_of(**tokens), extras)
    return {
        "name": name,
        "namespace": namespace,
        "group_specs": list(specs),
        "chunk_tokens": chunk_tokens,
        "tokens": tokens,
        "extras": {str(n): [[tag, v.hex()] for tag, v in items] for n, items in extras.items()},
        "keys": [[key.hex() for key in group] for group in keys],
    }


def image(identifier, offset, length):
    raw = identifier.encode()
    return struct.pack("<I", len(raw)) + raw + struct.pack("<iI", offset, length)


def cases():
    largest = {"first": 0xFFFFFFFF, "step": 1, "modulus": 1 << 32, "count": 512}
    yield case("four chunks and a tail")
    yield case("two groups", specs=(FULL, WINDOW))
    yield case("the largest tokens", tokens=largest)
    yield case("another namespace", namespace="format=1\n")
    yield case("chunks of 16", chunk_tokens=16)
    yield case("chunks of 100, no whole blocks", chunk_tokens=100)
    yield case("chunks of 544, a tree", chunk_tokens=544)
    yield case("chunks of 1024, a full tree", chunk_tokens=1024)
    yield case("salt", extras={0: [(1, b"tenant 7")]})
    yield case("LoRA and salt", extras={0: [(2, blake3(b"adapter").digest()), (1, b"tenant 7")]})
    picture = [(3, image("picture", 200, 300))]
    yield case(
        "an image over two chunks", extras={0: picture, 1: [(3, image("picture", -56, 300))]}
    )
    yield case("embeddings", extras={2: [(4, blake3(b"rows").digest())]})
    many = [(3, image(f"picture {n}", n, 1)) for n in range(100)]
    yield case("an extra longer than a BLAKE3 chunk", extras={1: many})


if __name__ == "__main__":
    json.dump(list(cases()), sys.stdout, indent=1)
    print()
