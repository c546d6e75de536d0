"""What of a request, beside its tokens, changes KV bytes: the items of `extra_i` (docs/keys.md).

`request_extras(request, chunk_tokens, adapters)` reads a vLLM `Request` (0.32) and answers
`RequestExtras` (what `KeyHasher.chain(common)` and `KeyChain.extend(..., extras=chunks)` take) or
`OptedOut`: whatever this module does not know makes the request not shared, never wrongly shared.
An item is tag u8, length u32 little-endian, bytes; a sequence is sorted by tag, then bytes.
"""

from __future__ import annotations

import ctypes
import re
import struct
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmkv import _native

SALT, LORA, MULTIMODAL, EMBEDS = 1, 2, 3, 4
NAMES = 1024  # of adapters that are remembered

# vLLM's hash of a multimodal input (BLAKE3, SHA-256, SHA-512), behind a LoRA's name where the
# adapter changes the embeddings. Names that clients give to their inputs do not look like that.
CONTENT_ID = re.compile(r"(^|:)([0-9a-f]{64}|[0-9a-f]{128})$")

# What a `Request` of vLLM 0.32 holds: read below, or without effect on the prompt's KV.
_KNOWN = """
    abort_immediately all_token_ids arrival_time block_hashes cache_salt client_index
    drop_stale_output ec_transfer_params events is_prefill_chunk kv_cache_report_mode kv_hints
    kv_transfer_params last_sched_seq lora_request max_tokens mm_features
    next_decode_eligible_step num_computed_tokens num_in_flight_tokens num_nans_in_logits
    num_output_placeholders num_preemptions num_prompt_tokens num_stale_output_tokens
    output_token_ids pooling_params prefill_stats priority prompt_embeds prompt_is_token_ids
    prompt_token_ids replay_start request_id resumable sampling_params session_id
    shared_prefix_boundary skip_reading_prefix_cache spec_decode_metrics spec_token_ids status
    stop_reason streaming_queue structured_output_request trace_headers
"""
KNOWN = frozenset(_KNOWN.split())


@dataclass(frozen=True)
class OptedOut:
    """The request is not shared; `reason` is for people."""

    reason: str


@dataclass(frozen=True)
class RequestExtras:
    """Canonical item sequences: of the whole request, and of chunks by number."""

    common: bytes = b""
    chunks: Mapping[int, bytes] = field(default_factory=dict)


def pack(items: Iterable[tuple[int, bytes]]) -> bytes:
    """Items (tag, bytes) as one canonical sequence."""
    return b"".join(struct.pack("<BI", tag, len(value)) + value for tag, value in sorted(items))


def request_extras(
    request: Any, chunk_tokens: int, adapters: AdapterHashes, *, content_ids: bool
) -> RequestExtras | OptedOut:
    """The extras of a request as it arrives; again after its input grew (a streaming session).

    `content_ids`: whether this engine names multimodal inputs by their content
    (`agent.namespace.content_ids`); where it counts them, two engines give two pictures one name.
    """
    for name, value in vars(request).items():
        # The rule for another vLLM's new fields: unset ones change nothing, set ones might.
        if name not in KNOWN and not name.startswith("_") and _is_set(value):
            return OptedOut(f"the request has '{name}', which this version of lmkv does not know")
    if request.pooling_params is not None:
        return OptedOut("a pooling request")
    common: list[tuple[int, bytes]] = []
    if request.cache_salt:
        common.append((SALT, request.cache_salt.encode()))
    if request.lora_request is not None:
        adapter = adapters.hash(request.lora_request)
        if isinstance(adapter, OptedOut):
            return adapter
        common.append((LORA, adapter))
    chunks: dict[int, list[tuple[int, bytes]]] = defaultdict(list)
    for feature in request.mm_features or ():
        if not content_ids or not CONTENT_ID.search(feature.identifier or ""):
            return OptedOut(f"multimodal input '{feature.identifier}' is not named by its content")
        for chunk, item in _multimodal(feature, chunk_tokens):
            chunks[chunk].append((MULTIMODAL, item))
    if request.prompt_embeds is not None:
        for chunk, item in _embeds(request, chunk_tokens):
            chunks[chunk].append((EMBEDS, item))
    elif request.prompt_token_ids is None:
        return OptedOut("a prompt without token ids and without embeddings")
    return RequestExtras(pack(common), {n: pack(items) for n, items in chunks.items()})


