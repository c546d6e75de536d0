"""What the commands share: their options, exit status, the question to a controller, and output.

Data goes to stdout, words to stderr. Exit status: 0 done, 1 failed, 2 usage, 3 unreachable,
4 refused for want of access.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

from lmkv.cli import access

if TYPE_CHECKING:
    from lmkv.core.client import Client

FAILED, USAGE, UNREACHABLE, REFUSED = 1, 2, 3, 4
DEFAULT_CONTROLLER = "tcp://127.0.0.1:7550"
M = TypeVar("M")

ControllerOption = Annotated[
    str,
    typer.Option(
        "--controller",
        envvar="LMKV_CONTROLLER",
        metavar="ADDRESS",
        help="The controller's state socket, tcp://HOST:PORT, or its web process, http(s)://HOST:PORT.",
    ),
]
OutputOption = Annotated[
    str, typer.Option("-o", "--output", metavar="FORMAT", help="table, or json with every field.")
]


def fail(sentence: str, status: int) -> NoReturn:
    typer.echo(f"lmkv: {sentence}", err=True)
    raise typer.Exit(status)


def ask(controller: str, message: Any, answer: type[M], *arrays: bytes) -> M:
    """The controller's answer; ends the command with a sentence when there is none."""
    from lmkv.core.client import Unreachable
    from lmkv.core.messages import Refused, Unsupported
    from lmkv.core.wire import WireError

    if speaks_http(controller):
        return _ask_http(controller, message, answer)
    try:
        with client_of(controller) as client:
            found, _ = client.ask(message, *arrays)
    except Unreachable as error:
        fail(str(error), UNREACHABLE)
    except WireError as error:
        fail(f"{controller} is no lmkv controller's state socket: {error}", FAILED)
    if isinstance(found, Refused):
        fail(found.message, FAILED)
    if isinstance(found, Unsupported):
        fail(f"{controller} does not serve {found.name!r}: is it the query socket?", FAILED)
    if not isinstance(found, answer):
        fail(f"{controller} answered {type(found).__name__}", FAILED)
    return found


def client_of(controller: str) -> Client:
    """With the keys that were given."""
    from lmkv.core.client import Client
    from lmkv.core.keyfiles import BadKeys

    try:
        return Client(controller, keys=access.client_keys())
    except BadKeys as error:
        fail(f"--keys or LMKV_KEYS: {error}", USAGE)
    except ValueError as error:
        fail(f"--controller or LMKV_CONTROLLER: {error}", USAGE)


def speaks_http(controller: str) -> bool:
    return controller.startswith(("http://", "https://"))


def _ask_http(controller: str, message: Any, answer: type[M]) -> M:
    from lmkv.cli.http import Denied, Http, NoAnswer, Wrong

    try:
        return Http(controller).ask(message, answer)
    except NoAnswer as error:
        fail(str(error), UNREACHABLE)
    except Denied as error:
        fail(str(error), REFUSED)
    except Wrong as error:
        fail(str(error), FAILED)
    except ValueError as error:
        fail(f"--controller, LMKV_CONTROLLER, LMKV_TOKEN or LMKV_CACERT: {error}", USAGE)


def check_output(output: str) -> None:
    if output not in ("table", "json"):
        fail(f"--output {output!r}: allowed is table or json", USAGE)


def print_json(answer: Any) -> None:
    import json

    typer.echo(json.dumps(_plain(answer), indent=2))


def _plain(value: Any) -> Any:
    """Dictionaries with every field, also those that are left out on the wire."""
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    names = getattr(value, "__struct_fields__", None)
    if names is None:
        return value
    return {name: _plain(getattr(value, name)) for name in names if name != "request"}


def check_text(option: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        fail(f"{option} {text!r}: allowed is UTF-8", USAGE)
