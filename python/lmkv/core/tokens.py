"""Bearer tokens of HTTP: `NAME SCOPE HASH`, a line each, in a file that only its owner can read.

The hash is SHA-256 of the token in hex. A token is 256 random bits, so nobody finds it by trying,
and nothing slower is needed. Each scope may do what the ones before it may.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from pathlib import Path
from typing import NamedTuple

from lmkv.core.keyfiles import BadKeys, append_private, read_private

READ, OPERATE, ADMIN = SCOPES = ("read", "operate", "admin")
NAME = re.compile(r"[A-Za-z0-9._-]{1,200}")
HASH = re.compile(r"[0-9a-f]{64}")
PREFIX = "lmkv_"
MOST_CHARACTERS = 200  # of what is presented as one


class Grant(NamedTuple):
    name: str
    scope: str


Tokens = dict[str, Grant]  # by hash


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def read(path: Path) -> Tokens:
    """Raises BadKeys. Empty lines and `#` lines are passed over."""
    found: Tokens = {}
    for number, line in enumerate(read_private(path).splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        words = line.split()
        good = len(words) == 3 and NAME.fullmatch(words[0]) and HASH.fullmatch(words[2])
        if not good or words[1] not in SCOPES:
            raise BadKeys(
                f"{path}, line {number}: allowed is NAME SCOPE HASH, the scope one of "
                f"{', '.join(SCOPES)}"
            )
        found[words[2]] = Grant(words[0], words[1])
    return found


def add(path: Path, name: str, scope: str) -> str:
    """A new token, whose hash the file has then. Raises BadKeys."""
    if not NAME.fullmatch(name):
        raise BadKeys(f"name = {name!r}: allowed are 1 to 200 letters, digits, '.', '_' or '-'")
    if scope not in SCOPES:
        raise BadKeys(f"scope = {scope!r}: allowed is one of {', '.join(SCOPES)}")
    if path.exists() and any(grant.name == name for grant in read(path).values()):
        raise BadKeys(f"name = {name!r}: {path} has a token of that name")
    token = PREFIX + secrets.token_urlsafe(32)
    append_private(path, f"{name} {scope} {digest(token)}")
    return token
