"""What a controller knows of one life of an instance, and whether two may share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import itemgetter

from lmkv.core import geometry, wire
from lmkv.core.messages import Heartbeat, PeerRef, RankInfo, Register
from lmkv.core.metrics import AGES

# A run handed out: places, counters, and how many other holders the answer knew (u32 each).
Handed = tuple[bytes, bytes, bytes]


SHOWN = 256  # keys of each kind


@dataclass
class Drift:
    """What a full sync mends: chunks that the directory lacks, has elsewhere, or has and the
    instance not; counts, and the first keys of the former two."""

    number: int = 0  # of the sync, which counts those of the instance
    reason: str = ""
    keys_before: int = 0
    keys_after: int = 0
    missing: int = 0
    moved: int = 0
    gone: int = 0
    missing_keys: bytes = b""
    moved_keys: bytes = b""

    def add(self, missing: bytes, moved: bytes) -> None:
        self.missing += len(missing) // wire.KEY_BYTES
        self.moved += len(moved) // wire.KEY_BYTES
        most = SHOWN * wire.KEY_BYTES
        self.missing_keys = (self.missing_keys + missing)[:most]
        self.moved_keys = (self.moved_keys + moved)[:most]


class Ages:
    """How old slots were as they were retired for room: counts by `core/metrics.py`'s AGES, and
    the sum in seconds."""

    def __init__(self) -> None:
        self.counts = [0] * (len(AGES) + 1)
        self.seconds = 0.0

    def add(self, beat: Heartbeat) -> None:
        for i, count in enumerate(beat.retired_ages[: len(self.counts)]):
            self.counts[i] = min(self.counts[i] + count, (1 << 64) - 1)
        self.seconds = min(self.seconds + beat.retired_seconds, 1e300)

    @property
    def median(self) -> float:
        """Seconds, the upper bound of the bucket that has it; 0: none was retired."""
        seen, half = 0, sum(self.counts) / 2
        for bound, count in zip(AGES, self.counts):
            seen += count
            if seen and seen >= half:
                return bound
        return AGES[-1] if half else 0.0


@dataclass(eq=False)
class Instance:
    """`connection` is its routing id on the state socket; `number` the directory's, -1 when dead.
    `seq` is the last of its stream that was applied, `heard` when anything came from it."""

    registration: Register
    connection: bytes
    heard: float
    number: int = -1
    seq: int = 0
    state: str = "live"  # or suspect, dead
    synced: bool = False
    drift: Drift = field(default_factory=Drift)  # of the sync that began last,
    ended: Drift = field(default_factory=Drift)  # of the one that ended last,
    mended: Drift = field(default_factory=Drift)  # and of those that a drift was the reason for
    judged: int = 0  # heartbeats whose sums were compared,
    drifts: int = 0  # and differed
    probes: int = 0  # sent and not answered
    probed: float = 0.0  # when the last one was sent
    heartbeat: Heartbeat | None = None
    hit_tokens: dict[str, int] = field(default_factory=dict)  # since it registered
    miss_tokens: dict[str, int] = field(default_factory=dict)
    ages: Ages = field(default_factory=Ages)
    handed: dict[bytes, Handed] = field(default_factory=dict)  # by keys, since the last `Touched`
    handed_keys: int = 0

    @property
    def name(self) -> str:
        return self.registration.instance

    @property
    def epoch(self) -> int:
        return self.registration.epoch

    @cached_property
    def group(self) -> tuple[object, ...]:
        """Of its registration, which is replaced by one of the same group only."""
        return group(self.registration)

    @property
    def pullable(self) -> bool:
        ranks = self.registration.ranks
        return bool(ranks) and all(rank.nixl_metadata for rank in ranks)

    @property
    def load(self) -> float:
        beat = self.heartbeat
        return (beat.running + beat.waiting) / 16 if beat else 0.0

    def ref(self, asker: Instance) -> PeerRef:
        here, there = hosts(asker.registration.ranks), hosts(self.registration.ranks)
        return PeerRef(
            self.name, self.epoch, self.registration.data_version, here == there, self.pullable
        )

    def count(self, beat: Heartbeat) -> None:
        """Take a heartbeat's numbers; tokens come as differences."""
        self.heartbeat = beat
        add(self.hit_tokens, beat.hit_tokens)
        add(self.miss_tokens, beat.miss_tokens)
        self.ages.add(beat)


def add(totals: dict[str, int], more: Mapping[str, int]) -> None:
    for cause, tokens in more.items():
        if cause in totals or len(totals) < 64:  # whatever is sent, it stays small, and can be sent
            totals[cause] = min(totals.get(cause, 0) + tokens, (1 << 64) - 1)


def hosts(ranks: Sequence[RankInfo]) -> tuple[object, ...]:
    """Equal for instances whose ranks reach each other's share sockets, however many they are.
    Without ranks an instance is on no host that another is on."""
    found = {(host.boot_id, host.device, host.inode) for host in (rank.host for rank in ranks)}
    return tuple(sorted(found)) or (object(),)


def group(registration: Register) -> tuple[object, ...]:
    """Equal for instances that may hold for each other."""
    return (
        registration.namespace,
        tuple(sorted(geometry.apart(registration.layouts).items(), key=itemgetter(0))),
        tuple(registration.group_specs),
        registration.chunk_tokens,
    )


def unreadable(texts: Sequence[str]) -> str | None:
    """What is wrong with texts that should be `name=value` lines, None if they are."""
    try:
        for text in texts:
            geometry.fields(text)
    except ValueError as error:
        return str(error).removeprefix("layout: ")
    return None


differs = geometry.differs