def _is_set(value: Any) -> bool:
    try:
        return bool(value)
    except (RuntimeError, ValueError):  # a tensor's or an array's: something is there
        return True


def _multimodal(feature: Any, chunk_tokens: int) -> Iterable[tuple[int, bytes]]:
    """(chunk, item) for every chunk that the input's placeholder overlaps: u32 length and bytes of
    the identifier, i32 offset from the chunk's start, u32 length of the placeholder."""
    identifier = feature.identifier.encode()
    head = struct.pack("<I", len(identifier)) + identifier
    offset, length = feature.mm_position.offset, feature.mm_position.length
    for chunk in range(offset // chunk_tokens, -(-(offset + length) // chunk_tokens)):
        yield chunk, head + struct.pack("<iI", offset - chunk * chunk_tokens, length)


def _embeds(request: Any, chunk_tokens: int) -> Iterable[tuple[int, bytes]]:
    """(chunk, item): BLAKE3 of a line `dtype rows columns`, the rows' bytes and, where the prompt
    mixes embeddings and token ids, a byte a row: 1 for a token id. The embeddings are a tensor
    [tokens, hidden size]; it is read by its address, without importing torch."""
    embeds, mask = request.prompt_embeds, getattr(request, "prompt_is_token_ids", None)
    for start in range(0, len(embeds), chunk_tokens):
        rows = embeds[start : start + chunk_tokens].detach().cpu().contiguous()
        line = f"{rows.dtype} {rows.shape[0]} {rows.shape[1]}\n".encode()
        content = ctypes.string_at(rows.data_ptr(), rows.numel() * rows.element_size())
        which = bytes(map(bool, mask[start : start + chunk_tokens])) if mask is not None else b""
        yield start // chunk_tokens, _native.blake3(line + content + which)


class AdapterHashes:
    """Hashes of LoRA adapters by content: the same files under another name or path share.

    An adapter's files are read once; later requests look at their sizes and times. Files that
    change while vLLM has the adapter loaded say nothing about what it computes with: the adapter is
    opted out from then on, unless vLLM is told to load it in place.
    """

    SUFFIXES = frozenset({".safetensors", ".bin", ".pt", ".json"})

    def __init__(self) -> None:
        self._hashes: dict[tuple[object, ...], bytes] = {}  # by the files' signature
        self._loaded: dict[int, tuple[object, ...]] = {}  # vLLM's adapter id: its signature
        self._named: dict[str, bytes] = {}  # of requests, the latest last

    def named(self, name: str) -> bytes | None:
        """What the last request with an adapter of this name was keyed by; any thread may ask."""
        return self._named.get(name)

    def hash(self, lora: Any) -> bytes | OptedOut:
        """32 bytes for a vLLM `LoRARequest`, or why there are none."""
        content = self._hash(lora)
        self._named.pop(lora.lora_name, None)
        if isinstance(content, bytes):
            self._named[lora.lora_name] = content
            if len(self._named) > NAMES:
                del self._named[next(iter(self._named))]
        return content

    def _hash(self, lora: Any) -> bytes | OptedOut:
        try:
            files = self._files(Path(lora.lora_path))
            signature = (
                lora.lora_path,
                *((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files),
            )
            if not files:
                return OptedOut(f"LoRA '{lora.lora_name}' is not a local folder with its files")
            known = self._loaded.get(lora.lora_int_id)
            if known is None or getattr(lora, "load_inplace", False):
                self._loaded[lora.lora_int_id] = signature
            elif known != signature:
                return OptedOut(f"LoRA '{lora.lora_name}': its files changed after it was loaded")
            content = self._hashes.get(signature)
            if content is None:
                content = self._hashes[signature] = self._read(files)
        except OSError as error:
            return OptedOut(f"LoRA '{lora.lora_name}' cannot be read: {error}")
        if getattr(lora, "is_3d_lora_weight", False):  # the same tensors, understood differently
            content = _native.blake3(content + b"3d")
        return content

    def _files(self, folder: Path) -> list[Path]:
        if not folder.is_dir():
            return []
        return sorted(f for f in folder.iterdir() if f.suffix in self.SUFFIXES and f.is_file())

    def _read(self, files: list[Path]) -> bytes:
        lines = [f"{_native.blake3(f.read_bytes()).hex()} {f.name}\n" for f in files]
        return _native.blake3("".join(lines).encode())
