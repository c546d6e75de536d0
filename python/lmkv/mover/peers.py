"""What a pull may ask of a peer: judged here, before the engine sees it.

A peer's life is (instance, epoch, rank). Its metadata changes when its mover is restarted or its
pool grows; the engine connects anew when it sees other metadata under the same id.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lmkv import _native
from lmkv.core import geometry, parts
from lmkv.core.geometry import DEVICE, HOST
from lmkv.core.messages import Pull, PullPeer, PullResult, RankInfo


@dataclass
class Refusal:
    """Why a pull is not made; `lie`: what its peer has announced is not so."""

    result: int  # PullResult of every chunk
    why: str
    stale: bool = False
    lie: bool = False


class Peers:
    """Pure state: our layouts, and which lives the engine has been told of."""

    def __init__(self, rank: int, layouts: Iterable[str], granule_bytes: int) -> None:
        """`layouts` are our rank's, by cache group."""
        self._rank = rank
        self._texts = {geometry.fingerprint(text): text for text in layouts}
        self._slots = {n: geometry.slot_layout(text) for n, text in self._texts.items()}
        self._granule_bytes = granule_bytes
        self._ids: dict[tuple[str, int], set[str]] = {}

    def judge(self, pull: Pull) -> Refusal | list[_native.SlotPart]:
        """What is read of each of the pull's peers; [] for whole slots of one that is like us."""
        if pull.fingerprint not in self._slots:
            ours = ", ".join(f"{fingerprint:016x}" for fingerprint in self._slots)
            why = f"layout {pull.fingerprint:016x}, this pool has {ours}"
            return Refusal(PullResult.INCOMPATIBLE, why)
        peers = [pull.peer, *pull.others]
        if len({(peer.instance, peer.epoch) for peer in peers}) > 1:
            return Refusal(PullResult.INCOMPATIBLE, "ranks of several instances", lie=True)
        for peer in peers:
            if (wrong := geometry.unfit(peer.info)) is not None:
                return Refusal(PullResult.INCOMPATIBLE, wrong, lie=True)
        try:
            found = self._parts(pull, peers)
        except ValueError as error:
            return Refusal(PullResult.INCOMPATIBLE, str(error), lie=True)
        least = [part.theirs.granule_bytes for part in found] or [self._granule_bytes]
        for size, asked in zip((peer.info.granule_bytes for peer in peers), least):
            if size < asked or (not found and size != asked):
                why = f"granules of {size} bytes, here {asked}"
                return Refusal(PullResult.INCOMPATIBLE, why, lie=True)
        if not all(peer.info.nixl_metadata for peer in peers):
            return Refusal(PullResult.PEER_DEAD, "the peer is not pullable by NIXL", stale=True)
        return found

    def layout(self, pull: Pull) -> _native.SlotLayout:
        """Ours, of the slots that a pull which was not refused fills."""
        return self._slots[pull.fingerprint]

    def _parts(self, pull: Pull, peers: list[PullPeer]) -> list[_native.SlotPart]:
        """ValueError unless together they have our heads."""
        text = self._texts[pull.fingerprint]
        # The agent has chosen the ranks: of their stages and groups only the heads count here.
        group = list(self._texts).index(pull.fingerprint)
        own = RankInfo(self._rank, pull.peer.info.host, heads=[geometry.rank_heads(text)])
        infos = [RankInfo(self._rank, p.info.host, heads=p.info.heads[group:][:1]) for p in peers]
        found = parts.parts(own, infos)
        if [part.at for part in found] != list(range(len(peers))):
            raise ValueError(f"{len(peers)} ranks of the peer do not have our heads, each once")
        if len(found) == 1 and found[0].whole:
            return []
        return [parts.slot_part(text, part) for part in found]

    def native(self, peer: PullPeer) -> _native.PullPeer:
        info = peer.info
        identity = f"{peer.instance}/{peer.epoch:016x}/{info.rank}"
        self._ids.setdefault((peer.instance, peer.epoch), set()).add(identity)
        usable = min(info.usable_segments * info.segment_granules, info.granules)
        return _native.PullPeer(
            identity,
            info.nixl_metadata,
            info.pool_address,
            info.granule_bytes,
            info.segment_granules,
            usable,
            DEVICE if info.tier == DEVICE else HOST,
        )

    def forget(self, instance: str, epoch: int) -> set[str]:
        """The engine's ids of a life that is over."""
        return self._ids.pop((instance, epoch), set())
