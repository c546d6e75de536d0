"""What the agent knows of its vLLM engine, read from vLLM's configuration and its workers' words.

vLLM's objects are read by their attributes; vLLM is not imported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from lmkv.agent.namespace import group_spec
from lmkv.agent.transfers import Geometry
from lmkv.core import geometry, identity
from lmkv.core.messages import RankInfo


@dataclass
class Rank:
    """A worker, as vLLM's handshake told it."""

    info: RankInfo
    control: str  # address of its control socket
    layouts: list[str]  # by cache group
    fingerprints: list[int]


@dataclass
class Engine:
    """An engine, as `engine_of` reads it."""

    instance: str
    namespace: Callable[[str], str]  # isolation word -> text
    group_specs: list[str]
    groups: list[Geometry]  # vLLM's cache groups, in its order
    slots: int  # of every rank's pool: the least
    segment_slots: int
    ranks: list[Rank]
    model: str = ""
    dp_rank: int = 0

    def used(self) -> dict[str, str]:
        """What settings came to that may be left open; a pool's size is that of each rank."""
        info = self.ranks[0].info
        found = {
            "instance_id": self.instance,
            "chunk_tokens": str(self.groups[0].chunk_tokens),
        }
        if not info.tier:
            found["pool_gib"] = f"{info.granules * info.granule_bytes / (1 << 30):.3g}"
        return found


def engine_of(
    vllm_config: Any,
    groups: Sequence[Any],
    chunk_tokens: int,
    ranks: Sequence[dict[str, Any]],
    instance: str,
    engine_id: str,
    namespace: Callable[[str], str],
) -> Engine:
    """`groups` are vLLM's cache groups, `ranks` the handshakes of all workers, in their order."""
    model, first = vllm_config.model_config, ranks[0]
    payloads = [sum(sizes) for sizes in zip(*(rank["payload_bytes"] for rank in ranks))]
    # vLLM's groups list one stage's layers, and a draft model's.
    layers = [
        sorted({*chain.from_iterable(names)}) for names in zip(*(rank["layers"] for rank in ranks))
    ]
    return Engine(
        instance=instance,
        namespace=namespace,
        group_specs=[
            group_spec(group, geometry.model_kv_heads(model), names)
            for group, names in zip(groups, layers)
        ],
        groups=[
            Geometry(
                chunk_tokens, spec.block_size, size, geometry.window(spec), geometry.is_state(spec)
            )
            for spec, size in zip((group.kv_cache_spec for group in groups), payloads)
        ],
        slots=min(rank["slots"] for rank in ranks),
        segment_slots=first["info"].segment_granules // geometry.GRANULES_A_SLOT,
        ranks=[
            Rank(
                rank["info"],
                rank["control"],
                rank["layouts"],
                [geometry.fingerprint(layout) for layout in rank["layouts"]],
            )
            for rank in ranks
        ],
        model=str(model.served_model_name or model.model),
        dp_rank=identity.dp_rank(engine_id),
    )
