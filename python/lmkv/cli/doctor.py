"""`lmkv doctor`: what keeps this host, or the cluster, from sharing; it changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from lmkv.cli.common import FAILED, OutputOption, check_output, print_json

if TYPE_CHECKING:
    from lmkv.cli.host_checks import Check


def doctor(
    controller: Annotated[
        str,
        typer.Option(
            "--controller",
            envvar="LMKV_CONTROLLER",
            metavar="ADDRESS",
            help="Instead of the setting controllers: tcp://HOST:PORT or http://HOST:PORT.",
        ),
    ] = "",
    file: Annotated[
        str, typer.Option("--config", metavar="FILE", help="Else what LMKV_CONFIG_FILE names.")
    ] = "",
    output: OutputOption = "table",
) -> None:
    """Look at the package, NIXL, memory, network, controllers and instances: OK, WARN or FAIL.

    Each WARN and FAIL has what mends it. Settings are those that an instance would have here. The
    exit status is 1 when anything fails.
    """
    check_output(output)
    found = []
    for check in _checks(controller, file):
        found.append(check)
        if output == "table":
            typer.echo(f"{check.level:<5} {check.name:<12} {check.text}")
            if check.fix:
                typer.echo(f"{'':<18} mend it: {check.fix}")
    if output == "json":
        print_json([check._asdict() for check in found])
    if any(check.level == "FAIL" for check in found):
        raise typer.Exit(FAILED)


def _checks(controller: str, file: str) -> Iterator[Check]:
    """Cheap ones first: each is printed when it is known."""
    from lmkv.cli import cluster_checks, host_checks
    from lmkv.core.config import ConfigError, InstanceConfig, load, read

    yield host_checks.package()
    try:
        config = read(InstanceConfig, {"config": file} if file else None, inline_name="--config")
    except ConfigError as error:
        yield host_checks.bad_settings(str(error), file)
        config = load(InstanceConfig)
    else:
        yield host_checks.settings(config)
    yield from host_checks.vllm()
    yield from host_checks.memory(config)
    yield host_checks.run_dir(config)
    yield host_checks.open_files()
    yield from host_checks.network(config)
    yield from host_checks.nixl(config)
    yield from cluster_checks.controllers(config, controller)
