"""`/jobs/ID`: one job, and what each instance has done of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import Request
from nicegui import ui

from lmkv.core.messages import ENDED, JobState
from lmkv.web.pages import commands
from lmkv.web.pages.frame import live
from lmkv.web.pages.jobs import acting, buttons, progress_html, state_html, what_html
from lmkv.web.pages.text import NONE, age, escape, instance_link, size, table

if TYPE_CHECKING:
    from lmkv.web.pages.site import Site


def page(site: Site) -> None:
    @ui.page("/jobs/{name:path}")
    async def job(request: Request, name: str) -> None:
        with site.frame(request, f"Job {name}") as frame:
            live(f"<h1>Job {escape(name)}</h1>").classes("bare")
            with ui.element("section").classes("panel"):
                facts = live()
            with ui.element("section").classes("panel"):
                live("<h2>Its parts</h2>")
                parts = live()
            live(commands.line_html(f"lmkv jobs wait {name}" if name.isalnum() else "lmkv jobs"))
            may = acting(site, frame)

            async def refresh() -> None:
                found = await site.view.job(name)
                facts.content = facts_html(found, may())
                parts.content = parts_html(found)

            await frame.keep(refresh)


def facts_html(found: JobState, may: bool) -> str:
    running = found.state == "running"
    facts = {
        "What": what_html(found),
        "State": state_html(found),
        "Progress": progress_html(found),
        "Rate": f"{size(found.rate)}/s" if found.rate else NONE,
        "Left": age(found.eta) if running and found.eta else NONE,
        "Asked by": escape(found.asked_by or NONE),
        "Asked": f"{age(found.age)} ago",
        "Ended": f"{age(found.ended_age)} ago" if found.state in ENDED else NONE,
        "Instances": f"{len(found.parts)} of {max(found.instances, len(found.parts))} have told",
    }
    told = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in facts.items())
    button = buttons(found) if may else ""
    return f"<dl>{told}</dl>" + (f'<div class="scroll pager">{button}</div>' if button else "")


def parts_html(found: JobState) -> str:
    rows = [
        [
            instance_link(part.instance),
            state_html(part),
            progress_html(part),
            age(part.seconds),
            f"{age(part.ended_age)} ago" if part.state in ENDED else NONE,
        ]
        for part in found.parts
    ]
    heads = [("Instance", "w"), ("State", "w"), ("Progress", "rest"), ("Ran", "n"), ("Ended", "n")]
    return table(heads, rows, "No instance has told of it yet.", "Parts of the job by instance")
