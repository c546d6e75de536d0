"""`lmkv describe instance | job`: all that is known of one thing."""

from __future__ import annotations

from typing import Annotated

import typer

from lmkv.cli import jobs
from lmkv.cli.common import (
    DEFAULT_CONTROLLER,
    USAGE,
    ControllerOption,
    OutputOption,
    ask,
    check_output,
    check_text,
    command,
    ending,
    fail,
    print_json,
)

DEADLINE = 5.0  # seconds that an instance may take

describe = typer.Typer(help="All that is known of one thing.", no_args_is_help=True)
describe.command("job")(jobs.show)


@describe.command()
def instance(
    name: Annotated[str, typer.Argument(metavar="INSTANCE")],
    config: Annotated[
        bool, typer.Option("--config", help="Its settings instead, and who set each.")
    ] = False,
    controller: ControllerOption = DEFAULT_CONTROLLER,
    output: OutputOption = "table",
) -> None:
    """An instance: its state, and what keeps it from sharing; its pool, its hits and misses."""
    from lmkv.core.messages import Instances, InstancesInfo

    check_output(output)
    check_text("INSTANCE", name)
    if not name:
        fail("INSTANCE: allowed is an instance's name", USAGE)
    if config:
        _settings(controller, name, output)
        return
    [found] = ask(controller, Instances(1, instance=name), InstancesInfo).instances
    if output == "json":
        print_json(found)
        return
    from lmkv.cli.tables import instance_page

    instance_page(found)


def _settings(controller: str, name: str, output: str) -> None:
    from lmkv.core.config import as_text
    from lmkv.core.messages import ConfigResult

    with ending():
        settings = command(controller, name, "config", {}, ConfigResult, DEADLINE).settings
    if output == "json":
        print_json(settings)
        return
    from lmkv.cli.tables import console, table

    rows = [
        [
            each.name,
            f"{as_text(each.name, each.value)}{each.used and f' ({each.used})'}",
            each.origin,
        ]
        for each in settings
    ]
    console().print(table(("setting", "value", "from"), rows))
