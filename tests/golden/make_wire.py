"""Golden vectors of every message: `python -m tests.golden.make_wire` writes wire.json anew.

They are frozen: a frame that changes is another protocol version. A field that is added gets a
default, a new vector, and the old ones must still be read (tests/unit/test_wire.py).

A message stands twice: with every field at a value that is not its default, and with only the
fields that it must have.
"""

from __future__ import annotations

import json
import types
import typing
from pathlib import Path
from typing import Any, get_args, get_origin

import msgspec
from lmkv.core import wire
from lmkv.core.messages import AnyMessage, Message

PATH = Path(__file__).with_name("wire.json")

KINDS: tuple[type[Message], ...] = get_args(AnyMessage)

# Where any text would do for the decoder, one that the field may really have.
TEXTS = {
    "code": "cluster",
    "state": "warming",
    "reason": "gap",
    "missing": "incompatible",
    "operation": "pin",
    "control_socket": "/run/lmkv/0a1b2c3d-0.mover",
    "share_socket": "/run/lmkv/0a1b2c3d-0.share",
    "mover_socket": "ipc:///run/lmkv/0a1b2c3d-0.mover",
    "stream_address": "127.0.0.1:40000",
    "serving_url": "http://127.0.0.1:8000",
    "namespace": "dtype=bfloat16\nmodel=m\n",
    "layouts": "head_size=64\nheads=0-3\n",
    "data_interface": "eth0",
}
NUMBERS = {"epoch": 0xFEDCBA9876543210, "query_port": 7551, "protocol": 1, "protocol_min": 1,
           "protocol_max": 1, "dp_rank": 3, "tier": 1}  # fmt: skip


def sample(kind: Any, name: str, full: bool) -> Any:
    """A value of a field's type."""
    origin = get_origin(kind)
    if origin is typing.Annotated:
        return sample(get_args(kind)[0], name, full)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return example(kind, full)
    if origin is list:
        return [sample(get_args(kind)[0], name, full)]
    if origin is tuple:
        return tuple(sample(each, name, full) for each in get_args(kind))
    if origin is dict:
        key, value = get_args(kind)
        return {sample(key, "cold", full): sample(value, name, full)}
    if kind is int:
        return NUMBERS.get(name, 1 + sum(map(ord, name)))
    plain = {str: TEXTS.get(name, name), bytes: bytes(range(16)), float: 0.75, bool: True}
    assert kind in plain and not isinstance(kind, types.UnionType), (name, kind)
    return plain[kind]


def example(kind: type[msgspec.Struct], full: bool) -> Any:
    """All fields, none at its default; or only those without one."""
    hints = typing.get_type_hints(kind, include_extras=True)
    values = {}
    for field in msgspec.structs.fields(kind):
        if field.required or full:
            value = sample(hints[field.name], field.name, full)
            values[field.name] = (not field.default) if isinstance(field.default, bool) else value
    return kind(**values)


def tag(kind: type[Message]) -> str:
    return str(kind.__struct_config__.tag)


def readable(body: Any) -> Any:
    """What any MessagePack library finds in a frame, with bytes as {"hex": ...}."""
    if isinstance(body, bytes):
        return {"hex": body.hex()}
    if isinstance(body, dict):
        return {key: readable(value) for key, value in body.items()}
    return [readable(each) for each in body] if isinstance(body, list) else body


def vectors() -> list[dict[str, Any]]:
    found = []
    for kind in KINDS:
        for full in (True, False):
            [frame] = wire.encode(example(kind, full))
            body = readable(msgspec.msgpack.decode(frame))
            if full or body != found[-1]["body"]:
                found.append({"message": tag(kind), "body": body, "frame": frame.hex()})
    return found


# ---------------------------------------------------------------- the tables of docs/wire.md


def type_name(kind: Any) -> str:
    if get_origin(kind) is typing.Annotated:
        base = get_args(kind)[0]
        bounds = [meta for meta in get_args(kind)[1:] if isinstance(meta, msgspec.Meta)]
        if base is int and bounds and bounds[0].ge == 0:
            return {0xFF: "u8", 0xFFFFFFFF: "u32"}.get(bounds[0].le, "u64")
        return "seconds" if base is float else type_name(base)
    origin, inner = get_origin(kind), get_args(kind)
    if origin is typing.Union:
        named = [each for each in inner if each is not type(None) or len(inner) > 2]
        return " or ".join(map(type_name, named))
    if origin is list:
        return f"[{type_name(inner[0])}]"
    if origin is tuple:
        return f"({', '.join(map(type_name, inner))})"
    if origin is dict:
        return f"{{{type_name(inner[0])}: {type_name(inner[1])}}}"
    plain = {str: "text", bytes: "bytes", bool: "bool", int: "int", type(None): "nil"}
    return plain.get(kind, kind.__name__)


def fields(kind: type[msgspec.Struct]) -> str:
    """`a` u64, `b`? text ...; ? is a field with a default."""
    hints = typing.get_type_hints(kind, include_extras=True)
    texts = [
        f"`{field.name}`{'' if field.required else '?'} {type_name(hints[field.name])}"
        for field in msgspec.structs.fields(kind)
    ]
    return ", ".join(texts) or "none"


if __name__ == "__main__":
    lines = ",\n".join(json.dumps(vector) for vector in vectors())
    PATH.write_text(f"[\n{lines}\n]\n")
