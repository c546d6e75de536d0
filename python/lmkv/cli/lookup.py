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
from lmkv.core.text import token_ids


def lookup(
    text: Annotated[
        str,
        typer.Argument(
            metavar="[TEXT]",
            help="A prompt: text, or @FILE, where @- is stdin.",
            show_default=False,
        ),
    ] = "",
    tokens: Annotated[
        str,
        typer.Option(metavar="IDS", help="Token ids instead: 1,2,3 or @FILE, where @- is stdin."),
    ] = "",
    chat: Annotated[
        str,
        typer.Option(
            "--messages",
            metavar="FILE",
            help="Chat messages instead: JSON, a list with role and content each; - is stdin.",
        ),
    ] = "",
    controller: ControllerOption = DEFAULT_CONTROLLER,
    like: Annotated[
        str,
        typer.Option(
            metavar="INSTANCE", help="Whose keys are meant, where instances differ in their model."
        ),
    ] = "",
    model: Annotated[
        str, typer.Option(metavar="NAME", help="Or those of the instances that serve it.")
    ] = "",
    salt: Annotated[str, typer.Option(metavar="TEXT", help="The request's cache_salt.")] = "",
    lora: Annotated[str, typer.Option(metavar="NAME", help="The request's adapter.")] = "",
    output: OutputOption = "table",
) -> None:
    """Who holds a prompt, chunk by chunk. Text and messages are put to an instance."""
    from lmkv.core.messages import Lookup, LookupInfo

    check_output(output)
    given = {"TEXT": text, "--tokens": tokens, "--messages": chat}
    named = [name for name, value in given.items() if value]
    if len(named) != 1:
        fail(f"{' and '.join(named) or 'TEXT'}: give one of {', '.join(given)}", USAGE)
    for option, value in (
        ("TEXT", text), ("--like", like), ("--model", model), ("--salt", salt), ("--lora", lora),
    ):  # fmt: skip
        check_text(option, value)
    message = Lookup(
        1,
        _tokens(tokens) if tokens else [],
        _read("TEXT", text[1:]) if text.startswith("@") else text,
        _messages(chat) if chat else [],
        salt,
        lora,
        like,
        model,
    )
    _check_size(controller, named[0], message)
    info = ask(controller, message, LookupInfo)
    if output == "json":
        print_json(info)
        return
    from lmkv.cli.tables import lookup_table

    lookup_table(info)


def _check_size(controller: str, option: str, message: Any) -> None:
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
            f"{option}: a message of {size} bytes, and the controller takes at most {most} "
            f"(its setting max_frame_bytes)",
            FAILED,
        )


def _read(option: str, path: str) -> str:
    """The file's text; of stdin for `-`."""
    try:
        return sys.stdin.read() if path == "-" else Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        fail(f"{option} @{path}: {reason}", USAGE)


def _messages(path: str) -> list[dict[str, str]]:
    import msgspec

    text = _read("--messages", path)
    try:
        found = msgspec.json.decode(text, type=list[dict[str, str]])
    except msgspec.MsgspecError as error:
        fail(f"--messages {path}: {error}; allowed is a list of objects with texts", USAGE)
    for at, message in enumerate(found):
        if not {"role", "content"} <= message.keys():
            fail(f"--messages {path}: message {at} has no role, or no content", USAGE)
    if not found:
        fail(f"--messages {path}: there are none", USAGE)
    return found


def _tokens(text: str) -> list[int]:
    if text.startswith("@"):
        text = _read("--tokens", text[1:])
    try:
        return token_ids(text)
    except ValueError as error:
        fail(f"--tokens: {error}", USAGE)
