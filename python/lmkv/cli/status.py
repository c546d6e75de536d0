"""`lmkv status`."""

from __future__ import annotations

from lmkv.cli.common import (
    DEFAULT_CONTROLLER,
    ControllerOption,
    OutputOption,
    ask,
    check_output,
    print_json,
)


def status(
    controller: ControllerOption = DEFAULT_CONTROLLER, output: OutputOption = "table"
) -> None:
    """The cluster: its controller, instances and what they share."""
    from lmkv.core.messages import Status, StatusInfo

    check_output(output)
    info = ask(controller, Status(1), StatusInfo)
    if output == "json":
        print_json(info)
        return
    from lmkv.cli.tables import status_table

    status_table(info)
