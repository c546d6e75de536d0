"""Messages are what they were: the golden vectors, the rules for change, and docs/wire.md."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from lmkv.core import wire
from lmkv.core.messages import MAX_KEYS, Announce, Locate, Located, Message, Refused, Run, Status
from lmkv.core.wire import WireError, counts, decode, encode

from tests.golden import make_wire
from tests.golden.make_wire import KINDS, example, fields, readable, tag

ROOT = Path(__file__).resolve().parents[2]
PARTS = [
    kind
    for kind in vars(wire.messages).values()
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and not issubclass(kind, Message)
]
VECTORS = json.loads(make_wire.PATH.read_text())


# ------------------------------------------------------------------ golden vectors


def test_every_message_has_vectors() -> None:
    assert [v["message"] for v in VECTORS] == [v["message"] for v in make_wire.vectors()]
    assert {v["message"] for v in VECTORS} == {tag(kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS, ids=tag)
def test_frames_are_what_they_were(kind: Any) -> None:
    golden = [bytes.fromhex(v["frame"]) for v in VECTORS if v["message"] == tag(kind)]
    full, least = golden[0], golden[-1]
    assert encode(example(kind, full=True)) == [full]
    assert encode(example(kind, full=False)) == [least]
    assert decode([full]) == (example(kind, full=True), [])
    assert decode([least]) == (example(kind, full=False), [])


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v["message"])
def test_a_vectors_body_is_what_any_reader_finds(vector: dict[str, Any]) -> None:
    frame = bytes.fromhex(vector["frame"])
    assert readable(msgspec.msgpack.decode(frame)) == vector["body"]


def test_a_frame_spelt_by_hand() -> None:
    announce = b"\x83\xa4type\xa8announce\xa5epoch\xcf" + b"\xff" * 8 + b"\xa3seq\x07"
    assert encode(Announce((1 << 64) - 1, 7)) == [announce]
    located = Located(1, 2, 3, [Run(0, 3, 0, 0)])
    assert b"\xa4runs\x91\x94\x00\x03\x00\x00" in encode(located)[0]


def test_arrays_are_the_frames_behind() -> None:
    frames = encode(Announce(1, 2), b"k" * 16, b"p" * 8, b"c" * 4)
    assert frames[1:] == [b"k" * 16, b"p" * 8, b"c" * 4]
    assert decode(frames) == (Announce(1, 2), [b"k" * 16, b"p" * 8, b"c" * 4])


# ------------------------------------------------------------------ rules for change


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v["message"])
def test_a_field_of_a_later_release_is_ignored(vector: dict[str, Any]) -> None:
    frame = bytes.fromhex(vector["frame"])
    body = msgspec.msgpack.decode(frame)
    later = msgspec.msgpack.encode({**body, "later": [1, {"x": None}]})
    assert decode([later]) == decode([frame])


@pytest.mark.parametrize("kind", KINDS, ids=tag)
def test_a_missing_field_is_named(kind: Any) -> None:
    body = msgspec.msgpack.decode(encode(example(kind, full=True))[0])
    for field in msgspec.structs.fields(kind):
        if field.required:
            less = {name: value for name, value in body.items() if name != field.name}
            with pytest.raises(WireError, match=field.name) as caught:
                decode([msgspec.msgpack.encode(less)])
            assert caught.value.name == tag(kind)


def test_a_message_of_a_later_release_is_named() -> None:
    with pytest.raises(WireError, match="'teleport' is not known") as caught:
        decode([msgspec.msgpack.encode({"type": "teleport", "epoch": 1})])
    assert caught.value.name == "teleport"


# ------------------------------------------------------------------ what is no message


@pytest.mark.parametrize(
    "frame",
    [
        b"", b"\xc1", b"\x00", b"hello", b"\x80", b"\x81\xa4type\x05", b"\x81\xa4type\xa6locate",
        b"\x84\xa4type", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff",
        b"\x91" * 100_000, b"\x81\xa1a" * 100_000, b"\x81\xa4type\xa2\xff\xfe",
    ],
    ids=lambda frame: frame[:6].hex() or "empty",
)  # fmt: skip
def test_what_is_no_message(frame: bytes) -> None:
    with pytest.raises(WireError) as caught:
        decode([frame])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_no_frames_are_no_message() -> None:
    with pytest.raises(WireError, match="no frames"):
        decode([])


@pytest.mark.parametrize(
    ("field", "value"),
    [("epoch", -1), ("epoch", "1"), ("cluster", ""), ("cluster", "x" * 257), ("avoid", [1])],
)
def test_a_value_out_of_range_is_named(field: str, value: Any) -> None:
    body = msgspec.msgpack.decode(encode(Locate(1, "default", "a", 2))[0])
    with pytest.raises(WireError, match=f"locate.*{field}"):
        decode([msgspec.msgpack.encode({**body, field: value})])


# ------------------------------------------------------------------ counts


def test_equal_counts() -> None:
    assert counts([b"k" * 32, b"p" * 16, b"c" * 8], 16, 8, 4) == 2
    assert counts([b"", b"", b""], 16, 8, 4) == 0
    assert counts([bytes(16 * MAX_KEYS)], 16) == MAX_KEYS


@pytest.mark.parametrize(
    ("frames", "sizes", "words"),
    [
        ([b"k" * 16], (16, 8), "1 frames behind the message, expected 2"),
        ([b"k" * 16, b""], (16,), "2 frames behind the message, expected 1"),
        ([b"k" * 17], (16,), "17 bytes is not a multiple of 16"),
        ([b"k" * 32, b"p" * 8], (16, 8), "unequal counts"),
        ([bytes(16 * (MAX_KEYS + 1))], (16,), "4097 items in one message, at most 4096"),
    ],
)
def test_frames_that_do_not_fit(frames: list[bytes], sizes: tuple[int, ...], words: str) -> None:
    with pytest.raises(WireError, match=words):
        counts(frames, *sizes)


# ------------------------------------------------------------------ docs/wire.md


def test_the_page_has_every_message_and_its_fields() -> None:
    page = (ROOT / "docs" / "wire.md").read_text()
    rows = [row.split(" | ") for row in page.splitlines() if row.startswith("| ")]
    told = {row[0].removeprefix("| ").strip("`"): row for row in rows}
    for kind in KINDS:
        assert told[tag(kind)][2] == fields(kind), f"docs/wire.md: {tag(kind)}"
    parts = {row[0]: row[1] for name, row in told.items() if name[0].isupper()}
    for part in PARTS:
        [text] = [text for name, text in parts.items() if name.split()[1] == part.__name__]
        assert text.removesuffix(" |") == fields(part), f"docs/wire.md: {part.__name__}"
    assert {row[0][3:-1] for row in rows if row[0].startswith("| `")} == set(map(tag, KINDS))


@pytest.mark.parametrize("kind", KINDS, ids=tag)
def test_the_page_and_the_docstring_have_the_same_frames(kind: Any) -> None:
    """A docstring's `Frames: keys, counters, results (u8: ...).` is the row's last column."""
    page = (ROOT / "docs" / "wire.md").read_text()
    [row] = [row for row in page.splitlines() if row.startswith(f"| `{tag(kind)}` |")]
    told = row.removesuffix(" |").rpartition(" | ")[2]
    said = " ".join((kind.__doc__ or "").split()).partition("Frames: ")[2]
    names = (
        "as the operation says|keys|remote places|remote counters|own places|own counters|"
        "places|counters|others|results|granules"
    )
    found = re.match(rf"(?:(?:{names})(?: u32| \([^)]*\))?(?:, )?)*", said)
    assert found is not None
    listed = ", ".join(re.findall(names, re.sub(r"\([^)]*\)", "", found.group())))
    assert told.removeprefix("none, or ") == (listed or "-")


def test_the_page_has_every_code_that_is_refused() -> None:
    page = (ROOT / "docs" / "wire.md").read_text()
    listed = (Refused.__doc__ or "").partition("Codes:")[2].split("`")[1::2]
    assert len(listed) == 19
    assert all(f"`{code}`" in page for code in listed)


def test_defaults_do_not_travel() -> None:
    assert encode(Status()) == [b"\x81\xa4type\xa6status"]
