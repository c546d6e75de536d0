"""Where the pages are let in: NiceGUI's application beside REST, or one page on how to get it.

    pages = load(view, hub, tokens)  # None without the extra `dashboard`: nothing of it is loaded
    app.add_middleware(Pages, pages=pages)
    async with running(pages): ...

`Gate` has asked who it is before anything comes here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec

from fastapi import APIRouter, FastAPI
from fastapi.responses import HTMLResponse, PlainTextResponse
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lmkv.web.auth import Tokens, needs
from lmkv.web.cluster_view import ClusterView
from lmkv.web.events import Hub

# To be read; LMCache posts to one too.
PAGES = ("/instances", "/lookup", "/jobs", "/pins", "/flow", "/favicon.ico")
OWN = ("/_nicegui", "/_nicegui_ws")
MOST = 256  # pages that are open at once
# Vue compiles templates in the browser. Nothing comes from another host.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self' data:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)
MISSING = """<!doctype html><html lang="en"><meta charset="utf-8"><title>lmkv</title>
<meta name="color-scheme" content="light dark">
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:40em;margin:15vh auto;padding:0 1em}
</style><h1>lmkv</h1><p>The controller runs, without its dashboard. To have it here:</p>
<pre>pip install 'lmkv[dashboard]'</pre><p>and start the controller again. Meanwhile:
<a href="/docs">REST</a>, <a href="/metrics">metrics</a>.</p>"""


def installed() -> bool:
    return find_spec("nicegui") is not None


def load(view: ClusterView, hub: Hub, tokens: Tokens) -> FastAPI | None:
    if not installed():
        return None
    from lmkv.web.pages.site import site

    return site(view, hub, tokens)


@asynccontextmanager
async def running(pages: FastAPI | None) -> AsyncIterator[None]:
    if pages is None:
        yield
        return
    async with pages.router.lifespan_context(pages):
        yield


def missing() -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get("/", dependencies=[needs("read")])
    async def page() -> HTMLResponse:
        return HTMLResponse(MISSING)

    return router


def _below(path: str, roots: tuple[str, ...]) -> bool:
    return any(path == root or path.startswith(root + "/") for root in roots)


class Pages:
    """ASGI middleware: the pages' own paths are theirs."""

    def __init__(self, app: ASGIApp, pages: FastAPI) -> None:
        self._app, self._pages = app, pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        read = scope.get("method", "GET") in ("GET", "HEAD")
        if not (_below(path, OWN) or (read and (path == "/" or _below(path, PAGES)))):
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = POLICY
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "same-origin"
            await send(message)

        if scope["type"] == "http" and not path.startswith("/_nicegui") and self._full():
            text = f"{MOST} pages are open, which is the most: close one, or try again in a minute"
            await PlainTextResponse(text, 503, {"Retry-After": "60"})(scope, receive, guarded)
            return
        await self._pages(scope, receive, guarded)

    @staticmethod
    def _full() -> bool:
        from nicegui import Client

        return len(Client.instances) >= MOST
