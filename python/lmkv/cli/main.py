"""The `lmkv` command: each of its commands is a module beside this one, which only gathers them.

Imports are inside the commands, so that each starts fast.
"""

from __future__ import annotations

import errno
import os
import sys

import typer

from lmkv.cli import access, jobs, keys, operations
from lmkv.cli.common import FAILED, say
from lmkv.cli.config import config
from lmkv.cli.controller import controller
from lmkv.cli.describe import describe
from lmkv.cli.doctor import doctor
from lmkv.cli.events import events
from lmkv.cli.get import get
from lmkv.cli.health import sync, verify
from lmkv.cli.lookup import lookup
from lmkv.cli.sim import sim
from lmkv.cli.status import status
from lmkv.cli.top import top
from lmkv.cli.version import version
from lmkv.cli.why import why

app = typer.Typer(
    help="lmkv: vLLM instances share their KV caches.",
    epilog="Exit status: 0 done, 1 failed, 2 usage, 3 unreachable, 4 refused.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.callback()(access.options)
app.add_typer(keys.app, name="keys")
app.command()(controller)
app.command()(status)
app.command()(top)
app.add_typer(get, name="get")
app.add_typer(describe, name="describe")
app.command()(lookup)
app.command()(why)
app.command()(sync)
app.command()(verify)
app.command()(events)
for operation in operations.COMMANDS:
    app.command()(operation)
app.add_typer(jobs.app, name="jobs")
app.add_typer(config, name="config")
app.command()(doctor)
app.command()(sim)
app.command()(version)


def main() -> None:
    """The command, where what it says may have no room."""
    try:
        app()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        say(f"what is said cannot be written: {error.strerror}")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left of it
        sys.exit(FAILED)


if __name__ == "__main__":
    main()
