"""Jobs and pins for people."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from lmkv.cli.tables import console, counted, size, span, table
from lmkv.core.messages import ENDED, JobState, PinState

COLUMNS = (
    "job", "operation", "state", "where", ">chunks", ">moved", ">rate", ">left", ">age", "asked by",
)  # fmt: skip


def jobs_table(jobs: Sequence[JobState]) -> None:
    if not jobs:
        typer.echo("no jobs", err=True)
        return
    out = console()
    out.print(table(COLUMNS, map(_row, jobs), out.width))


def _row(job: JobState) -> list[str]:
    ended = job.state in ENDED
    return [
        job.id,
        job.operation,
        job.state,
        _where(job),
        f"{job.chunks:,}/{job.chunks_total:,}" if job.chunks_total else f"{job.chunks:,}",
        size(job.bytes),
        _rate(job),
        span(job.eta) if job.eta else "-",
        f"{span(job.ended_age if ended else job.age)}{' ago' if ended else ''}",
        job.asked_by or "-",
    ]


def _rate(job: JobState) -> str:
    return f"{size(int(job.rate))}/s" if job.rate else "-"


def _where(job: JobState) -> str:
    names = [part.instance for part in job.parts]
    where = names[0] if job.instances == 1 and names else f"{job.instances} instances"
    return f"{job.source} to {where}" if job.source else where


def sentence(job: JobState) -> str:
    """What became of it: `pin j3f is done: 16 chunks, 12.0 MiB, absent 2`."""
    if job.state == "failed":
        return f"{job.operation} {job.id} failed: {job.reason}"
    text = f"{job.operation} {job.id} {'was' if job.state == 'cancelled' else 'is'} {job.state}: "
    told = [counted(job.chunks, "chunk"), size(job.bytes)]
    told += [f"{word} {n:,}" for word, n in job.skipped.items()]
    return text + ", ".join(told)


def job_page(job: JobState) -> None:
    out = console()
    facts = {
        "job": job.id,
        "operation": job.operation,
        "state": f"{job.state} ({job.code})" if job.code else job.state,
        "reason": job.reason or "-",
        "where": _where(job),
        "chunks": f"{job.chunks:,} of {job.chunks_total:,}" if job.chunks_total else "-",
        "skipped": ", ".join(f"{word} {n:,}" for word, n in job.skipped.items()) or "-",
        "moved": size(job.bytes),
        "rate": _rate(job),
        "left": span(job.eta) if job.eta else "-",
        "asked by": job.asked_by or "-",
        "asked": f"{span(job.age)} ago",
        "ended": f"{span(job.ended_age)} ago" if job.state in ENDED else "-",
        "attempt": str(job.attempt),
    }
    for name, value in facts.items():
        out.print(f"{name:<14}{value}")
    rows = [
        [
            part.instance,
            part.state,
            f"{part.chunks:,}/{part.chunks_total:,}" if part.chunks_total else f"{part.chunks:,}",
            size(part.bytes),
            f"{part.seconds:.1f} s",
            part.reason or "-",
        ]
        for part in job.parts
    ]
    out.print(table(("instance", "state", ">chunks", ">moved", ">ran", "reason"), rows, out.width))


def pins_table(pins: Sequence[PinState]) -> None:
    if not pins:
        typer.echo("no pins", err=True)
        return
    rows = [
        [
            pin.instance,
            pin.id,
            pin.owner or "-",
            span(pin.left) if pin.left else "-",
            f"{pin.chunks:,}",
            size(pin.bytes),
            pin.first,
        ]
        for pin in pins
    ]
    columns = ("instance", "pin", "owner", ">left", ">chunks", ">size", "first key")
    out = console()
    out.print(table(columns, rows, out.width))
