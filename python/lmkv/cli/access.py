"""With what the commands show who they are: `lmkv --keys DIR --cacert FILE COMMAND ...`, or the
variables LMKV_KEYS and LMKV_CACERT; and LMKV_TOKEN, which no command line shows to others."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lmkv.core.keyfiles import ClientKeys

TOKEN = "LMKV_TOKEN"  # noqa: S105 (the variable's name)


@dataclass
class Access:
    keys: str = ""
    cacert: str = ""


given = Access()


def _version(wanted: bool) -> None:
    if wanted:
        from lmkv.cli.version import version

        version("table")
        raise typer.Exit


def options(
    keys: Annotated[
        str,
        typer.Option(
            envvar="LMKV_KEYS", metavar="DIR", help="Folder of keys, for tcp:// (lmkv keys init)."
        ),
    ] = "",
    cacert: Annotated[
        str,
        typer.Option(
            envvar="LMKV_CACERT", metavar="FILE", help="Certificates to trust, for https://."
        ),
    ] = "",
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_version, help="As lmkv version."),
    ] = False,
) -> None:
    given.keys, given.cacert = keys, cacert


def client_keys() -> ClientKeys | None:
    """Raises BadKeys."""
    from lmkv.core import keyfiles

    return keyfiles.client_keys(given.keys)


def token() -> str:
    return os.environ.get(TOKEN, "")


def headers() -> dict[str, str]:
    """Raises ValueError for a token that no header can hold."""
    shown = token()
    if shown and not (shown.isascii() and shown.isprintable() and " " not in shown):
        raise ValueError(f"{TOKEN}: allowed is a token as lmkv keys token printed it")
    return {"Authorization": f"Bearer {shown}"} if shown else {}


def tls() -> ssl.SSLContext:
    """Raises ValueError where the file is none."""
    try:
        return ssl.create_default_context(cafile=given.cacert or None)
    except OSError as error:  # also SSLError
        why = error.strerror or "no certificates"
        raise ValueError(f"--cacert or LMKV_CACERT = {given.cacert!r}: {why}") from None
