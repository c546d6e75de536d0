"""The site: its pages, what they share, and NiceGUI's application that serves them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass

from fastapi import FastAPI, Request
from nicegui import core, ui

from lmkv.web.auth import Tokens
from lmkv.web.cluster_view import ClusterView
from lmkv.web.events import Hub
from lmkv.web.pages import flow, instance, instances, job, jobs, lookup, overview, pins
from lmkv.web.pages.frame import Frame, frame
from lmkv.web.pages.watch import Watch

MESSAGE = 4 << 20  # bytes: as many characters as a browser sends at once, three bytes each
RECONNECT = 10.0  # seconds in which a page that lost its connection finds itself again


@dataclass
class Site:
    view: ClusterView
    hub: Hub
    tokens: Tokens
    watch: Watch

    @contextmanager
    def frame(self, request: Request, title: str) -> Iterator[Frame]:
        """Who is logged in looks on; `Gate` has let the request in."""
        scope = request.scope
        with frame(
            self.watch,
            request,
            title,
            lambda: self.tokens.of(scope),
            self.tokens.wanted,
        ) as made:
            yield made


def site(view: ClusterView, hub: Hub, tokens: Tokens) -> FastAPI:
    made = Site(view, hub, tokens, Watch(view))
    for each in (overview, instances, instance, lookup, jobs, job, pins, flow):
        each.page(made)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(made.watch.run())
        yield
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching

    core.sio.eio.max_http_buffer_size = MESSAGE
    app = FastAPI(lifespan=lifespan, openapi_url=None)
    ui.run_with(
        app,
        title="lmkv",
        dark=None,  # as the system has it
        tailwind=False,
        reconnect_timeout=RECONNECT,
        show_welcome_message=False,
    )
    return app
