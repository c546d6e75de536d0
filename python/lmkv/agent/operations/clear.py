"""clear: readable slots are taken out of use and found no more. Pinned ones stay."""

from __future__ import annotations

from functools import partial

from lmkv.agent.jobs import Run, Steps
from lmkv.agent.slots import retire


def clear(run: Run) -> Steps:
    for keys in run.batches():
        retired = retire(run.agent, keys, partial(_skipped, run))
        run.count(retired.chunks, retired.bytes)
        yield


def _skipped(run: Run, word: str) -> None:
    run.count(1, skipped=word)
