"""`/jobs?state=&instance=&after=&old=`: what instances do for operators, the newest first.

What ended more than ten minutes ago is folded up, unless it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from fastapi import Request
from nicegui import ui

from lmkv.core.messages import ENDED, STATES, Jobs, JobsInfo, JobState, Part
from lmkv.core.tokens import OPERATE
from lmkv.web.errors import Problem
from lmkv.web.pages.frame import Frame, live
from lmkv.web.pages.text import (
    NONE,
    act_button,
    age,
    escape,
    instance_link,
    job_link,
    link,
    progress,
    size,
    table,
)

if TYPE_CHECKING:
    from lmkv.web.pages.site import Site

PAGE = 50
OLD = 600.0  # seconds after its end
NAMED = 2  # instances of a job


def page(site: Site) -> None:
    @ui.page("/jobs")
    async def jobs(
        request: Request, state: str = "", instance: str = "", after: str = "", old: str = ""
    ) -> None:
        state = state if state in STATES else ""
        question = Jobs(limit=PAGE, state=state, instance=instance[:256], after=after[:128])
        with site.frame(request, "Jobs") as frame:
            live("<h1>Jobs</h1>" + _form(question)).classes("bare")
            with ui.element("section").classes("panel"):
                shown = live()
            may = acting(site, frame)

            async def refresh() -> None:
                info = await site.view.jobs(question)
                shown.content = jobs_html(info, question, bool(old), may())

            await frame.keep(refresh)


def acting(site: Site, frame: Frame) -> Callable[[], bool]:
    """Lets buttons cancel and retry; whether they are to be there."""

    async def act(told: Mapping[str, str]) -> None:
        frame.need(OPERATE)
        if told.get("do") not in ("cancel", "retry") or not told.get("job"):
            raise Problem(400, "field", "do: allowed is cancel or retry, of a job", "do")
        await site.view.job(told["job"], told["do"])

    frame.acted(act)
    return lambda: frame.may(OPERATE)


def _form(question: Jobs) -> str:
    return (
        '<form class="find" method="get" action="/jobs" role="search">'
        f'<input type="hidden" name="state" value="{escape(question.state)}">'
        '<label for="instance" class="unseen">Instance</label>'
        f'<input id="instance" name="instance" value="{escape(question.instance)}" '
        'maxlength="256" placeholder="an instance that has a part in it">'
        '<button class="plain">Filter</button></form>'
    )


def jobs_html(info: JobsInfo, question: Jobs, old: bool, may: bool) -> str:
    folded = [] if old or question.after else [each for each in info.jobs if is_old(each)]
    rows = [_row(each, may) for each in info.jobs if each not in folded]
    heads = [
        ("Job", "w"), ("What", "what"), ("State", "w"), ("Progress", "rest"), ("Asked by", "w"),
        ("Asked", "n"), ('<span class="unseen">Do</span>', "w"),
    ]  # fmt: skip
    around = []
    if folded:
        text = f"{len(folded)} that ended more than 10 minutes ago"
        around.append(_place(text, question, old="1"))
    if question.after:
        around.append(_place("Newest", question))
    if info.next:
        around.append(_place("Older", question, after=info.next, old="1" if old else ""))
    empty = "Nothing is done just now." if folded else "There is no such job."
    if not info.total and not question.state and not question.instance:
        empty = "No job has been asked for."
    return (
        f'<nav class="find states" aria-label="States">{" ".join(_states(info, question))}</nav>'
        + table(heads, rows, empty, "Jobs, the newest first")
        + f'<nav class="pager" aria-label="More">{" ".join(around)}</nav>'
    )


def is_old(each: JobState) -> bool:
    return each.state in ENDED and each.ended_age > OLD


def _states(info: JobsInfo, question: Jobs) -> list[str]:
    """Each a link, with how many there are."""
    found = []
    for state in ("", *STATES):
        number = info.states.get(state, 0) if state else sum(info.states.values())
        here = ' aria-current="true"' if state == question.state else ""
        shown = link("/jobs", f"{state or 'all'} {number}", state=state, instance=question.instance)
        found.append(shown.replace("<a ", f"<a{here} ", 1))
    return found


def _place(text: str, question: Jobs, **more: str) -> str:
    return link("/jobs", text, state=question.state, instance=question.instance, **more)


def _row(each: JobState, may: bool) -> list[str]:
    return [
        job_link(each.id),
        what_html(each),
        state_html(each),
        progress_html(each, pace(each)),
        escape(each.asked_by or NONE),
        f"{age(each.age)} ago",
        buttons(each) if may else "",
    ]


def what_html(each: JobState) -> str:
    """`move from a to b`, `clear at a, b`."""
    names = [instance_link(part.instance) for part in each.parts]
    places = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" * (len(names) > NAMED))
    if each.operation in ("copy", "move"):
        source = f" from {instance_link(each.source)}" if each.source else ""
        return f"{escape(each.operation)}{source} to {places or NONE}"
    return f"{escape(each.operation)} at {places or NONE}"


def state_html(each: JobState | Part) -> str:
    """With its reason, where it failed."""
    shown = f'<span class="state {escape(each.state)}">{escape(each.state)}</span>'
    if each.attempt > 1:
        shown += f" <small>attempt {each.attempt}</small>"
    return shown + (f'<div class="why">{escape(each.reason)}</div>' if each.reason else "")


def pace(each: JobState) -> str:
    """Bytes a second, and what is left; "" unless it runs."""
    if each.state != "running":
        return ""
    told = [f"{size(each.rate)}/s"] if each.rate else []
    return ", ".join(told + ([f"{age(each.eta)} left"] if each.eta else []))


def progress_html(each: JobState | Part, pace: str = "") -> str:
    """Chunks and bytes; those that needed nothing, or were not to be had, by why."""
    known = each.chunks_total or (each.chunks if each.state == "done" else 0)
    bar = progress(each.chunks, known) if known else progress(each.bytes, each.bytes_total)
    chunks = f"{each.chunks:,}" + (f" of {known:,}" if known else "") + " chunks"
    held = size(each.bytes) + (f" of {size(each.bytes_total)}" if each.bytes_total else "")
    told = [pace] if pace else []
    told += [f"{n:,} {escape(word)}" for word, n in sorted(each.skipped.items()) if n]
    more = f"<div><small>{', '.join(told)}</small></div>" if told else ""
    return f'<span class="amount">{bar}{chunks} · {held}</span>{more}'


def buttons(each: JobState) -> str:
    if each.state not in ENDED:
        return act_button("Cancel", f"Cancel {each.id}", do="cancel", job=each.id)
    if each.state != "done":
        return act_button("Retry", f"Retry {each.id}", do="retry", job=each.id)
    return ""
