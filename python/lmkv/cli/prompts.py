"""How a command is given a prompt: text, token ids, chat messages, or keys; and files of them."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from lmkv.cli.common import FAILED, USAGE, ask, check_text, fail, speaks_http
from lmkv.core.text import token_ids

TextArgument = Annotated[
    str,
    typer.Argument(
        metavar="TEXT",
        help="A prompt: text, or @FILE, where @- is stdin.",
        show_default=False,
    ),
]
TokensOption = Annotated[
    str,
    typer.Option(
        "--tokens", metavar="IDS", help="Token ids instead: 1,2,3 or @FILE, where @- is stdin."
    ),
]
MessagesOption = Annotated[
    str,
    typer.Option(
        "--messages",
        metavar="FILE",
        help="Chat messages instead: JSON, a list with role and content each; - is stdin.",
    ),
]
KeysOption = Annotated[
    str,
    typer.Option(
        "--keys", metavar="KEYS", help="Keys of chunks instead, in hex: K,K or @FILE, @- is stdin."
    ),
]
LikeOption = Annotated[
    str,
    typer.Option(
        "--like",
        metavar="INSTANCE",
        help="Whose keys are meant, where instances differ in their model.",
    ),
]
ModelOption = Annotated[
    str, typer.Option("--model", metavar="NAME", help="Or those of the instances that serve it.")
]
SaltOption = Annotated[
    str, typer.Option("--salt", metavar="TEXT", help="The request's cache_salt.")
]
LoraOption = Annotated[str, typer.Option("--lora", metavar="NAME", help="The request's adapter.")]


def one_form(given: dict[str, Any]) -> str:
    """The option that is given, of several of which one must be; else the command ends."""
    named = [name for name, value in given.items() if value]
    if len(named) != 1:
        fail(f"{' and '.join(named) or 'TEXT'}: give one of {', '.join(given)}", USAGE)
    return named[0]


def check_texts(**texts: str) -> None:
    for name, text in texts.items():
        check_text("TEXT" if name == "text" else f"--{name}", text)


def read_text(text: str) -> str:
    return read("TEXT", text[1:]) if text.startswith("@") else text


def read(option: str, path: str) -> str:
    """The file's text; of stdin for `-`."""
    try:
        return sys.stdin.read() if path == "-" else Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        fail(f"{option} @{path}: {reason}", USAGE)


def read_messages(path: str) -> list[dict[str, str]]:
    """None for no path."""
    import msgspec

    if not path:
        return []
    text = read("--messages", path)
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


def read_tokens(text: str) -> list[int]:
    """None for no text."""
    if text.startswith("@"):
        text = read("--tokens", text[1:]) or " "
    try:
        return token_ids(text) if text else []
    except ValueError as error:
        fail(f"--tokens: {error}", USAGE)


def read_keys(text: str) -> bytes:
    """None for no text."""
    if text.startswith("@"):
        text = read("--keys", text[1:]) or " "
    words = text.replace(",", " ").split()
    for word in words:
        if not re.fullmatch("[0-9a-f]{32}", word):
            fail(f"--keys: {word[:40]!r} is no key, 32 hex digits", USAGE)
    if text and not words:
        fail("--keys: there are none", USAGE)
    return bytes.fromhex("".join(words))


def check_size(controller: str, option: str, message: Any, *arrays: bytes) -> None:
    """A controller drops a connection that sends it too much, without a word. Keys depend on all
    tokens before them, so that a prompt is one message."""
    from lmkv.core.config import LEAST_FRAME_BYTES
    from lmkv.core.messages import Status, StatusInfo
    from lmkv.core.wire import encode

    if speaks_http(controller):  # the web process looks
        return
    size = max(map(len, encode(message, *arrays)))
    if size <= LEAST_FRAME_BYTES:  # any controller takes it
        return
    most = ask(controller, Status(1), StatusInfo).max_frame_bytes
    if most and size > most:
        fail(
            f"{option}: a message of {size} bytes, and the controller takes at most {most} "
            f"(its setting max_frame_bytes)",
            FAILED,
        )
