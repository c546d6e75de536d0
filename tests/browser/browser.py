"""Debian's Chromium, driven by Playwright; whatever a page says or asks for elsewhere is noted."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

CHROMIUM = shutil.which("chromium")
SIZE = {"width": 1280, "height": 800}
DEADLINE = 60_000  # milliseconds


@dataclass
class Tab:
    """`page` is Playwright's; `said` are errors and warnings of its console, `asked` the hosts."""

    page: Any
    said: list[str] = field(default_factory=list)
    asked: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.page.set_default_timeout(DEADLINE)
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", self._request)
        self.page.on("websocket", lambda socket: self.asked.add(urlsplit(socket.url).netloc))

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.said.append(f"{message.text} {message.location}")

    def _request(self, request: Any) -> None:
        where = urlsplit(request.url)
        if where.scheme not in ("data", "blob"):
            self.asked.add(where.netloc)

    def see(self, text: str) -> None:
        """Wait until the page shows it."""
        self.page.get_by_text(text).first.wait_for()

    def text(self, selector: str = ".main") -> str:
        return str(self.page.locator(selector).inner_text())


@contextmanager
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


@contextmanager
def tab(browser: Any, colours: str = "light") -> Iterator[Tab]:
    context = browser.new_context(viewport=SIZE, color_scheme=colours)
    yield Tab(context.new_page())
    context.close()
