"""LMCache's operations with its bodies (0.5.6), each a job: `event_id` is the job's id, and
`/check_finish` says what became of it.

LMCache answers how many tokens were touched; a job has only begun then, so that it is how many of
the prompt the instance has.
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from lmkv.core.messages import Lookup, Submit
from lmkv.web.auth import asker, needs
from lmkv.web.cluster_view import ClusterView
from lmkv.web.errors import Problem
from lmkv.web.lmcache import ERRORS, LOCATION, Answer, Route, Tokens, named
from lmkv.web.models import TOKENS

OWNER = "lmcache"  # of pins, which have no end there
# What `/check_finish` says of a job's state.
STATUS = {"queued": "pending", "running": "running", "done": "finished"}
FAILED = "failed"
LONGEST = 256  # characters of a location that are said


class PinRequest(BaseModel):
    instance_id: str
    location: str
    tokens: Tokens = Field(max_length=TOKENS)


class ClearRequest(BaseModel):
    instance_id: str
    location: str


class CompressRequest(BaseModel):
    instance_id: str
    method: str
    location: str
    tokens: Tokens | None = Field(default=[], max_length=TOKENS)


class MoveRequest(BaseModel):
    old_position: tuple[str, str]
    new_position: tuple[str, str]
    tokens: Tokens | None = Field(default=[], max_length=TOKENS)
    should_copy: bool | None = False


class CheckFinishRequest(BaseModel):
    event_id: str = Field(min_length=1, max_length=256)


class Begun(Answer):
    num_tokens: int


class CheckFinishResponse(BaseModel):
    status: str


def routes(view: ClusterView) -> APIRouter:
    router = APIRouter(route_class=Route, tags=["LMCache"], responses=ERRORS)
    acting = [needs("operate")]

    @router.post("/pin", summary="Until it is unpinned: lmkv unpin", dependencies=acting)
    async def pin(body: PinRequest, request: Request) -> Begun:
        _located(body.location, "location")
        if not body.tokens:
            raise Problem(400, "field", "tokens: there are none", "tokens")
        return await _begin(view, request, "pin", body.instance_id, body.tokens, owner=OWNER)

    @router.post("/clear", summary="All that an instance holds", dependencies=acting)
    async def clear(body: ClearRequest, request: Request) -> Begun:
        _located(body.location, "location")
        return await _begin(view, request, "clear", body.instance_id, None)

    @router.post("/compress", summary="Without loss, whatever the method", dependencies=acting)
    async def compress(body: CompressRequest, request: Request) -> Begun:
        _located(body.location, "location")
        return await _begin(view, request, "compress", body.instance_id, body.tokens)

    @router.post("/decompress", summary="As it was", dependencies=acting)
    async def decompress(body: CompressRequest, request: Request) -> Begun:
        _located(body.location, "location")
        return await _begin(view, request, "decompress", body.instance_id, body.tokens)

    @router.post("/move", summary="From instance to instance, or a copy", dependencies=acting)
    async def move(body: MoveRequest, request: Request) -> Begun:
        (source, old), (target, new) = body.old_position, body.new_position
        _located(old, "old_position")
        _located(new, "new_position")
        operation = "copy" if body.should_copy else "move"
        return await _begin(
            view, request, operation, target, body.tokens, source=named(source, "old_position")
        )

    @router.post("/check_finish", summary="What became of it", dependencies=[needs("read")])
    async def check_finish(body: CheckFinishRequest) -> CheckFinishResponse:
        state = (await view.job(body.event_id)).state
        return CheckFinishResponse(status=STATUS.get(state, FAILED))

    return router


def _located(location: str, field: str) -> None:
    if location != LOCATION:
        text = f"{field}: {location[:LONGEST]!r} is not here; allowed is {LOCATION}"
        raise Problem(400, "field", text, field)


async def _begin(
    view: ClusterView,
    request: Request,
    operation: str,
    instance: str,
    tokens: Tokens | None,
    source: str = "",
    owner: str = "",
) -> Begun:
    """No tokens: all that the instance holds."""
    holder = named(source or instance, "instance_id")
    named(instance, "new_position" if source else "instance_id")
    count = await _tokens(view, holder, tokens or [])
    question = Submit(
        0, operation, "", instance, source, not tokens, tokens or [], like=holder, owner=owner,
        asked_by=asker(request),
    )  # fmt: skip
    found = await view.submit(question)
    return Begun(event_id=found.job.id, num_tokens=count)


async def _tokens(view: ClusterView, holder: str, tokens: Tokens) -> int:
    """How many of them it has; of none given, about how many it has in all."""
    info = await view.lookup(Lookup(tokens=tokens, like=holder))
    if tokens:
        return info.matched.get(holder, 0)
    return (await view.instance(holder)).keys * info.chunk_tokens
