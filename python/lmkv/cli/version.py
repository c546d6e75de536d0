"""`lmkv version`."""

from __future__ import annotations

import typer

from lmkv import __version__


def version() -> None:
    """Versions of lmkv and of what it speaks."""
    from lmkv import _native
    from lmkv.core.messages import PROTOCOL_MAX, PROTOCOL_MIN

    typer.echo(f"lmkv {__version__}, protocol {PROTOCOL_MIN}-{PROTOCOL_MAX}, {_native.isa()}")
