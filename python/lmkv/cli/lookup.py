"""`lmkv lookup`: who holds a prompt."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from lmkv.cli.common import (
    DEFAULT_CONTROLLER,
    FAILED,
    USAGE,
    ControllerOption,
    OutputOption,
    ask,
    check_output,
    check_text,
    fail,
    print_json,
    speaks_http,
)


def lookup(
    tokens: Annotated[
        str,
        typer.Option(metavar="IDS", help="Token ids: 1,2,3 or @FILE, where @- is stdin."),
    ],
    controller: ControllerOption = DEFAULT_CONTROLLER,
    like: Annotated[
        str,
        typer.Option(
            metavar="INSTANCE", help="Whose keys are meant, where instances differ in their model."
        ),
    ] = "",
    salt: Annotated[str, typer.Option(metavar="TEXT", help="The request's cache_salt.")] = "",
    output: OutputOption = "table",
) -> None:
    """Who holds these tokens, chunk by chunk."""
    from lmkv.core.messages import Lookup, LookupInfo

    check_output(output)
    check_text("--like", like)
    check_text("--salt", salt)
    message = Lookup(1, _tokens(tokens), salt=salt, like=like)
    _check_size(controller, message)
    info = ask(controller, message, LookupInfo)
    if output == "json":
        print_json(info)
        return
    from lmkv.cli.tables import lookup_table

    lookup_table(info)


def _check_size(controller: str, message: Any) -> None:
    """A controller drops a connection that sends it too much, without a word. Keys depend on all
    tokens before them, so that a lookup is one message."""
    from lmkv.core.config import LEAST_FRAME_BYTES
    from lmkv.core.messages import Status, StatusInfo
    from lmkv.core.wire import encode

    if speaks_http(controller):  # the web process looks
        return
    size = len(encode(message)[0])
    if size <= LEAST_FRAME_BYTES:  # any controller takes it
        return
    most = ask(controller, Status(1), StatusInfo).max_frame_bytes
    if most and size > most:
        fail(
            f"--tokens: {len(message.tokens)} tokens are a message of {size} bytes, "
            f"and the controller takes at most {most} (its setting max_frame_bytes)",
            FAILED,
        )


def _tokens(text: str) -> list[int]:
    if text.startswith("@"):
        try:
            text = sys.stdin.read() if text == "@-" else Path(text[1:]).read_text()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            fail(f"--tokens {text}: {reason}", USAGE)
    found = []
    for word in text.replace(",", " ").split():
        # The length comes first: Python refuses to read thousands of digits.
        if not (word.isascii() and word.isdigit() and len(word) <= 10 and int(word) < 1 << 32):
            fail(f"--tokens: {word[:20]!r} is not a token id, 0 to 4294967295", USAGE)
        found.append(int(word))
    if not found:
        fail("--tokens: there are none", USAGE)
    return found
