"""`lmkv why`: the last requests, and the cause of each token's hit or miss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from lmkv.cli.common import (
    DEFAULT_CONTROLLER,
    FAILED,
    ControllerOption,
    OutputOption,
    Trouble,
    check_output,
    check_text,
    command,
    ending,
    fail,
    live_instances,
    print_json,
    say,
)

if TYPE_CHECKING:
    from lmkv.core.messages import WhyEntry

MOST = 256  # requests that an instance remembers
ASKED = 32  # instances at most, where none is named
DEADLINE = 3.0  # seconds that an instance may take


def why(
    request: Annotated[
        str, typer.Argument(metavar="REQUEST", help="A part of its id.", show_default=False)
    ] = "",
    last: Annotated[
        int, typer.Option(metavar="N", min=1, max=MOST, help="So many, the newest first.")
    ] = 20,
    instance: Annotated[
        str, typer.Option(metavar="INSTANCE", help="Of this one; by default of all live ones.")
    ] = "",
    controller: ControllerOption = DEFAULT_CONTROLLER,
    output: OutputOption = "table",
) -> None:
    """Why the last requests hit or missed: tokens by cause, each request a line."""
    check_output(output)
    check_text("REQUEST", request)
    check_text("--instance", instance)
    arguments = {"last": str(last), **({"request": request} if request else {})}
    if instance:
        found = [(instance, entry) for entry in _of(controller, instance, arguments)]
    else:
        found = _of_all(controller, arguments)
    if request and not found:
        fail(f"no instance remembers a request {request!r}", FAILED)
    found = sorted(found, key=lambda each: each[1].age)[:last]
    if output == "json":
        from lmkv.cli.common import plain

        entries: list[dict[str, Any]] = [{"instance": n, **_fields(plain(e), e)} for n, e in found]
        print_json(entries)
    elif found:
        _table(found)
    else:
        typer.echo("no request has ended yet", err=True)


def _fields(fields: dict[str, Any], entry: WhyEntry) -> dict[str, Any]:
    """With `request`, which other answers number and leave out."""
    return {"request": entry.request, **fields}


def _of(controller: str, instance: str, arguments: dict[str, str]) -> list[WhyEntry]:
    from lmkv.core.messages import WhyResult

    with ending():
        return command(controller, instance, "why", arguments, WhyResult, DEADLINE).requests


def _of_all(controller: str, arguments: dict[str, str]) -> list[tuple[str, WhyEntry]]:
    """Of every live instance; one that does not answer is named on stderr."""
    from lmkv.core.messages import WhyResult

    live = live_instances(controller)
    if not live:
        typer.echo("no live instances", err=True)
    if len(live) > ASKED:
        typer.echo(f"of {len(live)} instances {ASKED} are asked: name one by --instance", err=True)
    found: list[tuple[str, WhyEntry]] = []
    for name in live[:ASKED]:
        try:
            entries = command(controller, name, "why", arguments, WhyResult, DEADLINE).requests
        except Trouble as trouble:
            if "request" not in arguments:  # most instances do not have the one
                say(trouble)
            continue
        found += [(name, entry) for entry in entries]
    return found


def _table(found: list[tuple[str, WhyEntry]]) -> None:
    from lmkv.cli.tables import console, span, table

    rows = [
        [
            f"{span(entry.age)} ago",
            instance,
            entry.request,
            f"{entry.tokens:,}",
            f"{entry.matched:,}",
            _causes(entry),
        ]
        for instance, entry in found
    ]
    out = console()
    columns = (">ended", "instance", "request", ">tokens", ">matched", "causes")
    out.print(table(columns, rows, out.width))


def _causes(entry: WhyEntry) -> str:
    """`hit_peer 512 (b 512), cold 100; pulls 12 ms`."""
    from lmkv.cli.tables import causes

    parts = causes({**entry.hit_tokens, **entry.miss_tokens}).removeprefix(": ")
    if entry.peers:
        parts += f" (from{causes(entry.peers).removeprefix(':')})"
    more = [f"pulls {entry.pull_ms:.1f} ms"] if entry.pull_ms else []
    more += [f"differs in {entry.differs}"] if entry.differs else []
    more += [entry.opted_out] if entry.opted_out else []
    return "; ".join([parts, *more]) or "-"
