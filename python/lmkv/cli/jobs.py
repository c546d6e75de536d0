"""`lmkv jobs list | show | wait | cancel | retry`, `lmkv get jobs | pins`, `lmkv describe job`."""

from __future__ import annotations

from typing import Annotated

import typer

from lmkv.cli.common import (
    DEFAULT_CONTROLLER,
    JOB_DEADLINE,
    USAGE,
    ControllerOption,
    OutputOption,
    ask,
    check_output,
    check_text,
    fail,
    print_json,
)

app = typer.Typer(help="Jobs: what was asked for, and what became of it.", no_args_is_help=True)

PAGE = 250
JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="Its id.")]
StateOption = Annotated[
    str,
    typer.Option(
        "--state", metavar="STATE", help="queued, running, done, failed or cancelled ones."
    ),
]
InstanceOption = Annotated[str, typer.Option("--instance", metavar="INSTANCE", help="Of this one.")]
LimitOption = Annotated[
    int, typer.Option("--limit", metavar="N", min=0, help="At most so many; 0: all.")
]


@app.command("list")
def list_jobs(
    state: StateOption = "",
    instance: InstanceOption = "",
    limit: LimitOption = 20,
    controller: ControllerOption = DEFAULT_CONTROLLER,
    output: OutputOption = "table",
) -> None:
    """Jobs, the newest first."""
    from lmkv.core.messages import STATES, Jobs, JobsInfo, JobState

    check_output(output)
    if state and state not in STATES:
        fail(f"--state {state!r}: allowed is one of {', '.join(STATES)}", USAGE)
    check_text("--instance", instance)
    found: list[JobState] = []
    after, more = "", False
    while not limit or len(found) < limit:
        size = min(PAGE, limit - len(found)) if limit else PAGE
        page = ask(controller, Jobs(1, after, size, state, instance), JobsInfo)
        found += page.jobs
        after = page.next
        more = bool(after)
        if not after:
            break
    if output == "json":
        print_json(found)
    else:
        from lmkv.cli.job_tables import jobs_table

        jobs_table(found)
    if more:
        typer.echo("there are more: --limit 0", err=True)


@app.command()
def show(
    job: JobArgument,
    controller: ControllerOption = DEFAULT_CONTROLLER,
    output: OutputOption = "table",
) -> None:
    """All that is known of a job, with each instance's part."""
    from lmkv.core.messages import AskJob, JobInfo

    _check(job, output)
    found = ask(controller, AskJob(1, job), JobInfo).job
    if output == "json":
        print_json(found)
        return
    from lmkv.cli.job_tables import job_page

    job_page(found)


@app.command()
def wait(
    job: JobArgument,
    timeout: Annotated[
        float, typer.Option(metavar="S", min=0, max=1e6, help="Seconds, at most; 0: any.")
    ] = 0.0,
    controller: ControllerOption = DEFAULT_CONTROLLER,
    output: OutputOption = "table",
) -> None:
    """Follow a job until it has ended; status 1 where it failed or was cancelled."""
    from lmkv.cli.follow import follow
    from lmkv.cli.operations import end
    from lmkv.core.messages import AskJob, JobInfo

    _check(job, output)
    end(follow(controller, ask(controller, AskJob(1, job), JobInfo).job, timeout), output)


@app.command()
def cancel(
    job: JobArgument,
    controller: ControllerOption = DEFAULT_CONTROLLER,
    output: OutputOption = "table",
) -> None:
    """End a job; what it held is given back."""
    _act(job, "cancel", controller, output)


@app.command()
def retry(
    job: JobArgument,
    controller: ControllerOption = DEFAULT_CONTROLLER,
    output: OutputOption = "table",
) -> None:
    """Begin anew what failed or was cancelled of a job."""
    _act(job, "retry", controller, output)


def _act(job: str, action: str, controller: str, output: str) -> None:
    from lmkv.core.messages import AskJob, JobInfo

    _check(job, output)
    found = ask(controller, AskJob(1, job, action), JobInfo, deadline=JOB_DEADLINE).job
    if output == "json":
        print_json(found)
        return
    from lmkv.cli.job_tables import sentence
    from lmkv.cli.tables import console

    console().print(sentence(found))


def _check(job: str, output: str) -> None:
    check_output(output)
    check_text("JOB", job)
    if not 1 <= len(job) <= 256:
        fail("JOB: allowed is a job's id, as it was printed", USAGE)


def pins(
    instance: InstanceOption = "",
    controller: ControllerOption = DEFAULT_CONTROLLER,
    output: OutputOption = "table",
) -> None:
    """Pins by instance: whose, and for how long."""
    from lmkv.core.messages import Pins, PinsInfo, PinState

    check_output(output)
    check_text("--instance", instance)
    found: list[PinState] = []
    after = ""
    while True:
        page = ask(controller, Pins(1, instance, after, PAGE), PinsInfo)
        found += page.pins
        after = page.next
        if not after:
            break
    if output == "json":
        print_json(found)
        return
    from lmkv.cli.job_tables import pins_table

    pins_table(found)
