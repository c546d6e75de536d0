"""What a request asks for itself: `kv_transfer_params: {"lmkv": {...}}`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmkv.agent.jobs import LONGEST
from lmkv.core.text import printable


@dataclass
class Options:
    skip_load: bool = False
    skip_store: bool = False
    transfer: str = ""
    pin_ttl: float = 0.0  # seconds for which its prompt's chunks are pinned; 0: they are not
    wrong: str = ""  # a sentence on a value that is not taken, though it would have been missed

    @classmethod
    def of(cls, params: Any) -> Options:
        """What of them is understood; the rest is passed over."""
        ours = params.get("lmkv") if isinstance(params, Mapping) else None
        if not isinstance(ours, Mapping):
            return cls()
        transfer = ours.get("transfer")
        pin_ttl, wrong = _pin_ttl(ours.get("pin_ttl_s"))
        return cls(
            ours.get("skip_load") is True,
            ours.get("skip_store") is True,
            transfer if transfer in ("auto", "mapped", "nixl") else "",
            pin_ttl,
            wrong,
        )


def _pin_ttl(value: Any) -> tuple[float, str]:
    if value is None:
        return 0.0, ""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and 0 < value <= LONGEST:
        return float(value), ""
    said = printable(repr(value)[:20])
    return 0.0, f"pin_ttl_s = {said}: allowed are seconds above 0, at most {LONGEST:g}; not pinned"
