"""`lmkv sim`: the real agents of many instances, in one process, against real controllers."""

from __future__ import annotations

from typing import Annotated

import typer

from lmkv.cli import access
from lmkv.cli.common import FAILED, UNREACHABLE, USAGE, OutputOption, check_output, fail


def sim(
    trace: Annotated[
        str, typer.Option(metavar="FILE", help="Requests, as Mooncake's traces have them.")
    ],
    instances: Annotated[int, typer.Option(metavar="N", help="How many.")] = 1000,
    controllers: Annotated[
        str,
        typer.Option(
            metavar="N|ADDRESSES", help="How many to start, or tcp://HOST:PORT,... that run."
        ),
    ] = "1",
    seconds: Annotated[float, typer.Option(metavar="S", help="When to end.")] = 60.0,
    rate: Annotated[
        float, typer.Option(metavar="X", help="How many times as fast as the trace.")
    ] = 1.0,
    route: Annotated[
        str, typer.Option(metavar="KIND", help="Whom requests go to: round_robin, random, prefix.")
    ] = "round_robin",
    pool_chunks: Annotated[
        str, typer.Option(metavar="N,...", help="Chunks of a pool; a run for each of several.")
    ] = "4k",
    pull_rate: Annotated[float, typer.Option(metavar="GB/S", help="Of an instance's link.")] = 2.0,
    copy_rate: Annotated[
        float, typer.Option(metavar="GB/S", help="Between a pool and its engine.")
    ] = 10.0,
    prefill_rate: Annotated[
        float, typer.Option(metavar="TOKENS/S", help="How fast an engine computes prompts.")
    ] = 8000.0,
    kv_bytes: Annotated[int, typer.Option(metavar="BYTES", help="KV of one token.")] = 131_072,
    seed: Annotated[int, typer.Option(metavar="N", help="Of --route random.")] = 1,
    output: OutputOption = "table",
) -> None:
    """Simulate a cluster: hit rates by cause and pool size, controllers' CPU, memory, latencies."""
    check_output(output)
    from lmkv.core.keyfiles import BadKeys
    from lmkv.sim.controllers import NoController
    from lmkv.sim.room import TooMany
    from lmkv.sim.run import Options, Usage, check, simulate
    from lmkv.sim.trace import TraceError

    options = Options(
        trace, instances, controllers, seconds, rate, route, pool_chunks, pull_rate, copy_rate,
        prefill_rate, kv_bytes, seed,
    )  # fmt: skip
    try:
        check(options)
        options.keys = access.client_keys()
        runs = simulate(options, lambda text: typer.echo(text, err=True))
    except (Usage, TraceError) as error:
        fail(str(error), USAGE)
    except BadKeys as error:
        fail(f"--keys or LMKV_KEYS: {error}", USAGE)
    except NoController as error:
        fail(str(error), UNREACHABLE)
    except TooMany as error:
        fail(str(error), FAILED)
    if output == "json":
        import json
        from dataclasses import asdict

        typer.echo(json.dumps({"runs": [asdict(run) for run in runs]}, indent=2))
        return
    from lmkv.cli.sim_tables import show

    show(runs)
