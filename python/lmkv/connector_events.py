"""vLLM's KV events of lmkv's pool, alike those that vLLM makes of its own blocks.

`describe()` is asked by the agent while vLLM has the request; `events()` makes vLLM's structs of
what the agent tells, at each step. Blocks are those of the cache group, as in vLLM's own events;
their medium is CPU.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vllm.distributed.kv_events import MEDIUM_CPU, BlockRemoved, BlockStored
from vllm.v1.core.kv_cache_utils import (
    generate_block_hash_extra_keys,
    maybe_convert_block_hash,
    to_event_extra_keys,
)
from vllm.v1.kv_cache_interface import get_kv_cache_spec_kind, get_kv_cache_spec_sliding_window

from lmkv.agent.kv_events import BlockFacts
from lmkv.core import geometry

LOCAL = "LOCAL"
INT_BYTES = 8  # of a block hash where vLLM tells its last 64 bits


@dataclass(frozen=True)
class _More:
    """What few requests have."""

    lora_id: int | None
    lora_name: str | None
    extra_keys: list[tuple[Any, ...] | None] | None  # by block, as events have them
    session: str | None


@dataclass(frozen=True)
class _Group:
    block_tokens: int
    hashes_per_block: int  # 0: vLLM's hashes do not fit its blocks
    slot_blocks: int  # those that a chunk's slot holds, its last ones
    kind: str
    window: int | None


class PoolEvents:
    """`requests` are vLLM's, by id."""

    def __init__(
        self, kv_cache_config: Any, chunk_tokens: int, requests: Mapping[str, Any]
    ) -> None:
        self._chunk_tokens = chunk_tokens
        self._requests = requests
        self._hash_bytes = INT_BYTES if isinstance(maybe_convert_block_hash(b"\0" * 32), int) else 0
        hash_tokens = kv_cache_config.hash_block_size
        self._groups = []
        for spec in (group.kv_cache_spec for group in kv_cache_config.kv_cache_groups):
            size = spec.block_size
            self._groups.append(
                _Group(
                    size,
                    size // hash_tokens if hash_tokens and size % hash_tokens == 0 else 0,
                    1 if geometry.is_state(spec) else chunk_tokens // size,
                    get_kv_cache_spec_kind(spec).value,
                    get_kv_cache_spec_sliding_window(spec),
                )
            )

    def describe(self, request_id: str, group: int, chunk: int) -> BlockFacts | None:
        """A chunk of a request; None while vLLM has not hashed its blocks."""
        request, how = self._requests[request_id], self._groups[group]
        end = (chunk + 1) * self._chunk_tokens
        first = end - how.slot_blocks * how.block_tokens
        per, hashes = how.hashes_per_block, request.block_hashes
        last = end // how.block_tokens * per  # of the hashes
        if not per or len(hashes) < last:
            return None
        begin = first // how.block_tokens * per
        cut = -self._hash_bytes if self._hash_bytes else 0
        return BlockFacts(
            group,
            first,
            how.block_tokens,
            b"".join(hashes[i][cut:] for i in range(begin + per - 1, last, per)),
            hashes[begin - 1][cut:] if begin else b"",
            array("I", request.all_token_ids[first:end]).tobytes(),
            self._more(request, range(first, end, how.block_tokens), how.block_tokens),
        )

    def _more(self, request: Any, starts: range, size: int) -> _More | None:
        lora, session = request.lora_request, request.session_id
        keyed = lora or request.cache_salt or request.mm_features
        if not keyed and request.prompt_embeds is None and session is None:
            return None
        keys = [generate_block_hash_extra_keys(request, at, at + size, 0)[0] for at in starts]
        return _More(
            lora.adapter_id if lora else None,
            lora.name if lora else None,
            to_event_extra_keys(keys),
            session,
        )

    def events(
        self, removed: list[BlockFacts], stored: list[BlockFacts]
    ) -> Iterator[BlockRemoved | BlockStored]:
        for facts in removed:
            yield BlockRemoved(
                block_hashes=self._hashes(facts),
                medium=MEDIUM_CPU,
                group_idx=facts.group,
                locality=LOCAL,
            )
        for facts in stored:
            yield self._stored(facts)

    def _stored(self, facts: BlockFacts) -> BlockStored:
        more, hashes, group = facts.more, self._hashes(facts), self._groups[facts.group]
        more = more if isinstance(more, _More) else _More(None, None, None, None)
        return BlockStored(
            block_hashes=hashes,
            parent_block_hash=self._told(facts.parent) if facts.parent else None,
            token_ids=list(array("I", facts.tokens)),
            block_size=facts.block_tokens,
            lora_id=more.lora_id,
            medium=MEDIUM_CPU,
            lora_name=more.lora_name,
            extra_keys=more.extra_keys or [None] * len(hashes),
            group_idx=facts.group,
            kv_cache_spec_kind=group.kind,
            kv_cache_spec_sliding_window=group.window,
            locality=LOCAL,
            session_id=more.session,
        )

    def _hashes(self, facts: BlockFacts) -> list[int | bytes]:
        size = len(facts.hashes) // self._groups[facts.group].slot_blocks
        parts = (facts.hashes[at : at + size] for at in range(0, len(facts.hashes), size))
        return [self._told(part) for part in parts]

    def _told(self, kept: bytes) -> int | bytes:
        return int.from_bytes(kept, "big") if self._hash_bytes else kept
