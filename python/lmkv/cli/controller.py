"""`lmkv controller`: runs one."""

from __future__ import annotations

from typing import Annotated

import typer

from lmkv.cli.common import USAGE, fail

COMMAND_LINE = "command line"  # where a setting came from


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
        fail(str(error), USAGE)
    raise typer.Exit(run(settings))
