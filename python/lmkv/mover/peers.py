"""What a pull may ask of a peer: judged here, before the engine sees it.

A peer's life is (instance, epoch, rank). Its metadata changes when its mover is restarted or its
pool grows; the engine connects anew when it sees other metadata under the same id.
"""

from __future__ import annotations

from lmkv import _native
from lmkv.core.messages import Pull, PullPeer, PullResult


class Peers:
    """Pure state: which lives the engine has been told of."""

    def __init__(self, layout: _native.SlotLayout) -> None:
        self._layout = layout
        self._ids: dict[tuple[str, int], set[str]] = {}

    def refusal(self, pull: Pull) -> tuple[int, bool, str] | None:
        """(PullResult of every chunk, stale, why), or None: the pull may be made."""
        info = pull.peer.info
        if pull.fingerprint != self._layout.fingerprint:
            return (
                PullResult.INCOMPATIBLE,
                False,
                f"layout {pull.fingerprint:016x}, this pool's is {self._layout.fingerprint:016x}",
            )
        if info.granule_bytes != self._layout.granule_bytes:
            return (
                PullResult.INCOMPATIBLE,
                False,
                f"granules of {info.granule_bytes} bytes, here {self._layout.granule_bytes}",
            )
        if not info.nixl_metadata:
            return PullResult.PEER_DEAD, True, "the peer is not pullable by NIXL"
        return None

    def native(self, peer: PullPeer) -> _native.PullPeer:
        info = peer.info
        identity = f"{peer.instance}/{peer.epoch:016x}/{info.rank}"
        self._ids.setdefault((peer.instance, peer.epoch), set()).add(identity)
        usable = min(info.usable_segments * info.segment_granules, info.granules)
        return _native.PullPeer(
            identity, info.nixl_metadata, info.pool_address, info.segment_granules, usable
        )

    def forget(self, instance: str, epoch: int) -> set[str]:
        """The engine's ids of a life that is over."""
        return self._ids.pop((instance, epoch), set())
