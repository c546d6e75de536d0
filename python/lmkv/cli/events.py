"""`lmkv events`: what happened in the cluster, and what happens.

Both sockets tell the same: `since(Mark(epoch, number), forever)` yields what came after it, `reset`
first where that cannot be had; it ends at the newest, or raises Trouble. Whoever follows asks again
from the last event on, so that a lost connection loses nothing that the controller still keeps.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from itertools import count
from typing import Annotated, NamedTuple

import typer

from lmkv.cli.common import (
    DEFAULT_CONTROLLER,
    UNITS,
    UNREACHABLE,
    USAGE,
    ControllerOption,
    OutputOption,
    Trouble,
    check_output,
    client_of,
    ending,
    expected,
    fail,
    print_json,
    question,
    say,
    speaks_http,
    troubles,
)
from lmkv.core.text import printable

WAIT = 10.0  # seconds that a question waits at the controller
SPARE = 3.0  # that its answer may take beyond that
SILENCE = 30.0  # after which a stream is dead: the web process says something every 15 s
PAUSE = 1.0  # after a question that was not answered
AFTER_ALL = 1 << 62  # a number that no event has


class Mark(NamedTuple):
    """A place in a controller's events: `number` of its life `epoch`."""

    epoch: int
    number: int

    def __str__(self) -> str:
        return f"{self.epoch:016x}-{self.number}"


class Happened(NamedTuple):
    mark: Mark
    kind: str
    instance: str
    text: str
    age: float  # seconds, when it was sent
    job: str = ""  # its id, where kind is job


def events(
    controller: ControllerOption = DEFAULT_CONTROLLER,
    output: OutputOption = "table",
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Go on until ctrl-C; without --since from now.")
    ] = False,
    since: Annotated[
        str,
        typer.Option(metavar="WHEN", help="After this id, or in the last 30s, 5m, 2h, 1d."),
    ] = "",
) -> None:
    """What happened: instances registered, suspect, dead, back; drift and its mending; jobs.

    With -o json a line each. An id is that of a controller's life and a number in it; `reset` says
    that what follows does not go on from there.
    """
    check_output(output)
    mark, seconds = _when(since)
    show = _json_line if output == "json" else _line
    source = _Sse(controller) if speaks_http(controller) else _Zmq(controller)
    shown = False
    try:
        with ending():
            if follow and not since:
                mark = source.newest()
            for each in _followed(source, mark) if follow else source.since(mark, False):
                if each.age <= seconds:
                    show(each)
                    shown = True
    except KeyboardInterrupt:
        return
    if not shown and output == "table":
        typer.echo("no events", err=True)


def _when(since: str) -> tuple[Mark | None, float]:
    """Where to begin, and how old an event may be. No mark: with the oldest that is kept."""
    if found := re.fullmatch(r"([0-9a-f]{16})-([0-9]{1,19})", since):
        return Mark(int(found[1], 16), int(found[2])), float("inf")
    if found := re.fullmatch(r"([0-9]{1,9})([smhd])", since):
        return None, float(int(found[1]) * UNITS[found[2]])
    if since:
        fail(f"--since {since!r}: allowed is an event's id, or 30s, 5m, 2h, 1d", USAGE)
    return None, float("inf")


def _followed(source: _Zmq | _Sse, mark: Mark | None) -> Iterator[Happened]:
    """For ever, over all that fails but a mistake; says each silence once."""
    silent = False
    while True:
        try:
            for each in source.since(mark, True):
                mark, silent = each.mark, False
                yield each
        except Trouble as trouble:
            if trouble.status != UNREACHABLE:
                raise
            if not silent:
                say(f"{trouble}; waiting for it")
            silent = True
        time.sleep(PAUSE)


def _line(each: Happened) -> None:
    moment = _moment(each).strftime("%Y-%m-%d %H:%M:%S")
    text = f"{moment}  {each.kind:<12}  {each.instance}"
    text = f"{text}  {each.text}" if each.text else text
    typer.echo(printable(f"{text} ({each.job})" if each.job else text))


def _json_line(each: Happened) -> None:
    body = {
        "id": str(each.mark),
        "time": _moment(each).isoformat(timespec="milliseconds"),
        "kind": each.kind,
        "instance": each.instance,
        "text": each.text,
        "job": each.job,
    }
    print_json(body, indent=None)


def _moment(each: Happened) -> datetime:
    """When it happened, by this machine's clock."""
    return (datetime.now(timezone.utc) - timedelta(seconds=each.age)).astimezone()


# ---------------------------------------------------------------- the two sockets


class _Zmq:
    def __init__(self, controller: str) -> None:
        self._controller = controller

    def newest(self) -> Mark:
        """Where the events end now."""
        from lmkv.core.messages import Events, Subscribe

        found = question(self._controller, Subscribe(1, AFTER_ALL), Events)
        return Mark(found.epoch, found.last)

    def since(self, mark: Mark | None, forever: bool) -> Iterator[Happened]:
        from lmkv.core.messages import Events, Subscribe

        with troubles(), client_of(self._controller) as client:
            epoch, number = mark or Mark(0, 0)
            wait = 0.0  # at first: whether it answers should be known soon
            for request in count(1):
                asked, _ = client.ask(Subscribe(request, number, wait))
                found = expected(self._controller, asked, Events)
                if epoch not in (0, found.epoch) or (epoch and number + 1 < found.first):
                    number = found.first - 1 if epoch == found.epoch else 0
                    yield Happened(Mark(found.epoch, number), "reset", "", "", 0.0)
                    epoch = found.epoch
                    continue
                epoch = found.epoch
                for each in found.events:
                    number = each.id
                    mark = Mark(epoch, number)
                    yield Happened(mark, each.kind, each.instance, each.text, each.age, each.job)
                if not forever and number >= found.last:
                    return
                if forever:
                    wait, client.deadline = WAIT, WAIT + SPARE


class _Sse:
    def __init__(self, controller: str) -> None:
        self._controller = controller

    def newest(self) -> Mark:
        return next(self._sent("")).mark  # its greeting

    def since(self, mark: Mark | None, forever: bool) -> Iterator[Happened]:
        end = None if forever else self.newest()
        if mark is not None and mark == end:
            return
        query = "?history=4096" if mark is None else ""
        headers = {} if mark is None else {"Last_Event_ID": str(mark)}
        for each in self._sent(query, **headers):
            if each.kind != "start":
                yield each
            if end is not None and each.mark.number >= end.number:
                return

    def _sent(self, query: str, **headers: str) -> Iterator[Happened]:
        from lmkv.cli.http import Http, Wrong

        with troubles():
            fields: dict[str, str] = {}
            for line in Http(self._controller).lines("/v1/events" + query, SILENCE, **headers):
                name, _, value = line.partition(": ")
                if line:
                    fields[name] = value
                    continue
                if "data" in fields:
                    try:
                        yield _happened(fields)
                    except (ValueError, KeyError, TypeError):
                        raise Wrong(f"{self._controller} sends no events of lmkv's") from None
                fields = {}


def _happened(fields: dict[str, str]) -> Happened:
    import json

    epoch, _, number = fields["id"].partition("-")
    data = json.loads(fields["data"])
    mark = Mark(int(epoch, 16), int(number))
    job = data.get("job", "")
    return Happened(mark, data["kind"], data["instance"], data["text"], float(data["age"]), job)
