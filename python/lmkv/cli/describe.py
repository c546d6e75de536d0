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
    fail,
    print_json,
)

describe = typer.Typer(help="All that is known of one thing.", no_args_is_help=True)
describe.command("job")(jobs.show)


@describe.command()
def instance(
    name: Annotated[str, typer.Argument(metavar="INSTANCE")],
    controller: ControllerOption = DEFAULT_CONTROLLER,
    output: OutputOption = "table",
) -> None:
    """An instance: its state, and what keeps it from sharing; its pool, its hits and misses."""
    from lmkv.core.messages import Instances, InstancesInfo

    check_output(output)
    check_text("INSTANCE", name)
    if not name:
        fail("INSTANCE: allowed is an instance's name", USAGE)
    [found] = ask(controller, Instances(1, instance=name), InstancesInfo).instances
    if output == "json":
        print_json(found)
        return
    from lmkv.cli.tables import instance_page

    instance_page(found)
