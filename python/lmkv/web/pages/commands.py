"""The same as a page does, as a command line and as a request."""

from __future__ import annotations

import json
import shlex
from typing import Any

from lmkv.core.messages import Lookup, Submit
from lmkv.web.pages.text import escape

IN_LINK = 2000  # characters of a prompt that a link or a command line has
FILE = "@FILE"  # in the place of what is longer
FORMS = ("tokens", "text", "messages")


def lookup(asked: Lookup) -> str:
    words = ["lmkv", "lookup", *_option("--salt", asked.salt), *_option("--like", asked.like)]
    return shlex.join(words + _prompt(asked))


def operation(asked: Submit) -> str:
    """The command line of a job."""
    words = ["lmkv", asked.operation]
    if asked.operation in ("copy", "move"):
        words += _option("--from", asked.source) + _option("--to", asked.instance)
    else:
        words += _option("--instance", asked.instance)
    words += _option("--ttl", f"{asked.ttl:g}s" if asked.ttl else "")
    words += _option("--owner", asked.owner)
    words += _option("--salt", asked.salt) + _option("--like", asked.like)
    return shlex.join(words + (["--whole"] if asked.whole else _prompt(asked)))


def _option(name: str, value: str) -> list[str]:
    return [name, value] if value else []


def _prompt(asked: Lookup | Submit) -> list[str]:
    listed = ",".join(map(str, asked.tokens))
    if asked.tokens:
        return ["--tokens", listed if len(listed) <= IN_LINK else FILE]
    if asked.messages:
        return ["--messages", "FILE"]
    plain = len(asked.text) <= IN_LINK and not asked.text.startswith("@")
    return ["--", asked.text if plain else FILE]


def body(asked: Submit) -> dict[str, Any]:
    """What REST takes for it, without what is not said."""
    names = ("operation", "instance", "source", "whole", *FORMS, "salt", "like", "owner")
    found = {name: getattr(asked, name) for name in names if getattr(asked, name)}
    if asked.ttl:
        found["ttl_s"] = asked.ttl
    return found


def request(address: str, sent: dict[str, Any] | None, token: bool) -> str:
    """By curl. A body that is long is left to a file; the shell puts the token in."""
    words = ["curl", "-X", "POST", shlex.quote(address)]
    if token:
        words += ["-H", '"Authorization: Bearer $LMKV_TOKEN"']
    if sent is not None:
        text = json.dumps(sent)
        words += ["-H", "'Content-Type: application/json'"]
        words += ["-d", shlex.quote(text if len(text) <= IN_LINK else FILE)]
    return " ".join(words)


def line_html(line: str, name: str = "") -> str:
    """With a button that copies it."""
    label = f'<span class="name">{escape(name)}</span>' if name else ""
    return (
        f'<div class="find copied">{label}<pre class="line">{escape(line)}</pre>'
        '<button type="button" class="plain" onclick="lmkvCopy(this)">Copy line</button></div>'
    )
