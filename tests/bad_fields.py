"""Every field of every message, wrong in each way that its type allows, by introspection.

`wrong(kind)` yields (field, frame): the field is missing, of another type, or out of range, and all
else in the message is good.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Any, Union, get_args, get_origin

import msgspec
from lmkv.core.messages import Message

from tests.golden.make_wire import KINDS, example, tag

__all__ = ["KINDS", "tag", "wrong"]

OTHERS: dict[type, Any] = {
    int: 7,
    float: 1.5,
    str: "seven",
    bytes: b"\x07",
    bool: True,
    list: [[]],
    dict: {"seven": {}},
    types.NoneType: None,
}
# What MessagePack or the struct's own type takes for it.
TAKEN = {float: {int}, int: {bool}, bytes: {str}, str: set()}


def wrong(kind: type[Message]) -> Iterator[tuple[str, bytes]]:
    good = msgspec.msgpack.decode(msgspec.msgpack.encode(example(kind, full=True)))
    for field, body in _bodies(kind, good):
        yield field, msgspec.msgpack.encode(body)


def _bodies(kind: type[msgspec.Struct], good: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in msgspec.structs.fields(kind):
        name = field.name
        if field.required:
            yield name, {key: value for key, value in good.items() if key != name}
        for value in _values(hints[name], good.get(name)):
            yield name, {**good, name: value}


def _values(hint: Any, good: Any) -> Iterator[Any]:
    """Values that no field of this type may have."""
    if get_origin(hint) is typing.Annotated:
        base, *metas = get_args(hint)
        for meta in metas:
            if isinstance(meta, msgspec.Meta):
                yield from _outside(base, meta)
        hint = base
    origin = get_origin(hint)
    plain = origin or hint
    struct = isinstance(hint, type) and issubclass(hint, msgspec.Struct)
    if struct:
        plain = list if hint.__struct_config__.array_like else dict
    for kind, other in OTHERS.items():
        if kind is not plain and kind not in TAKEN.get(plain, set()) and hint is not Union:
            yield other
    if struct and plain is dict:
        for _, body in _bodies(hint, good):
            yield body
    elif struct:
        yield good[:-1]
    elif origin is list and good:
        yield from ([*good, value] for value in _values(get_args(hint)[0], good[0]))
    elif origin is dict and good:
        yield from ({"x": value} for value in _values(get_args(hint)[1], None))


def _outside(base: type, meta: msgspec.Meta) -> Iterator[Any]:
    if meta.ge is not None:
        yield base(meta.ge - 1)
    if meta.le is not None:
        yield base(meta.le + 1) if base is int else base(meta.le) * 2
    if base is float:
        yield from (float("nan"), float("inf"), float("-inf"))
    if meta.min_length:
        yield base()
    if meta.max_length is not None:
        yield "x" * (meta.max_length + 1)
