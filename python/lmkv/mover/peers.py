"""What a pull may ask of a peer: judged here, before the engine sees it.

A peer's life is (instance, epoch, rank). Its metadata changes when its mover is restarted or its
pool grows; the engine connects anew when it sees other metadata under the same id.
"""

from __future__ import annotations

from collections.abc import Iterable

from lmkv import _native
from lmkv.core import geometry
from lmkv.core.messages import Pull, PullPeer, PullResult


class Peers:
    """Pure state: which lives the engine has been told of."""

    def __init__(self, layouts: Iterable[str], granule_bytes: int) -> None:
        """`layouts` are our rank's, by cache group."""
        slots = [geometry.slot_layout(text) for text in layouts]
        self._layouts = {slot.fingerprint: slot for slot in slots}
        self._granule_bytes = granule_bytes
        self._ids: dict[tuple[str, int], set[str]] = {}

    def refusal(self, pull: Pull) -> tuple[int, bool, str] | None:
        """(PullResult of every chunk, stale, why), or None: the pull may be made."""
        info = pull.peer.info
        if not self.ours(pull.fingerprint):
            ours = ", ".join(f"{fingerprint:016x}" for fingerprint in self._layouts)
            why = f"layout {pull.fingerprint:016x}, this pool has {ours}"
            return PullResult.INCOMPATIBLE, False, why
        if info.granule_bytes != self._granule_bytes:
            why = f"granules of {info.granule_bytes} bytes, here {self._granule_bytes}"
            return PullResult.INCOMPATIBLE, False, why
        if (wrong := geometry.unfit(info)) is not None:
            return PullResult.INCOMPATIBLE, False, wrong
        if not info.nixl_metadata:
            return PullResult.PEER_DEAD, True, "the peer is not pullable by NIXL"
        return None

    def ours(self, fingerprint: int) -> bool:
        """Whether slots of this layout are in our pool: if not, no peer is to blame."""
        return fingerprint in self._layouts

    def layout(self, pull: Pull) -> _native.SlotLayout:
        """Of the slots that a pull which was not refused names."""
        return self._layouts[pull.fingerprint]

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
        )

    def forget(self, instance: str, epoch: int) -> set[str]:
        """The engine's ids of a life that is over."""
        return self._ids.pop((instance, epoch), set())
