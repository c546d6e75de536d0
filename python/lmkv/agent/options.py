"""What a request asks for itself: `kv_transfer_params: {"lmkv": {...}}`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass
class Options:
    skip_load: bool = False
    skip_store: bool = False
    transfer: str = ""

    @classmethod
    def of(cls, params: Any) -> Options:
        """What of them is understood; the rest is passed over."""
        ours = params.get("lmkv") if isinstance(params, Mapping) else None
        if not isinstance(ours, Mapping):
            return cls()
        transfer = ours.get("transfer")
        return cls(
            ours.get("skip_load") is True,
            ours.get("skip_store") is True,
            transfer if transfer in ("auto", "mapped", "nixl") else "",
        )
