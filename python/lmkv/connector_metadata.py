"""What the connector's two sides send each other through vLLM: pickled, with each step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorWorkerMetadata,
)

from lmkv.core.steps import LoadResult, StepPlan


class LmkvMetadata(KVConnectorMetadata):
    def __init__(self, plan: StepPlan) -> None:
        self.plan = plan


@dataclass
class LmkvHandshake(KVConnectorHandshakeMetadata):
    """A rank as its worker describes it; `error` instead when it does not share."""

    rank: dict[str, Any] = field(default_factory=dict)
    error: str = ""


@dataclass
class LmkvWorkerMetadata(KVConnectorWorkerMetadata):
    """Loads that ended, by request: how often it was reported, and the worst of the ranks."""

    loads: dict[str, tuple[int, LoadResult]] = field(default_factory=dict)

    def aggregate(self, other: KVConnectorWorkerMetadata) -> KVConnectorWorkerMetadata:
        assert isinstance(other, LmkvWorkerMetadata)
        loads = dict(self.loads)
        for request, (count, result) in other.loads.items():
            if request in loads:
                before, worst = loads[request]
                loads[request] = before + count, worst.worst(result)
            else:
                loads[request] = count, result
        return LmkvWorkerMetadata(loads)
