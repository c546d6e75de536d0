"""LMCache's controller paths with its bodies (0.5.6), for its clients: `compat: lmcache`.

What is wrong is answered `{"detail": ...}` as LMCache does, but with 4xx where the caller is wrong.
A slot is in the pool of host memory, which LMCache calls `LocalCPUBackend`; a rank is a worker.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field

from lmkv.core.client import Unreachable
from lmkv.core.messages import Instances, InstanceState, Lookup
from lmkv.web import models
from lmkv.web.auth import needs
from lmkv.web.cluster_view import ClusterView
from lmkv.web.errors import RETRY, Problem
from lmkv.web.models import TOKENS, Token

LOCATION = "LocalCPUBackend"
PAGE = 250
MOST = 16  # errors in an answer
# `/health` of a worker; 0 is LMCache's word for well.
CODES = {"live": 0, "suspect": 1, "dead": 2, "syncing": 3, "incompatible": 4}
NOT_PULLABLE = 5


class Wrong(BaseModel):
    detail: str


ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": Wrong, "description": "the caller's mistake"},
    401: {"model": models.Error, "description": "no token, or one that is not known"},
    403: {"model": Wrong, "description": "a token whose scope is not enough"},
    404: {"model": Wrong, "description": "nothing of that name is known"},
    409: {"model": Wrong, "description": "the instance is suspect or dead, or does not share"},
    413: {"model": Wrong, "description": "more than the controller takes at once"},
    429: {"model": models.Error, "description": "too many requests of one client"},
    501: {"model": Wrong, "description": "the instance's release does not know the operation"},
    502: {"model": Wrong, "description": "the controller, or an instance, failed at it"},
    503: {"model": Wrong, "description": "the controller does not answer, or not yet"},
    504: {"model": Wrong, "description": "the instance did not answer in time"},
}


class Route(APIRoute):
    """Errors in LMCache's form."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        serve = super().get_route_handler()

        async def served(request: Request) -> Response:
            try:
                return await serve(request)
            except Problem as error:
                return _wrong(error.status, error.message)
            except Unreachable as error:
                return _wrong(503, str(error))
            except RequestValidationError as error:
                return _wrong(422, [_field(each) for each in error.errors()])

        return served


def _field(error: dict[str, Any]) -> dict[str, Any]:
    """Without the value, which may be long."""
    return {name: error[name] for name in ("loc", "msg", "type")}


def _wrong(status: int, detail: object) -> JSONResponse:
    return JSONResponse({"detail": detail}, status, RETRY if status == 503 else None)


# ---------------------------------------------------------------- bodies

Tokens = list[Token]


class Answer(BaseModel):
    event_id: str


class LookupRequest(BaseModel):
    tokens: Tokens = Field(max_length=TOKENS)
    like: str = Field(default="", description="lmkv's own: an instance, where models differ")


class LookupResponse(Answer):
    layout_info: dict[str, tuple[str, int]]


class HealthRequest(BaseModel):
    instance_id: str


class HealthResponse(Answer):
    error_codes: dict[int, int]


class QueryInstRequest(BaseModel):
    ip: str
    event_id: str = Field(default="", description="LMCache wants one, and does not read it")


class QueryInstResponse(Answer):
    res: str


class QueryWorkerInfoRequest(BaseModel):
    instance_id: str
    worker_ids: list[int] | None = Field(default=None, max_length=1024)


class WorkerInfo(BaseModel):
    instance_id: str
    worker_id: int
    ip: str
    port: int
    peer_init_url: str | None
    registration_time: float
    last_heartbeat_time: float


class QueryWorkerInfoResponse(Answer):
    worker_infos: list[WorkerInfo]


# ---------------------------------------------------------------- routes


def routes(view: ClusterView) -> APIRouter:
    router = APIRouter(
        route_class=Route, tags=["LMCache"], dependencies=[needs("read")], responses=ERRORS
    )

    @router.post("/lookup", summary="Who has the prompt's beginning: the longest first")
    async def lookup(body: LookupRequest) -> LookupResponse:
        found = await view.lookup(Lookup(tokens=body.tokens, like=body.like))
        longest = sorted(found.matched.items(), key=lambda each: (-each[1], each[0]))
        return LookupResponse(
            event_id=_event("Lookup"),
            layout_info={instance: (LOCATION, tokens) for instance, tokens in longest},
        )

    @router.post("/health", summary="A code for each rank, 0 when it is well")
    async def health(body: HealthRequest) -> HealthResponse:
        instance = await view.instance(named(body.instance_id))
        code = CODES.get(instance.state, 1)
        if not code and not instance.pullable:
            code = NOT_PULLABLE
        codes = dict.fromkeys(range(instance.ranks), code)
        return HealthResponse(event_id=_event("health"), error_codes=codes)

    @router.post("/query_instance", summary="The first instance whose serving URL has this host")
    async def query_instance(body: QueryInstRequest) -> QueryInstResponse:
        name = await _at(view, body.ip)
        if name is None:
            text = f"ip: no instance's serving_url has the host {body.ip[:256]!r}"
            raise Problem(404, "unknown_instance", text, "ip")
        return QueryInstResponse(event_id=_event("QueryInst"), res=name)

    @router.post("/query_worker_info", summary="Its ranks")
    async def query_worker_info(body: QueryWorkerInfoRequest) -> QueryWorkerInfoResponse:
        instance = await view.instance(named(body.instance_id))
        ranks = range(instance.ranks) if body.worker_ids is None else body.worker_ids
        for rank in ranks:
            if not 0 <= rank < instance.ranks:
                text = f"worker_ids: {instance.instance!r} has ranks 0 to {instance.ranks - 1}"
                raise Problem(404, "unknown_rank", f"{text}, not {rank}", "worker_ids")
        infos = [_worker(instance, rank) for rank in ranks]
        return QueryWorkerInfoResponse(event_id=_event("QueryWorkerInfo"), worker_infos=infos)

    return router


def _event(kind: str) -> str:
    return kind + str(uuid.uuid4())


def named(instance: str, field: str = "instance_id") -> str:
    if not 1 <= len(instance) <= 256:
        text = f"{field}: allowed is an instance's name, 1 to 256 characters"
        raise Problem(400, "field", text, field)
    return instance


def _place(instance: InstanceState) -> tuple[str, int]:
    """Host and port of its serving URL; empty where it did not say one."""
    try:
        parts = urlsplit(instance.serving_url)
        return parts.hostname or "", parts.port or 0
    except ValueError:  # a port that is none
        return "", 0


async def _at(view: ClusterView, ip: str) -> str | None:
    after = ""
    while ip:
        page = await view.instances(Instances(after=after, limit=PAGE))
        for each in page.instances:
            if _place(each)[0] == ip.lower():
                return each.instance
        after = page.next
        if not after:
            break
    return None


def _worker(instance: InstanceState, rank: int) -> WorkerInfo:
    ip, port = _place(instance)
    return WorkerInfo(
        instance_id=instance.instance,
        worker_id=rank,
        ip=ip,
        port=port,
        peer_init_url=None,  # peers find one another without
        registration_time=0.0,  # is not kept
        last_heartbeat_time=time.time() - instance.heartbeat_age,
    )
