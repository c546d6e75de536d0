"""`lmkv controller`: runs one."""

from __future__ import annotations

from typing import Annotated

import typer

from lmkv.cli.common import USAGE, fail

COMMAND_LINE = "command line"  # where a setting came from


def controller(
    host: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Address to bind, by default 127.0.0.1."),
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
        typer.Option(metavar="ADDRESS", help="Address of HTTP, by default 127.0.0.1."),
    ] = None,
    http_port: Annotated[
        str | None,
        typer.Option(metavar="PORT", help="HTTP; by default the one after --query-port."),
    ] = None,
    peers: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESSES",
            help="Other controllers, tcp://HOST:PORT,...; instances name them too.",
        ),
    ] = None,
    keys: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Keys: only clients that are named there are let in."),
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Tokens of HTTP; by default those among the keys."),
    ] = None,
    http_cert: Annotated[
        str | None, typer.Option(metavar="FILE", help="Certificate; HTTP is HTTPS then.")
    ] = None,
    http_key: Annotated[str | None, typer.Option(metavar="FILE", help="Its key.")] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Other addresses without keys or tokens.")
    ] = False,
    compat: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="lmcache: serve its controller's paths over HTTP too."),
    ] = None,
    no_web: Annotated[
        bool, typer.Option("--no-web", help="No HTTP, and no process for it.")
    ] = False,
) -> None:
    """Run a controller until SIGTERM or ctrl-C.

    It binds to loopback; to another address with keys and tokens only (docs/security.md).
    """
    from lmkv.controller.main import run
    from lmkv.core.config import ConfigError, ControllerConfig, read

    options = {
        "host": host, "port": port, "query_port": query_port, "cluster": cluster, "config": config,
        "http_host": http_host, "http_port": http_port, "compat": compat,
        "web": "false" if no_web else None,
        "keys": keys, "tokens": tokens, "http_cert": http_cert, "http_key": http_key,
        "peers": peers, "insecure": "true" if insecure else None,
    }  # fmt: skip
    try:
        given = {name: value for name, value in options.items() if value is not None}
        settings = read(ControllerConfig, given, inline_name=COMMAND_LINE)
    except ConfigError as error:
        fail(str(error), USAGE)
    raise typer.Exit(run(settings))
