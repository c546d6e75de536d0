"""`lmkv get instances | controllers | prefixes | jobs | pins`: lists."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

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
    client_of,
    ending,
    fail,
    print_json,
    speaks_http,
    troubles,
)

if TYPE_CHECKING:
    from lmkv.core.messages import ControllerState, InstanceState

PAGE = 250
FILTERS = ("model", "state", "version")

get = typer.Typer(help="Lists: instances, controllers, prefixes, jobs, pins.", no_args_is_help=True)
get.command("jobs")(jobs.list_jobs)
get.command()(jobs.pins)


@get.command()
def instances(
    controller: ControllerOption = DEFAULT_CONTROLLER,
    output: OutputOption = "table",
    only: Annotated[
        list[str] | None,
        typer.Option("-l", "--only", metavar="NAME=VALUE", help="With this model, state, version."),
    ] = None,
    limit: Annotated[int, typer.Option(metavar="N", min=0, help="At most so many; 0: all.")] = 0,
    after: Annotated[str, typer.Option(metavar="NAME", help="Those after this one.")] = "",
) -> None:
    """Instances by name."""
    check_output(output)
    check_text("--after", after)
    wanted = dict(_filter(text) for text in only or [])
    found, more = _instances(controller, wanted, limit, after)
    if output == "json":
        print_json(found)
    else:
        from lmkv.cli.tables import instances_table

        instances_table(found)
    if more:
        typer.echo(f"there are more: --after {found[-1].instance}", err=True)


def _filter(text: str) -> tuple[str, str]:
    from lmkv.core.metrics import INSTANCE_STATES

    name, equals, value = text.partition("=")
    if not equals or name not in FILTERS:
        fail(f"--only {text!r}: allowed is NAME=VALUE with {', '.join(FILTERS)}", USAGE)
    if name == "state" and value not in INSTANCE_STATES:
        fail(f"--only {text!r}: allowed as a state is {', '.join(INSTANCE_STATES)}", USAGE)
    return name, value


def _instances(
    controller: str, wanted: dict[str, str], limit: int, after: str
) -> tuple[list[InstanceState], bool]:
    """A page after another until there are enough, and whether there are more."""
    from lmkv.core.messages import Instances, InstancesInfo

    found: list[InstanceState] = []
    while True:
        page = ask(controller, Instances(1, after, PAGE), InstancesInfo)
        found += [
            each
            for each in page.instances
            if all(getattr(each, name) == value for name, value in wanted.items())
        ]
        after = page.next
        if limit and len(found) > limit:
            return found[:limit], True
        if not after:
            return found, False


@get.command()
def controllers(
    controller: ControllerOption = DEFAULT_CONTROLLER, output: OutputOption = "table"
) -> None:
    """Controllers, with how far behind each is."""
    check_output(output)
    found = _controllers(controller)
    if output == "json":
        print_json(found)
        return
    from lmkv.cli.tables import controllers_table

    controllers_table(found)


def _controllers(controller: str) -> list[ControllerState]:
    from lmkv.core import cluster
    from lmkv.core.messages import Controllers, ControllersInfo

    if speaks_http(controller):  # the web process asks the others
        return ask(controller, Controllers(1), ControllersInfo).controllers
    with ending(), troubles(), client_of(controller) as client:
        return cluster.controllers(client)


@get.command()
def prefixes(
    controller: ControllerOption = DEFAULT_CONTROLLER,
    output: OutputOption = "table",
    top: Annotated[int, typer.Option(metavar="N", min=1, max=500, help="So many.")] = 20,
) -> None:
    """The prefixes that were located most of late, and who holds them."""
    from lmkv.core.messages import Prefixes, PrefixesInfo

    check_output(output)
    info = ask(controller, Prefixes(1, top), PrefixesInfo)
    if output == "json":
        print_json(info.prefixes)
        return
    from lmkv.cli.tables import prefixes_table

    prefixes_table(info.prefixes)
