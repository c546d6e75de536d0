"""What the commands share: their options, exit status, the question to a controller, and output.

Data goes to stdout, words to stderr. Exit status: 0 done, 1 failed, 2 usage, 3 unreachable,
4 refused for want of access.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

from lmkv.cli import access
from lmkv.core.text import printable

if TYPE_CHECKING:
    from lmkv.core.client import Client

FAILED, USAGE, UNREACHABLE, REFUSED = 1, 2, 3, 4
DEADLINE = 3.0  # seconds for what the controller knows itself
JOB_DEADLINE = 20.0  # seconds in which instances take a job, and make tokens of text
SPARE = 2.0  # seconds that an answer may take beyond an instance's deadline
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


def say(sentence: object) -> None:
    typer.echo(f"lmkv: {printable(str(sentence))}", err=True)


def fail(sentence: str, status: int) -> NoReturn:
    say(sentence)
    raise typer.Exit(status)


class Trouble(Exception):
    """Why there is no answer, in one sentence, and the command's exit status for it."""

    def __init__(self, sentence: str, status: int) -> None:
        super().__init__(sentence)
        self.status = status


def ask(
    controller: str, message: Any, answer: type[M], *arrays: bytes, deadline: float = DEADLINE
) -> M:
    """The controller's answer; ends the command with a sentence when there is none."""
    with ending():
        return question(controller, message, answer, *arrays, deadline=deadline)


@contextmanager
def ending() -> Iterator[None]:
    """Trouble ends the command, with its sentence."""
    try:
        yield
    except Trouble as trouble:
        fail(str(trouble), trouble.status)


def live_instances(controller: str) -> list[str]:
    """Those that can be asked something, by name."""
    from lmkv.core.messages import Status, StatusInfo

    instances = ask(controller, Status(1), StatusInfo).instances
    return [each.instance for each in instances if each.state not in ("suspect", "dead")]


def question(
    controller: str, message: Any, answer: type[M], *arrays: bytes, deadline: float = DEADLINE
) -> M:
    """The controller's answer, over either socket; who is there has `deadline` seconds for it
    (HTTP's are its own). Raises Trouble."""
    if speaks_http(controller):
        return _over_http(controller, message, answer, *arrays)
    with troubles(), client_of(controller) as client:
        client.connected(DEADLINE)
        client.deadline = deadline
        found, _ = client.ask(message, *arrays)
    return expected(controller, found, answer)


def expected(controller: str, found: Any, answer: type[M]) -> M:
    from lmkv.core.messages import Refused, Unsupported

    if isinstance(found, Refused):
        raise Trouble(found.message, FAILED)
    if isinstance(found, Unsupported):
        text = f"{controller} does not serve {found.name!r}: is it the query socket?"
        raise Trouble(text, FAILED)
    if not isinstance(found, answer):
        raise Trouble(f"{controller} answered {type(found).__name__}", FAILED)
    return found


def command(
    controller: str,
    instance: str,
    operation: str,
    arguments: dict[str, str],
    result: type[M],
    deadline: float,
) -> M:
    """What an instance answers to an operation, within `deadline` seconds. Raises Trouble."""
    import secrets

    import msgspec

    from lmkv.core.messages import Command, Done

    if speaks_http(controller):
        from lmkv.cli.http import Http

        with troubles():
            return Http(controller).command(instance, operation, arguments, result, deadline)
    name = secrets.token_hex(8)
    asked = Command(name, operation, instance, arguments=arguments, request=1, deadline=deadline)
    with troubles(), client_of(controller) as client:
        client.deadline = deadline + SPARE
        found, _ = client.ask(asked)
    done = expected(controller, found, Done)
    try:
        return msgspec.msgpack.decode(done.result, type=result)
    except msgspec.MsgspecError as error:
        text = f"{instance} answered {operation} with what is not understood: {error}"
        raise Trouble(text, FAILED) from None


def client_of(controller: str) -> Client:
    """With the keys that were given. Raises Trouble."""
    from lmkv.core.client import Client
    from lmkv.core.keyfiles import BadKeys

    try:
        return Client(controller, keys=access.client_keys())
    except BadKeys as error:
        raise Trouble(f"--keys or LMKV_KEYS: {error}", USAGE) from None
    except ValueError as error:
        other = "" if controller.startswith("tcp://") else ", nor http(s)://HOST:PORT"
        raise Trouble(f"--controller or LMKV_CONTROLLER: {error}{other}", USAGE) from None


def speaks_http(controller: str) -> bool:
    return controller.startswith(("http://", "https://"))


def _over_http(controller: str, message: Any, answer: type[M], *arrays: bytes) -> M:
    from lmkv.cli.http import Http

    with troubles():
        return Http(controller).ask(message, answer, *arrays)


@contextmanager
def troubles() -> Iterator[None]:
    """What goes wrong over either socket, as Trouble."""
    from lmkv.cli.http import Denied, NoAnswer, Wrong
    from lmkv.core.client import Unreachable
    from lmkv.core.wire import WireError

    try:
        yield
    except (NoAnswer, Unreachable) as error:
        raise Trouble(str(error), UNREACHABLE) from None
    except Denied as error:
        raise Trouble(str(error), REFUSED) from None
    except Wrong as error:
        raise Trouble(str(error), FAILED) from None
    except WireError as error:
        raise Trouble(
            f"what answers is no lmkv controller's state socket: {error}", FAILED
        ) from None
    except ValueError as error:
        text = f"--controller, LMKV_CONTROLLER, LMKV_TOKEN or LMKV_CACERT: {error}"
        raise Trouble(text, USAGE) from None


def check_output(output: str) -> None:
    if output not in ("table", "json"):
        fail(f"--output {output!r}: allowed is table or json", USAGE)


def print_json(answer: Any, indent: int | None = 2) -> None:
    """`indent` None: a line."""
    import json

    typer.echo(json.dumps(plain(answer), indent=indent))


def plain(value: Any) -> Any:
    """Dictionaries with every field, also those that are left out on the wire; an epoch is 16 hex
    digits, as in REST: many readers of JSON have no numbers of 64 bits."""
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    names = getattr(value, "__struct_fields__", None)
    if names is None:
        return value
    fields = {name: plain(getattr(value, name)) for name in names if name != "request"}
    return fields | ({"epoch": f"{value.epoch:016x}"} if "epoch" in fields else {})


UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def duration(option: str, text: str) -> float:
    """Seconds of 30s, 5m, 2h, 1d."""
    if found := re.fullmatch(r"([0-9]{1,9})([smhd])", text):
        return float(int(found[1]) * UNITS[found[2]])
    fail(f"{option} {text!r}: allowed is a number with its unit: 30s, 5m, 2h, 1d", USAGE)


def check_text(option: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        fail(f"{option} {text!r}: allowed is UTF-8", USAGE)
