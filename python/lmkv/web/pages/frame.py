"""What every page has: its place in the site, pause, colours, and a banner when nobody answers.

    @ui.page("/flow")
    async def flow(request: Request) -> None:
        with frame(site, request, "Flow"):
            shown = live()
            async def refresh() -> None: shown.content = ...
        await keep(refresh)

`refresh` is called at once and each second; what the controller does not answer or refuses becomes
the banner, and what was shown stays.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fastapi import Request
from nicegui import ui

from lmkv.core.client import Unreachable
from lmkv.core.tokens import SCOPES, Grant
from lmkv.web.errors import Problem
from lmkv.web.pages.style import SCRIPT, STYLE
from lmkv.web.pages.text import escape
from lmkv.web.pages.watch import Watch

EVERY = 1.0  # seconds
PLACES = (
    ("/", "Overview"),
    ("/instances", "Instances"),
    ("/lookup", "Lookup"),
    ("/jobs", "Jobs"),
    ("/pins", "Pins"),
    ("/flow", "Flow"),
)
COLOURS = '<button type="button" id="colours" onclick="lmkvNext(this)">Colours: system</button>'
LOG_OUT = '<form method="post" action="/logout"><button>Log out</button></form>'

Refresh = Callable[[], Awaitable[None]]
Who = Callable[[], "Grant | None"]  # who looks, as of now; None: nobody that may


class Frame:
    """`keep` lets a page be refreshed; `ask` lets one thing be done, and tells what is wrong."""

    def __init__(self, banner: ui.html, who: Who) -> None:
        self._banner = banner
        self._who = who
        self.paused = False

    def may(self, scope: str) -> bool:
        """Whether who looks may do what takes this scope, as of now."""
        grant = self._who()
        return grant is not None and SCOPES.index(grant.scope) >= SCOPES.index(scope)

    def need(self, scope: str) -> str:
        """Who it is that does it; raises Problem."""
        if not self.may(scope):
            text = f"authorization: this takes a token of scope {scope}; yours is less, or gone"
            raise Problem(403, "forbidden", text, "authorization")
        grant = self._who()
        return (grant.name if grant else "") or "dashboard"

    def acted(self, act: Callable[[Mapping[str, str]], Awaitable[None]]) -> None:
        """Whenever a button of `text.act_button` is clicked: what it has with it."""

        async def heard(event: Any) -> None:
            given = event.args if isinstance(event.args, dict) else {}
            told = {name: str(value)[:256] for name, value in given.items()}
            await self.ask(lambda: act(told))

        ui.on("lmkv_act", heard)

    def guard(self) -> None:
        """The page goes when its token is gone, or the session is over."""

        def look() -> None:
            if self._who() is None:
                ui.navigate.reload()

        ui.timer(EVERY, look, immediate=False)

    async def keep(self, refresh: Refresh) -> None:
        await self.ask(refresh)
        ui.timer(EVERY, lambda: self._again(refresh), immediate=False)

    async def _again(self, refresh: Refresh) -> None:
        if self._who() is not None and not self.paused:
            await self.ask(refresh)

    async def ask(self, act: Refresh) -> bool:
        """Whether it was done."""
        try:
            await act()
        except Unreachable:
            self._say("The controller does not answer. What is shown is what it said last.")
        except Problem as problem:
            self._say(problem.message)
        else:
            self._say("")
            return True
        return False

    def _say(self, text: str) -> None:
        wanted = f'<div class="banner" role="alert">{escape(text)}</div>' if text else ""
        if self._banner.content != wanted:
            self._banner.content = wanted


def live(content: str = "") -> ui.html:
    """HTML of our own making, in which all that is not is escaped."""
    return ui.html(content, sanitize=False)


@contextmanager
def frame(watch: Watch, request: Request, title: str, who: Who, log_out: bool) -> Iterator[Frame]:
    ui.page_title(f"{title} · lmkv")
    ui.add_head_html(f"<style>{STYLE}</style>")
    ui.add_body_html(f"<script>{SCRIPT}</script>")
    kiosk = "kiosk" in request.query_params
    with ui.element("div").classes("kiosk" if kiosk else ""):
        with ui.element("header").classes("top"):
            live(_places(watch, request.url.path)).classes("bare")
            pause = ui.element("button").props("type=button aria-pressed=false")
            with pause:
                words = ui.label("Pause")
            live(COLOURS + (LOG_OUT if log_out else "")).classes("bare")
        banner = live()
        made = Frame(banner, who)
        made.guard()

        def toggle() -> None:
            made.paused = not made.paused
            words.text = "Resume" if made.paused else "Pause"
            pause.props(f"aria-pressed={str(made.paused).lower()}")

        pause.on("click", toggle)
        with ui.element("div").classes("main"):
            yield made


def _places(watch: Watch, here: str) -> str:
    cluster = f" · {watch.status.cluster}" if watch.status is not None else ""
    links = []
    for path, name in PLACES:
        current = here == path or (path != "/" and here.startswith(path + "/"))
        mark = ' aria-current="page"' if current else ""
        links.append(f'<a href="{path}"{mark}>{name}</a>')
    return f"<b>lmkv{escape(cluster)}</b><nav>{''.join(links)}</nav>"
