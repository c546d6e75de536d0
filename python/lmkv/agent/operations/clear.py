"""clear: readable slots are taken out of use and found no more. Pinned ones stay."""

from __future__ import annotations

from collections.abc import Sequence

from lmkv.agent.jobs import Run, Steps


def clear(run: Run) -> Steps:
    for keys in run.batches():
        retire(run, keys)
        yield


def retire(run: Run, keys: Sequence[bytes]) -> None:
    """Counted by the job. One that a load reads goes when the load has ended."""
    table = run.agent.table
    for key in keys:
        if not table.lookup(key):  # what was retired for room would come back to whoever asks
            run.count(1, skipped="absent")
        else:
            size = run.agent.room(table.places(key)[0])
            table.retire(key, revivable=False)
            run.count(1, size)
