"""What makes two commands of a job the same one: for the controllers and the instances."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

UNLIKE = ("asked_by", "parts")  # arguments that do not make it another job


def digest(operation: str, arguments: Mapping[str, str], frames: Sequence[bytes]) -> str:
    """32 hex digits of an operation, its arguments but for who asked and for how many instances,
    and its keys: `Part.command`."""
    same = [operation.encode()]
    for name in sorted(arguments):
        if name not in UNLIKE:
            same += [name.encode(), arguments[name].encode()]
    hashed = hashlib.blake2b(len(same).to_bytes(4, "little"), digest_size=16)
    for each in [*same, *frames]:
        hashed.update(len(each).to_bytes(8, "little") + each)
    return hashed.hexdigest()
