"""How many bytes lie where: layouts as text, and slot sizes.

A rank writes its `Layout` as canonical text; everybody else works from the text alone: its
fingerprint stands in every slot's header, `slot_layout` gives the sizes, `with_heads` makes a
peer's rank's text of ours, `compatible` compares two instances.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmkv import _native
from lmkv.core.identity import lines
from lmkv.core.messages import RankInfo, Register

FORMAT_VERSION = 1  # of slots, docs/slots.md
GRANULES_A_SLOT = 16
HOST, DEVICE = 0, 1  # tiers of places: memory of the host, of a GPU
SLOT_ALIGN = 4096  # bytes
TOKENS = "tokens"  # page format 1; any other name is the engine's own, page format 2

# What may differ between instances that share: which of the model's heads a rank has decides only
# which segments of which ranks are read.
HEAD_FIELDS = frozenset({"rank_heads", "segments"})
Heads = tuple[int, int]  # the first, as the model counts them, and how many


@dataclass(frozen=True)
class Layout:
    """How a rank's KV of one chunk lies in a slot. Segments go layer by layer, head by head."""

    chunk_tokens: int
    dtype: str  # torch's name without `torch.`
    page_format: str  # `tokens`, or the engine's own, e.g. `cpu:vec:128`
    group: int  # vLLM's cache group
    layers: Sequence[str]  # names, in the order of segments
    head_size: int
    kv_heads: int  # of the whole model
    first_head: int  # of this rank
    heads: int  # of this rank
    segment_bytes: int  # per (layer, head), padded to 64

    def text(self) -> str:
        """`name=value` lines, sorted by name."""
        return lines(
            {
                "chunk_tokens": str(self.chunk_tokens),
                "dtype": self.dtype,
                "format_version": str(FORMAT_VERSION),
                "group": str(self.group),
                "head_size": str(self.head_size),
                "kv_heads": str(self.kv_heads),
                "layers": numbered(self.layers),
                "page_format": self.page_format,
                "rank_heads": f"{self.first_head}-{self.first_head + self.heads - 1}",
                "segment_bytes": str(self.segment_bytes),
                "segments": str(len(self.layers) * self.heads),
            }
        )


def model_kv_heads(model_config: Any) -> int:
    """KV heads of the whole model, from vLLM's config: MLA keeps one latent for all its heads."""
    if getattr(model_config, "use_mla", False):
        return 1
    return int(model_config.get_total_num_kv_heads())


def fields(layout: str) -> dict[str, str]:
    """A layout's text as a dictionary. ValueError for a line that is not `name=value`."""
    found = {}
    for line in layout.splitlines():
        name, equals, value = line.partition("=")
        if not name or not equals:
            raise ValueError(f"layout: line {line!r} is not name=value")
        found[name] = value
    return found


def fingerprint(layout: str) -> int:
    """First 8 bytes of BLAKE3(text), little-endian."""
    return int.from_bytes(_native.blake3(layout.encode())[:8], "little")


def slot_layout(layout: str) -> _native.SlotLayout:
    """The sizes of a slot of this layout. ValueError names the field that is missing or bad."""
    found = fields(layout)
    for name in ("segments", "segment_bytes", "page_format"):
        if name not in found:
            raise ValueError(f"layout: it has no {name}")
        if name != "page_format" and not found[name].isdecimal():
            raise ValueError(f"layout: {name}={found[name]} is not a number")
    return _native.SlotLayout(
        int(found["segments"]),
        int(found["segment_bytes"]),
        1 if found["page_format"] == TOKENS else 2,
        fingerprint(layout),
    )


def differs(a: Register, b: Register) -> str:
    """The first field, by name, in which two registrations cannot share; "" if there is none."""
    mine, theirs = fields(a.namespace), fields(b.namespace)
    for name in sorted({*mine, *theirs}):
        if mine.get(name) != theirs.get(name):
            return name
    if a.chunk_tokens != b.chunk_tokens:
        return "chunk_tokens"
    if a.group_specs != b.group_specs:
        return "group_specs"
    return compatible(a.layouts, b.layouts) or ""


def codec(layout: str) -> int:
    """The codec that suits a layout's elements (docs/slots.md): 1, 2, 3 for 1, 2, 4 bytes."""
    dtype = fields(layout).get("dtype", "")
    return {"bfloat16": 2, "float16": 2, "float32": 3}.get(dtype, 1)


def unfit_ranks(ranks: Sequence[RankInfo]) -> str | None:
    """What an instance says of its ranks that cannot be so, by field; None if it may be."""
    numbers = sorted(rank.rank for rank in ranks)
    if numbers != list(range(len(numbers))):
        return f"rank: {numbers} are not 0 .. {len(numbers) - 1}, each once"
    return next((why for rank in ranks if (why := unfit(rank)) is not None), None)


