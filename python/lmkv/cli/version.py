"""`lmkv version`."""

from __future__ import annotations

import typer

from lmkv import __version__
from lmkv.cli.common import OutputOption, check_output, print_json


def version(output: OutputOption = "table") -> None:
    """Versions of lmkv and of what it speaks."""
    from lmkv import _native
    from lmkv.core.messages import PROTOCOL_MAX, PROTOCOL_MIN

    check_output(output)
    if output == "json":
        body = {"version": __version__, "isa": _native.isa()}
        print_json({**body, "protocol_min": PROTOCOL_MIN, "protocol_max": PROTOCOL_MAX})
        return
    typer.echo(f"lmkv {__version__}, protocol {PROTOCOL_MIN}-{PROTOCOL_MAX}, {_native.isa()}")
