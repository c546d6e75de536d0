"""`lmkv keys init | client | token`: keys of a cluster, further clients, tokens of HTTP."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from lmkv.cli.access import given
from lmkv.cli.common import FAILED, USAGE, OutputOption, check_output, fail, print_json

app = typer.Typer(help="Keys of a cluster, and tokens of HTTP.", no_args_is_help=True)

FolderOption = Annotated[
    str, typer.Option("--keys", metavar="DIR", help="The folder that lmkv keys init has made.")
]


def default_folder() -> Path:
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.join(Path.home(), ".config")
    return Path(config) / "lmkv" / "keys"


@app.command()
def init(
    folder: Annotated[
        str, typer.Argument(metavar="DIR", help="By default ~/.config/lmkv/keys.")
    ] = "",
    output: OutputOption = "table",
) -> None:
    """Make a cluster's keys: of its controllers, of their clients, and of the data plane.

    Nothing is overwritten. A controller needs server.key and clients; a client client.key and
    server.pub; an instance data.key too. Name the folder as the setting `keys`.
    """
    from lmkv.core import keyfiles

    check_output(output)
    path = Path(folder) if folder else default_folder()
    try:
        made = keyfiles.make(path)
    except keyfiles.BadKeys as error:
        fail(str(error), FAILED)
    _print(made, output)


@app.command()
def client(
    name: Annotated[str, typer.Argument(metavar="NAME", help="By which logs call it.")],
    into: Annotated[str, typer.Argument(metavar="OUT", help="Its folder, to be taken there.")],
    folder: FolderOption = "",
    instance: Annotated[
        bool, typer.Option("--instance", help="With data.key: it is a vLLM instance.")
    ] = False,
    output: OutputOption = "table",
) -> None:
    """Make keys for a further client of the controllers, and let them know it.

    They let it in after SIGHUP. To shut a client out, take its line out of `clients`.
    """
    from lmkv.core import keyfiles

    check_output(output)
    try:
        made = keyfiles.make_client(_folder(folder), name, Path(into), instance)
    except keyfiles.BadKeys as error:
        fail(str(error), FAILED)
    _print(made, output)


@app.command()
def token(
    name: Annotated[str, typer.Option(metavar="NAME", help="Whose token it is.")],
    scope: Annotated[str, typer.Option(metavar="SCOPE", help="read, operate or admin.")],
    folder: FolderOption = "",
    file: Annotated[
        str, typer.Option("--tokens", metavar="FILE", help="By default tokens, among the keys.")
    ] = "",
    output: OutputOption = "table",
) -> None:
    """Print a new token, once; the file has its hash.

    The controller knows it after SIGHUP. To take one back, take its line out of the file.
    """
    from lmkv.core import keyfiles, tokens

    check_output(output)
    if scope not in tokens.SCOPES:
        fail(f"--scope {scope!r}: allowed is one of {', '.join(tokens.SCOPES)}", USAGE)
    path = Path(file) if file else _folder(folder) / keyfiles.TOKENS
    try:
        made = tokens.add(path, name, scope)
    except keyfiles.BadKeys as error:
        fail(str(error), FAILED)
    if output == "json":
        print_json({"name": name, "scope": scope, "token": made})
    else:
        typer.echo(made)


def _print(made: list[Path], output: str) -> None:
    if output == "json":
        print_json([str(each) for each in made])
        return
    for each in made:
        typer.echo(each)


def _folder(option: str) -> Path:
    named = option or given.keys
    return Path(named) if named else default_folder()
