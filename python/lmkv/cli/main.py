"""`lmkv controller | status | lookup | sim | version`.

Data goes to stdout, words to stderr. Exit status: 0 done, 1 failed, 2 usage, 3 unreachable.
Imports are inside the commands, so that each starts fast.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer

from lmkv import __version__
from lmkv.cli.sim import sim

FAILED, USAGE, UNREACHABLE = 1, 2, 3
COMMAND_LINE = "command line"  # where a setting came from
DEFAULT_CONTROLLER = "tcp://127.0.0.1:7550"
M = TypeVar("M")

app = typer.Typer(
    help="lmkv: vLLM instances share their KV caches.",
    epilog="Exit status: 0 done, 1 failed, 2 usage, 3 unreachable.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.command()(sim)

ControllerOption = Annotated[
    str,
    typer.Option(
        "--controller",
        envvar="LMKV_CONTROLLER",
        metavar="ADDRESS",
        help="The controller's state socket, tcp://HOST:PORT, or its web process, http://HOST:PORT.",
    ),
]
OutputOption = Annotated[
    str, typer.Option("-o", "--output", metavar="FORMAT", help="table, or json with every field.")
]


def _fail(sentence: str, status: int) -> NoReturn:
    typer.echo(f"lmkv: {sentence}", err=True)
    raise typer.Exit(status)


def _ask(controller: str, message: Any, answer: type[M], *arrays: bytes) -> M:
    """The controller's answer; ends the command with a sentence when there is none."""
    from lmkv.core.client import Client, Unreachable
    from lmkv.core.messages import Refused, Unsupported
    from lmkv.core.wire import WireError

    if _speaks_http(controller):
        return _ask_http(controller, message, answer)
    try:
        client = Client(controller)
    except ValueError as error:
        _fail(f"--controller or LMKV_CONTROLLER: {error}", USAGE)
    try:
        with client:
            found, _ = client.ask(message, *arrays)
    except Unreachable as error:
        _fail(str(error), UNREACHABLE)
    except WireError as error:
        _fail(f"{controller} is no lmkv controller's state socket: {error}", FAILED)
    if isinstance(found, Refused):
        _fail(found.message, FAILED)
    if isinstance(found, Unsupported):
        _fail(f"{controller} does not serve {found.name!r}: is it the query socket?", FAILED)
    if not isinstance(found, answer):
        _fail(f"{controller} answered {type(found).__name__}", FAILED)
    return found


def _speaks_http(controller: str) -> bool:
    return controller.startswith(("http://", "https://"))


def _ask_http(controller: str, message: Any, answer: type[M]) -> M:
    from lmkv.cli.http import Http, NoAnswer, Wrong

    try:
        return Http(controller).ask(message, answer)
    except NoAnswer as error:
        _fail(str(error), UNREACHABLE)
    except Wrong as error:
        _fail(str(error), FAILED)
    except ValueError as error:
        _fail(f"--controller or LMKV_CONTROLLER: {error}", USAGE)


def _check_output(output: str) -> None:
    if output not in ("table", "json"):
        _fail(f"--output {output!r}: allowed is table or json", USAGE)


def _print_json(answer: Any) -> None:
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


@app.command()
def controller(
    host: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Loopback address to bind, by default 127.0.0.1."),
    ] = None,
    port: Annotated[
        str | None,
        typer.Option(
            metavar="PORT", help="State socket, which instances are told; by default 7550."
        ),
    ] = None,
    query_port: Annotated[
        str | None,
        typer.Option(metavar="PORT", help="Query socket; by default the one after --port."),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Instances of another cluster are refused; by default default."
        ),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="YAML with these and more settings; options win."),
    ] = None,
    http_host: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Loopback address of HTTP, by default 127.0.0.1."),
    ] = None,
    http_port: Annotated[
        str | None,
        typer.Option(metavar="PORT", help="HTTP; by default the one after --query-port."),
    ] = None,
    no_web: Annotated[
        bool, typer.Option("--no-web", help="No HTTP, and no process for it.")
    ] = False,
) -> None:
    """Run a controller until SIGTERM or ctrl-C.

    It binds to loopback: until it can authenticate, a cluster is one host.
    """
    from lmkv.controller.main import run
    from lmkv.core.config import ConfigError, ControllerConfig, read

    options = {
        "host": host, "port": port, "query_port": query_port, "cluster": cluster, "config": config,
        "http_host": http_host, "http_port": http_port, "web": "false" if no_web else None,
    }  # fmt: skip
    try:
        given = {name: value for name, value in options.items() if value is not None}
        settings = read(ControllerConfig, given, inline_name=COMMAND_LINE)
    except ConfigError as error:
        _fail(str(error), USAGE)
    raise typer.Exit(run(settings))


@app.command()
def status(
    controller: ControllerOption = DEFAULT_CONTROLLER, output: OutputOption = "table"
) -> None:
    """The cluster: its controller, instances and what they share."""
    from lmkv.core.messages import Status, StatusInfo

    _check_output(output)
    info = _ask(controller, Status(1), StatusInfo)
    if output == "json":
        _print_json(info)
        return
    from lmkv.cli.tables import status_table

    status_table(info)


@app.command()
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

    _check_output(output)
    _check_text("--like", like)
    _check_text("--salt", salt)
    message = Lookup(1, _tokens(tokens), salt=salt, like=like)
    _check_size(controller, message)
    info = _ask(controller, message, LookupInfo)
    if output == "json":
        _print_json(info)
        return
    from lmkv.cli.tables import lookup_table

    lookup_table(info)


def _check_size(controller: str, message: Any) -> None:
    """A controller drops a connection that sends it too much, without a word. Keys depend on all
    tokens before them, so that a lookup is one message."""
    from lmkv.core.config import LEAST_FRAME_BYTES
    from lmkv.core.messages import Status, StatusInfo
    from lmkv.core.wire import encode

    if _speaks_http(controller):  # the web process looks
        return
    size = len(encode(message)[0])
    if size <= LEAST_FRAME_BYTES:  # any controller takes it
        return
    most = _ask(controller, Status(1), StatusInfo).max_frame_bytes
    if most and size > most:
        _fail(
            f"--tokens: {len(message.tokens)} tokens are a message of {size} bytes, "
            f"and the controller takes at most {most} (its setting max_frame_bytes)",
            FAILED,
        )


def _check_text(option: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        _fail(f"{option} {text!r}: allowed is UTF-8", USAGE)


def _tokens(text: str) -> list[int]:
    if text.startswith("@"):
        try:
            text = sys.stdin.read() if text == "@-" else Path(text[1:]).read_text()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            _fail(f"--tokens {text}: {reason}", USAGE)
    found = []
    for word in text.replace(",", " ").split():
        # The length comes first: Python refuses to read thousands of digits.
        if not (word.isascii() and word.isdigit() and len(word) <= 10 and int(word) < 1 << 32):
            _fail(f"--tokens: {word[:20]!r} is not a token id, 0 to 4294967295", USAGE)
        found.append(int(word))
    if not found:
        _fail("--tokens: there are none", USAGE)
    return found


@app.command()
def version() -> None:
    """Versions of lmkv and of what it speaks."""
    from lmkv import _native
    from lmkv.core.messages import PROTOCOL_MAX, PROTOCOL_MIN

    typer.echo(f"lmkv {__version__}, protocol {PROTOCOL_MIN}-{PROTOCOL_MAX}, {_native.isa()}")


if __name__ == "__main__":
    app()
