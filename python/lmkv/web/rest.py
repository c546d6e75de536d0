"""REST v1: the routes, from a request's values to a question of `ClusterView` and back."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Path, Query
from fastapi.responses import StreamingResponse

from lmkv.core import messages
from lmkv.web import models
from lmkv.web.auth import needs
from lmkv.web.cluster_view import ClusterView
from lmkv.web.errors import Problem
from lmkv.web.events import KEPT, Hub

Errors = dict[int | str, dict[str, object]]


def described(texts: dict[int, str]) -> Errors:
    """For OpenAPI: what answers of these statuses mean."""
    return {status: {"model": models.Error, "description": text} for status, text in texts.items()}


ERRORS = described(
    {
        400: "the caller's mistake; `field` names it",
        401: "no token, or one that is not known",
        403: "a token whose scope is not enough",
        404: "nothing of that name is known",
        413: "more than the controller takes at once",
        429: "too many requests of one client; `Retry-After` says when",
        502: "the controller, or an instance, failed at it",
        503: "the controller does not answer, or not yet",
    }
)
# Beside those, where an instance has its part.
UNANSWERED = described(
    {
        409: "the instance is suspect or dead, or ended meanwhile",
        429: "too many requests, too many commands that are not answered, or this one runs",
        501: "the instance's release does not know the operation",
        504: "the instance did not answer in time",
    }
)
SORTS = f"one of {', '.join(messages.INSTANCE_SORTS)}; instead of after"
FILTER = "a part of the name, the model or the version, or a state"
Name = Annotated[str, Path(min_length=1, max_length=256)]


def routes(view: ClusterView, hub: Hub) -> APIRouter:
    router = APIRouter(prefix="/v1", responses=ERRORS, dependencies=[needs("read")])

    @router.get("/cluster", summary="The cluster in one answer, without its instances")
    async def cluster() -> models.Cluster:
        return models.Cluster.model_validate(await view.status())

    @router.get("/instances", summary="Instances by name, or in another order, a page at a time")
    async def instances(
        after: Annotated[str, Query(max_length=256)] = "",
        limit: Annotated[int, Query(ge=1, le=250)] = 100,
        sort: Annotated[str, Query(max_length=256, description=SORTS)] = "",
        descending: bool = False,
        filter: Annotated[str, Query(max_length=256, description=FILTER)] = "",  # noqa: A002
        offset: Annotated[int, Query(ge=0, le=1 << 20, description="with sort")] = 0,
    ) -> models.InstancesPage:
        question = messages.Instances(
            after=after, limit=limit, sort=sort, descending=descending, filter=filter, offset=offset
        )
        return models.InstancesPage.model_validate(await view.instances(question))

    @router.get("/flow", summary="Bytes that came from instance to instance of late")
    async def flow(
        seconds: Annotated[float, Query(ge=10, le=300)] = 300.0,
        limit: Annotated[int, Query(ge=1, le=500)] = 100,
    ) -> models.Flow:
        return models.Flow.model_validate(await view.flow(seconds, limit))

    @router.get("/instances/{instance:path}", summary="One instance")
    async def instance(instance: Name) -> models.Instance:
        return models.Instance.model_validate(await view.instance(instance))

    @router.get("/controllers", summary="All controllers of the cluster, each asked now")
    async def controllers() -> models.Controllers:
        return models.Controllers.model_validate({"controllers": await view.controllers()})

    @router.get("/prefixes", summary="The prefixes that were located most of late")
    async def prefixes(
        top: Annotated[int, Query(ge=1, le=500)] = 20,
    ) -> models.Prefixes:
        return models.Prefixes.model_validate(await view.prefixes(top))

    @router.get(
        "/events",
        summary="Server-sent events: registered, suspect, dead, back, left, drift, resync, "
        "incompatible, job; reset: what follows is not what you had",
        response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {}}, "model": models.Event}},
    )
    async def events(
        last_event_id: Annotated[str, Header(max_length=64)] = "",
        history: Annotated[int, Query(ge=0, le=KEPT, description="past events to begin with")] = 0,
    ) -> StreamingResponse:
        stream = hub.open(last_event_id, history)
        headers = {"Cache-Control": "no-store"}
        return StreamingResponse(stream, media_type="text/event-stream", headers=headers)

    @router.post("/lookup", summary="Who holds a prompt, chunk by chunk", responses=UNANSWERED)
    async def lookup(body: models.Lookup) -> models.Found:
        one_form(body, "", ["keys"] if body.keys else [])
        question = messages.Lookup(
            tokens=body.tokens,
            text=body.text,
            messages=body.chat(),
            salt=body.salt,
            lora=body.lora,
            like=body.like,
            model=body.model,
        )
        return models.Found.model_validate(await view.lookup(question, body.keys))

    @router.post(
        "/locate",
        summary="For routers: instances, those with the longest prefix first",
        responses=UNANSWERED,
    )
    async def locate(body: models.Locate) -> models.Located:
        prompts: list[models.Prompt] = [body] if body.prompts is None else [*body.prompts]
        if body.prompts is not None and (given := body.given()):
            text = f"{given[0]}: {given[0]} and prompts exclude each other"
            raise Problem(400, "field", text, given[0])
        for i, prompt in enumerate(prompts):
            before = "" if body.prompts is None else f"prompts.{i}."
            one_form(prompt, before, [], 0, "tokens, text or messages")
        asked = [
            messages.Route(
                tokens=prompt.tokens,
                text=prompt.text,
                messages=prompt.chat(),
                model=body.model,
                salt=prompt.salt or body.salt,
                lora=prompt.lora or body.lora,
                limit=body.limit,
            )
            for prompt in prompts
        ]
        found = [_candidates(each) for each in await view.route(asked)]
        if body.prompts is None:
            return models.Located(candidates=found[0].candidates)
        return models.Located(candidates=[], prompts=found)

    return router


def one_form(
    prompt: models.Prompt,
    before: str,
    more: list[str],
    least: int = 1,
    words: str = "tokens, text, messages or keys",
) -> None:
    """Raises Problem unless a prompt is given once; `more` are forms beside those of `Prompt`."""
    given = prompt.given() + more
    if least <= len(given) <= 1:
        return
    field = before + (given[1] if given else "tokens")
    raise Problem(400, "field", f"{field}: a prompt is given once, as {words}", field)


def _candidates(found: list[messages.Candidate]) -> models.Candidates:
    return models.Candidates(
        candidates=[
            models.Candidate(
                instance=each.instance,
                url=each.serving_url,
                dp_rank=each.dp_rank,
                tokens=each.tokens,
                load=each.load,
                fresh_ms=round(each.heartbeat_age * 1000, 1),
            )
            for each in found
        ]
    )
