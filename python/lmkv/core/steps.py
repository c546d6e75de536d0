"""What the agent tells the workers with each of vLLM's steps, and what they answer.

A `StepPlan` travels in vLLM's connector metadata (pickled, to every rank alike), a `LoadResult`
comes back in its worker metadata. Generations are whole: the epoch's low 32 bits and the counter.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lmkv import _native
from lmkv.core.messages import PullPeer, PullResult

SKIPPED = _native.SKIPPED_BLOCK


@dataclass
class Store:
    """Gather these blocks into a reserved slot. A `Stored` message answers for the job."""

    job: int
    key: bytes
    place: bytes
    counter: int
    blocks: list[int]
    group: int = 0  # vLLM's cache group


@dataclass
class LoadChunk:
    """One slot to scatter; a block SKIPPED is left alone. `peer` -1 is the own pool."""

    key: bytes
    place: bytes
    generation: int
    blocks: list[int]
    peer: int = -1
    group: int = 0


@dataclass
class Load:
    """Scatter to a request's blocks, in order; each rank reports it exactly once.

    `peers[i]` has one PullPeer per rank.
    """

    request: str
    chunks: list[LoadChunk]
    peers: list[list[PullPeer]] = field(default_factory=list)


@dataclass
class StepPlan:
    """`wait_for` names store jobs whose source blocks are about to be overwritten."""

    epoch: int = 0
    stores: list[Store] = field(default_factory=list)
    loads: list[Load] = field(default_factory=list)
    wait_for: list[int] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.stores or self.loads or self.wait_for)


@dataclass
class LoadResult:
    """`good` chunks of a load were scattered; the next one failed with `result` (PullResult)."""

    good: int
    result: int = PullResult.GOOD
    seconds: float = 0.0
    bytes: int = 0

    def worst(self, other: LoadResult) -> LoadResult:
        """Of two ranks' results: what holds on both."""
        low = self if self.good <= other.good else other
        return LoadResult(
            low.good, low.result, max(self.seconds, other.seconds), self.bytes + other.bytes
        )
