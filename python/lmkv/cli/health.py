"""`lmkv sync` and `lmkv verify`: whether what the controller knows of an instance is true."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

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
    from lmkv.core.messages import VerifyResult

MOST = 1 << 20  # slots of a sample
SHOWN = 20  # differing keys of an instance in the table

DeadlineOption = Annotated[
    float,
    typer.Option("--deadline", metavar="S", min=0.1, max=600.0, help="Seconds for each instance."),
]


def sync(
    instance: Annotated[str, typer.Argument(metavar="INSTANCE")],
    deadline: DeadlineOption = 30.0,
    controller: ControllerOption = DEFAULT_CONTROLLER,
    output: OutputOption = "table",
) -> None:
    """Have the controller hear all that an instance holds, anew; ends when it has."""
    from lmkv.core.messages import SyncResult

    check_output(output)
    check_text("INSTANCE", instance)
    with ending():
        found = command(controller, instance, "sync", {}, SyncResult, deadline)
    if output == "json":
        print_json(found)
        return
    typer.echo(
        f"{found.instance}: {found.keys_before:,} chunks before, {found.keys_after:,} after, "
        f"in {found.seconds:.1f} s; mended: {found.missing:,} missing, {found.moved:,} moved, "
        f"{found.gone:,} gone"
    )


def verify(
    sample: Annotated[
        int, typer.Option(metavar="N", min=0, max=MOST, help="Slots digested again, of each.")
    ] = 64,
    instance: Annotated[
        str, typer.Option(metavar="INSTANCE", help="This one; by default all live ones.")
    ] = "",
    deadline: DeadlineOption = 30.0,
    controller: ControllerOption = DEFAULT_CONTROLLER,
    output: OutputOption = "table",
) -> None:
    """Compare the directory with the instances' slot tables, and sampled slots with their digests.

    Exit status 1 when something differs or an instance does not answer.
    """
    check_output(output)
    check_text("--instance", instance)
    names = [instance] if instance else live_instances(controller)
    answers = [_verified(controller, name, sample, deadline) for name in names]
    found = [answer for answer in answers if not isinstance(answer, Trouble)]
    troubles = [answer for answer in answers if isinstance(answer, Trouble)]
    if instance and troubles:
        fail(str(troubles[0]), troubles[0].status)
    for trouble in troubles:
        say(trouble)
    if output == "json":
        print_json(found)
    else:
        _table(found)
    if troubles or any(each.differing or _drift(each) for each in found):
        raise typer.Exit(FAILED)


def _verified(controller: str, name: str, sample: int, deadline: float) -> VerifyResult | Trouble:
    from lmkv.core.messages import VerifyResult

    try:
        arguments = {"sample": str(sample)}
        return command(controller, name, "verify", arguments, VerifyResult, deadline)
    except Trouble as trouble:
        return trouble


def _drift(result: VerifyResult) -> int:
    return result.missing + result.moved + result.gone


def _table(found: list[VerifyResult]) -> None:
    from lmkv.cli.tables import console, table

    if not found:
        typer.echo("no instances", err=True)
        return
    rows = [
        [
            each.instance,
            f"{each.keys:,}",
            f"{each.slots:,}",
            f"{_drift(each):,}",
            f"{each.sampled:,}",
            f"{each.wrong:,}",
        ]
        for each in found
    ]
    out = console()
    columns = ("instance", ">chunks known", ">slots", ">drift", ">digested", ">wrong")
    out.print(table(columns, rows, out.width))
    for each in found:
        for one in each.differing[:SHOWN]:
            rank = f" in rank {one.rank}" if one.how in ("digest", "header") else ""
            out.print(f"{each.instance}: {one.key} {one.how}{rank}")
        more = len(each.differing) - SHOWN
        if more > 0:
            out.print(f"{each.instance}: {more:,} more, with -o json")
