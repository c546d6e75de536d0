"""Layouts as text, and who is compatible with whom."""

import dataclasses

import pytest
from blake3 import blake3
from lmkv.core import geometry
from lmkv.core.geometry import Layout, compatible, numbered

LAYOUT = Layout(
    chunk_tokens=256,
    dtype="bfloat16",
    page_format="cpu:vec:128",
    group=0,
    layers=[f"model.layers.{n}.self_attn.attn" for n in range(30)],
    head_size=64,
    kv_heads=8,
    first_head=4,
    heads=4,
    segment_bytes=256 * 64 * 2 * 2,
)
TEXT = """\
chunk_tokens=256
dtype=bfloat16
format_version=1
group=0
head_size=64
kv_heads=8
layers=model.layers.{0-29}.self_attn.attn
page_format=cpu:vec:128
rank_heads=4-7
segment_bytes=65536
segments=120
"""


def other(**change: object) -> str:
    return dataclasses.replace(LAYOUT, **change).text()  # type: ignore[arg-type]


def test_the_text_is_canonical() -> None:
    assert LAYOUT.text() == TEXT
    assert geometry.fields(TEXT)["rank_heads"] == "4-7"


def test_the_fingerprint_is_blake3s() -> None:
    expected = int.from_bytes(blake3(TEXT.encode()).digest()[:8], "little")
    assert geometry.fingerprint(TEXT) == expected
    assert geometry.fingerprint(other(dtype="float16")) != expected


def test_slot_sizes_come_from_the_text() -> None:
    slot = geometry.slot_layout(TEXT)
    assert (slot.segments, slot.segment_bytes, slot.page_format) == (120, 65536, 2)
    assert slot.fingerprint == geometry.fingerprint(TEXT)
    assert geometry.slot_layout(other(page_format="tokens")).page_format == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("segments=1\nsegment_bytes=64\n", "it has no page_format"),
        ("segments=x\nsegment_bytes=64\npage_format=tokens\n", "segments=x is not a number"),
        ("segments=1\nsegment_bytes=65\npage_format=tokens\n", "segment_bytes: 65"),
        ("nonsense\n", "line 'nonsense' is not name=value"),
    ],
)
def test_a_bad_layout_is_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        geometry.slot_layout(text)


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["a.0.b", "a.1.b", "a.2.b"], "a.{0-2}.b"),
        (["a.0.b", "a.2.b"], "a.0.b,a.2.b"),
        (["a.1.b", "a.0.b"], "a.1.b,a.0.b"),  # the order of segments counts
        (["a.0.b", "a.1.c"], "a.0.b,a.1.c"),
        (["attn"], "attn"),
        ([], ""),
    ],
)
def test_layer_names_in_short(names: list[str], short: str) -> None:
    assert numbered(names) == short


def test_equal_instances_are_compatible() -> None:
    ranks = [other(first_head=0), other(first_head=4)]
    assert compatible(ranks, ranks) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("page_format", "cpu:amx:128"),
        ("page_format", "cpu:vec:32"),
        ("page_format", "tokens"),
        ("dtype", "float32"),
        ("head_size", 128),
        ("kv_heads", 16),
        ("chunk_tokens", 512),
        ("group", 1),
        ("layers", ["model.layers.0.self_attn.attn"]),
        ("segment_bytes", 128),
    ],
)
def test_what_differs_is_named(field: str, value: object) -> None:
    assert compatible([TEXT], [other(**{field: value})]) == field
    assert compatible([other(**{field: value})], [TEXT]) == field


def test_the_first_field_by_name_is_named() -> None:
    assert compatible([TEXT], [other(dtype="float32", chunk_tokens=512)]) == "chunk_tokens"


def test_ranks_heads_are_apart() -> None:
    """TP 1, 2 and 4 of one model read each other's segments, in whatever order its ranks stand."""
    one = [other(first_head=0, heads=8)]
    two = [other(first_head=0), other(first_head=4)]
    four = [other(first_head=first, heads=2) for first in (6, 2, 0, 4)]
    for ranks in (two, four):
        assert compatible(one, ranks) is None
        assert compatible(ranks, one) is None
        assert geometry.apart(ranks) == geometry.apart(one)


def test_heads_that_one_side_lacks_are_named() -> None:
    whole, half = [other(first_head=0, heads=8)], [other(first_head=0)]
    assert compatible(whole, half) == "ranks"
    assert compatible(half, whole) == "ranks"
    gap = [other(first_head=0, heads=3), other(first_head=4)]
    assert compatible(whole, gap) == "ranks"
    assert compatible(whole, [TEXT.replace("rank_heads=", "rank_heads=x")]) == "ranks"


def test_replicated_heads_are_there_once() -> None:
    """More ranks than heads: each head stands on several."""
    two = [other(first_head=0), other(first_head=4)]
    assert compatible(two, [two[0], two[0], two[1], two[1]]) is None


@pytest.mark.parametrize(("first", "heads"), [(0, 8), (2, 1), (4, 4)])
def test_a_peer_s_layout_is_ours_with_its_heads(first: int, heads: int) -> None:
    expected = other(first_head=first, heads=heads)
    assert geometry.with_heads(TEXT, (first, heads)) == expected
    assert geometry.rank_heads(expected) == (first, heads)


def test_pipeline_stages_have_each_their_layers() -> None:
    first, second = other(layers=["a.0.b"]), other(layers=["a.1.b"])
    assert compatible([first, second], [first, second]) is None
    assert compatible([first, second], [first]) == "layers"
    assert compatible([first], []) == "ranks"


def test_a_new_field_of_a_later_release_is_named() -> None:
    assert compatible([TEXT], [TEXT + "sharding=interleaved\n"]) == "sharding"