def unfit(info: RankInfo) -> str | None:
    """A rank without a pool says nothing of it."""
    if not info.granule_bytes and not info.granules and not info.usable_segments:
        return None
    if not info.granule_bytes or info.granule_bytes % SLOT_ALIGN:
        return f"granule_bytes: {info.granule_bytes} is not a multiple of {SLOT_ALIGN}"
    for name in ("granules", "segment_granules"):
        value = getattr(info, name)
        if not value or value % GRANULES_A_SLOT:
            return f"{name}: {value} is not a multiple of {GRANULES_A_SLOT}"
    segments = -(-info.granules // info.segment_granules)
    if info.usable_segments > segments:
        return f"usable_segments: {info.usable_segments}, the pool has {segments}"
    if info.pool_address + info.granules * info.granule_bytes >= 1 << 63:
        return f"pool_address: {info.pool_address:#x} is too high for the pool's size"
    return None


def rank_heads(layout: str) -> Heads:
    """The rank's KV heads. ValueError when the layout does not say."""
    span = _span(fields(layout))
    if span is None:
        raise ValueError("layout: its rank_heads is not first-last")
    return span[0], span[1] - span[0] + 1


def with_heads(layout: str, heads: Heads) -> str:
    """The layout of a rank that has other heads of the same model."""
    found = fields(layout)
    layers = int(found["segments"]) // rank_heads(layout)[1]
    first, count = heads
    found["rank_heads"] = f"{first}-{first + count - 1}"
    found["segments"] = str(layers * count)
    return lines(found)


def compatible(a: Sequence[str], b: Sequence[str]) -> str | None:
    """None if instances with these layouts (of all their ranks) may share, each having what the
    other reads; else the first field, by name, that differs: `ranks` when one lacks heads."""
    mine, theirs = apart(a), apart(b)
    only = [x for x in mine if x not in theirs] + [y for y in theirs if y not in mine]
    if not only:
        return None if mine == theirs else "ranks"
    others = theirs if only[0] in mine else mine
    if not others:
        return "ranks"
    # The one that it was meant to equal is the one with the fewest differences.
    one = fields(only[0])
    return min((_differing(one, fields(other)) for other in others), key=len)[0]


def apart(layouts: Sequence[str]) -> dict[str, tuple[object, ...]]:
    """Texts without what may differ, each with the heads that its ranks have together. Equal for
    instances that may share."""
    found: dict[str, list[dict[str, str]]] = {}
    for layout in layouts:
        named = fields(layout)
        text = lines({n: v for n, v in named.items() if n not in HEAD_FIELDS})
        found.setdefault(text, []).append(named)
    return {text: _together(ranks) for text, ranks in found.items()}


def _together(ranks: Sequence[Mapping[str, str]]) -> tuple[object, ...]:
    """Spans of heads, merged; of what is no span, its text."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(span for rank in ranks if (span := _span(rank)) is not None):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = merged[-1][0], max(merged[-1][1], last)
        else:
            merged.append((first, last))
    texts = {rank.get("rank_heads", "") for rank in ranks if _span(rank) is None}
    return *merged, *sorted(texts)


def _span(found: Mapping[str, str]) -> tuple[int, int] | None:
    """First and last head."""
    match = re.fullmatch(r"(\d{1,9})-(\d{1,9})", found.get("rank_heads", ""))
    span = (int(match[1]), int(match[2])) if match else (0, -1)
    return span if span[1] >= span[0] else None


def _differing(a: Mapping[str, str], b: Mapping[str, str]) -> list[str]:
    names = sorted({*a, *b} - HEAD_FIELDS)
    return [name for name in names if a.get(name) != b.get(name)]


STATE_WINDOW = 2  # the state after the last token, and the next token


def window(spec: Any) -> int:
    """Of a cache group's vLLM spec: the tokens before the next one whose KV vLLM keeps, and that
    one; 0 for all. (With its hybrid manager off, vLLM keeps all of a sliding window's too.)"""
    if is_state(spec):
        return STATE_WINDOW
    if type(spec).__name__ != "SlidingWindowSpec":
        return 0
    return int(spec.sliding_window) + int(getattr(spec, "extra_retained_tokens", 0))


def loads_whole(windows: Sequence[int]) -> bool:
    """Whether vLLM takes a load of cache groups with these windows whole or not at all: it takes
    the prefix of one that failed where there is one group, which keeps all."""
    return len(windows) > 1 or any(windows)


def is_state(spec: Any) -> bool:
    """Whether a block of the group is the state after its last token, not its tokens' KV."""
    return type(spec).__name__ == "MambaSpec"


def numbered(names: Sequence[str]) -> str:
    """Layer names in short, in their order: `model.layers.{0-29}.self_attn.attn`."""
    parts: list[tuple[str, int, int, str]] = []  # before, first, last, after
    for name in names:
        match = re.fullmatch(r"([^{}]*?\.)(\d+)(\.[^{}]*)", name)
        if match is None:
            parts.append((name, -1, -1, ""))
            continue
        before, number, after = match[1], int(match[2]), match[3]
        if parts and parts[-1][0] == before and parts[-1][2:] == (number - 1, after):
            parts[-1] = (before, parts[-1][1], number, after)
        else:
            parts.append((before, number, number, after))
    return ",".join(_short(*part) for part in parts)


def _short(before: str, first: int, last: int, after: str) -> str:
    if first < 0:
        return before
    return f"{before}{{{first}-{last}}}{after}" if last > first else f"{before}{first}{after}"
