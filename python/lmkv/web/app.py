"""The application: health, version, metrics, documentation, and REST v1 below `/v1`."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, FastAPI, Response
from fastapi.responses import HTMLResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from lmkv import __version__, _native
from lmkv.core.messages import PROTOCOL_MAX, PROTOCOL_MIN
from lmkv.web import (
    dashboard,
    docs_page,
    errors,
    jobs,
    lmcache,
    lmcache_jobs,
    login,
    metrics,
    models,
    operations,
    rest,
)
from lmkv.web.auth import Gate, Tokens, needs
from lmkv.web.cluster_view import HEALTH_DEADLINE, ClusterView
from lmkv.web.errors import Problem
from lmkv.web.events import Hub
from lmkv.web.limits import BodyLimit, Buckets

ABOUT = """Who holds which KV cache in a cluster of vLLM instances. Whatever goes wrong is answered
{"error": {"code", "message", "field"}}: 4xx is a mistake of the caller's, 503 says that the
controller does not answer."""


def build(
    view: ClusterView,
    hub: Hub,
    controller_pid: int,
    tokens: Tokens,
    buckets: Buckets,
    compat: str = "",
    pages: FastAPI | None = None,
) -> FastAPI:
    """`compat`: `lmcache` for its paths beside."""
    app = FastAPI(
        title="lmkv",
        version=__version__,
        description=ABOUT,
        docs_url=None,  # FastAPI's own pages load scripts from another host
        redoc_url=None,
        openapi_url=None,  # below: it has a scope like any other
    )
    errors.install(app)
    if pages is not None:
        app.add_middleware(dashboard.Pages, pages=pages)
    else:
        app.include_router(dashboard.missing())
    app.add_middleware(BodyLimit)
    app.add_middleware(Gate, known=tokens, buckets=buckets)  # the last one is the first
    app.include_router(_health(view, hub, controller_pid))
    app.include_router(login.routes(tokens))
    app.include_router(operations.routes(view))  # its paths end those of instances
    app.include_router(rest.routes(view, hub))
    app.include_router(jobs.routes(view, hub))
    if compat == "lmcache":
        app.include_router(lmcache.routes(view))
        app.include_router(lmcache_jobs.routes(view))

    @app.get("/openapi.json", include_in_schema=False, dependencies=[needs("read")])
    async def description() -> dict[str, Any]:
        return app.openapi()

    @app.get("/docs", include_in_schema=False, dependencies=[needs("read")])
    async def docs() -> HTMLResponse:
        return HTMLResponse(docs_page.page(app.openapi()))

    return app


def _health(view: ClusterView, hub: Hub, controller_pid: int) -> APIRouter:
    silent: rest.Errors = {503: rest.ERRORS[503]}
    router = APIRouter(responses=silent)

    @router.head("/healthz", include_in_schema=False)
    @router.get("/healthz", summary="Whether the controller answers")
    async def healthz() -> models.Health:
        await view.status(HEALTH_DEADLINE)
        return models.Health(status="ok")

    @router.head("/readyz", include_in_schema=False)
    @router.get("/readyz", summary="Whether it knows who holds what: not while warming or ending")
    async def readyz() -> models.Health:
        if hub.closed:
            raise Problem(503, "draining", "the controller, or its web process, is ending")
        info = await view.status(HEALTH_DEADLINE)
        if info.state != "ready":
            raise Problem(503, info.state, f"the controller is {info.state}")
        return models.Health(status=info.state)

    @router.get("/version", summary="Of this process, which is the controller's")
    async def version() -> models.Version:
        return models.Version(
            version=__version__,
            protocol_min=PROTOCOL_MIN,
            protocol_max=PROTOCOL_MAX,
            isa=_native.isa(),
        )

    @router.get("/metrics", summary="For Prometheus", response_class=PlainTextResponse)
    async def scrape() -> Response:
        text = metrics.page(await view.status(top=metrics.INSTANCES), controller_pid)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    return router
