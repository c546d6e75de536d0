"""lmkv's keys without lmkv: a BLAKE3 library is all it takes. Prints one key per whole chunk.

python examples/keys.py NAMESPACE_FILE GROUP_SPEC_FILE CHUNK_TOKENS < tokens
"""

import struct
import sys
from pathlib import Path

from blake3 import blake3

namespace, spec = (Path(name).read_bytes() for name in sys.argv[1:3])
size, tokens = int(sys.argv[3]), [int(word) for word in sys.stdin.read().split()]
link = blake3(namespace, derive_key_context="lmkv 1 root").digest()
for at in range(0, len(tokens) - size + 1, size):
    digest = blake3(struct.pack(f"<{size}I", *tokens[at : at + size])).digest()
    extra = b""  # of a request with a salt, an adapter, images or embeddings: docs/keys.md
    link = blake3(link + digest + extra, derive_key_context="lmkv 1 link").digest()
    print(blake3(link + spec, derive_key_context="lmkv 1 key").hexdigest()[:32])
