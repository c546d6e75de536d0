"""One request as the agent sees it: its keys, what was found for it, and how its tokens count."""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass, field

from lmkv import _native
from lmkv.agent.tracing import UNTRACED, Untraced
from lmkv.core.messages import PeerRef, PullPeer
from lmkv.core.steps import LoadChunk


class Phase(enum.Enum):
    NEW = "new"  # nothing asked yet
    LOCATING = "locating"  # a locate is on its way
    PULLING = "pulling"  # peers' details or pulls are awaited
    READY = "ready"  # what can be loaded is known and pinned
    LOADING = "loading"  # vLLM's blocks are being written
    DONE = "done"  # no load, or its end


@dataclass
class Source:
    """Where one chunk beyond the own pool is: a peer's slot."""

    peer: str
    place: bytes
    counter: int


@dataclass
class RequestState:
    id: str
    chain: _native.KeyChain | None  # None: opted out
    prompt_tokens: int
    epoch: int
    transfer: str = "auto"
    skip_load: bool = False
    skip_store: bool = False
    opted_out: str = ""  # why, for people
    trace: Untraced = UNTRACED

    phase: Phase = Phase.NEW
    deadline: float = 0.0  # of the phase
    locate: int = 0  # request number
    base: int = 0  # chunk that the locate's first key was
    sources: dict[int, Source] = field(default_factory=dict)  # by chunk
    alternates: dict[int, Source] = field(default_factory=dict)  # other holders, by chunk
    holders: dict[str, PeerRef] = field(default_factory=dict)  # of sources and alternates
    peers: dict[str, PeerRef] = field(default_factory=dict)  # whose details are awaited
    asked: set[str] = field(default_factory=set)  # peers that this request has tried
    jobs: set[int] = field(default_factory=set)  # pulls awaited
    pulled: set[int] = field(default_factory=set)  # chunks that came by a pull
    pull_began: float | None = None  # when it began to wait for pulls
    pull_seconds: float = 0.0  # that it did
    missing: str = "cold"  # cause of the first chunk that the locate did not find
    differs: str = ""  # where that is `incompatible`: the field
    miss: str = "cold"  # cause of the first chunk that cannot be loaded

    first: int = 0  # chunks [first, end) are to be loaded
    end: int = 0
    computed: int = 0  # vLLM's own hit, tokens
    chunks: list[LoadChunk] = field(default_factory=list)
    chunk_peers: list[str] = field(default_factory=list)  # "" is the own pool
    peer_ranks: dict[str, list[PullPeer]] = field(default_factory=dict)  # as chosen
    pins: list[tuple[bytes, bytes]] = field(default_factory=list)

    # Where there are several cache groups, what was found in each is a state of its own in `parts`;
    # the load, and all that concerns the request as a whole, stay here.
    group: int = 0
    parts: list[RequestState] = field(default_factory=list)
    goal: int = 0  # pulls are to bring what a hit of the chunks before this one needs
    nothing_from: int = -1  # no hit was found from this chunk on

    next_store: int = 0  # chunks before were stored, or are not to be
    confirmed: int = 0  # tokens, when this step has ended
    mapped: set[int] = field(default_factory=set)  # chunks loaded from a mapped peer
    hits: Counter[str] = field(default_factory=Counter)
    misses: Counter[str] = field(default_factory=Counter)
    brought: Counter[str] = field(default_factory=Counter)  # tokens that came, by peer
    accounted: bool = False
    over: bool = False  # ended while its load was running

    def keys(self, first: int, last: int) -> bytes:
        assert self.chain is not None
        return self.chain.keys(self.group, first, last)

    @property
    def groups(self) -> list[RequestState]:
        """A state for each cache group."""
        return self.parts or [self]
