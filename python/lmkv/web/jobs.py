"""REST v1: jobs and pins. A job is submitted here and runs in the instances; who wants to see it go
on asks for it, or reads its events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import StreamingResponse

from lmkv.core import messages
from lmkv.core.client import Unreachable
from lmkv.web import job_models as models
from lmkv.web.auth import asker, needs, require
from lmkv.web.cluster_view import ClusterView
from lmkv.web.errors import Problem
from lmkv.web.events import QUIET, Hub
from lmkv.web.rest import ERRORS, UNANSWERED, described, one_form

READERS = 64  # of jobs' events at once
LOOK = 1.0  # seconds between two looks at a job that runs: instances tell as often
PAUSE = 0.1  # at least, however much happens
SILENT = 30.0  # seconds without the controller after which a stream ends
RENAMED = {"ttl": "ttl_s", "id": "idempotency_key"}  # as REST calls what the controller refuses
CLASHES = described({409: "it has ended, or the key was another job's; or as below"})
JobId = Annotated[str, Path(min_length=1, max_length=256)]


def routes(view: ClusterView, hub: Hub) -> APIRouter:
    router = APIRouter(prefix="/v1", responses={**ERRORS, **UNANSWERED, **CLASHES})
    may_read, may_act = [needs("read")], [needs("operate")]

    @router.post(
        "/jobs",
        status_code=202,
        summary="Pin, unpin, copy, move, clear, compress or decompress; 200: there is that job",
        description="docs/operate.md says what each costs. `clear` of all instances takes `admin`.",
        responses={200: {"model": models.Job}},
        dependencies=may_act,
    )
    async def submit(body: models.Submit, request: Request, response: Response) -> models.Job:
        if body.operation == "clear" and body.whole and not body.instance:
            require(request, "admin")
        found = await submitted(view, body, asker(request))
        response.status_code = 202 if found.new else 200
        response.headers["Location"] = f"/v1/jobs/{found.job.id}"
        return models.Job.model_validate(found.job)

    @router.get("/jobs", summary="Jobs, the newest first, a page at a time", dependencies=may_read)
    async def jobs(
        after: Annotated[str, Query(max_length=256)] = "",
        limit: Annotated[int, Query(ge=1, le=250)] = 100,
        state: models.State | None = None,
        instance: Annotated[str, Query(max_length=256)] = "",
    ) -> models.JobsPage:
        question = messages.Jobs(after=after, limit=limit, state=state or "", instance=instance)
        return models.JobsPage.model_validate(await view.jobs(question))

    @router.get("/jobs/{id}", summary="One job with all its parts", dependencies=may_read)
    async def job(id: JobId) -> models.Job:  # noqa: A002
        return models.Job.model_validate(await view.job(id))

    @router.post("/jobs/{id}/cancel", summary="Ends what has not", dependencies=may_act)
    async def cancel(id: JobId) -> models.Job:  # noqa: A002
        return models.Job.model_validate(await view.job(id, "cancel"))

    @router.post(
        "/jobs/{id}/retry",
        summary="Begins anew what failed or was cancelled",
        dependencies=may_act,
    )
    async def retry(id: JobId) -> models.Job:  # noqa: A002
        return models.Job.model_validate(await view.job(id, "retry"))

    @router.get(
        "/jobs/{id}/events",
        summary="Server-sent events: the job at every change, until it has ended",
        response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {}}, "model": models.Job}},
        dependencies=may_read,
    )
    async def events(id: JobId) -> StreamingResponse:  # noqa: A002
        stream = follow.open(id, await view.job(id))
        headers = {"Cache-Control": "no-store"}
        return StreamingResponse(stream, media_type="text/event-stream", headers=headers)

    @router.get("/pins", summary="Pins by instance, a page at a time", dependencies=may_read)
    async def pins(
        instance: Annotated[str, Query(max_length=256)] = "",
        after: Annotated[str, Query(max_length=520)] = "",
        limit: Annotated[int, Query(ge=1, le=250)] = 100,
    ) -> models.PinsPage:
        found = await view.pins(messages.Pins(instance=instance, after=after, limit=limit))
        return models.PinsPage(
            pins=[_pin(pin) for pin in found.pins], next=found.next, total=found.total
        )

    follow = Followers(view, hub)
    return router


async def submitted(view: ClusterView, body: models.Submit, asked_by: str) -> messages.JobInfo:
    more = [name for name in ("keys", "whole") if getattr(body, name)]
    one_form(body, "", more, words="tokens, text, messages, keys or whole")
    question = messages.Submit(
        0,
        body.operation,
        body.idempotency_key,
        body.instance,
        body.source,
        body.whole,
        body.tokens,
        body.text,
        body.chat(),
        body.salt,
        body.lora,
        body.like,
        body.model,
        body.ttl_s,
        body.owner,
        asked_by,
    )
    try:
        return await view.submit(question, body.keys)
    except Problem as error:
        name = RENAMED.get(error.field)
        if name is None:
            raise
        text = error.message.removeprefix(error.field)
        text = name + text if text != error.message else text
        raise Problem(error.status, error.code, text, name) from None


def _pin(pin: messages.PinState) -> models.Pin:
    return models.Pin(
        id=pin.id,
        instance=pin.instance,
        owner=pin.owner,
        left_s=pin.left or None,
        chunks=pin.chunks,
        bytes=pin.bytes,
        first=pin.first,
    )


class Followers:
    """Streams of single jobs. Each looks once a second, and as soon as anything has happened."""

    def __init__(self, view: ClusterView, hub: Hub) -> None:
        self._view = view
        self._hub = hub
        self._readers = 0

    def open(self, name: str, first: messages.JobState) -> AsyncIterator[str]:
        if self._readers >= READERS:
            raise Problem(503, "too_many", f"{READERS} readers of jobs are served at once")
        return self._stream(name, first)

    async def _stream(self, name: str, job: messages.JobState) -> AsyncIterator[str]:
        self._readers += 1
        loop = asyncio.get_running_loop()
        try:
            told, said, heard = None, loop.time(), loop.time()
            while True:
                if (seen := _seen(job)) != told:
                    yield _event(job)
                    told, said = seen, loop.time()
                if job.state in messages.ENDED or self._hub.closed:
                    return
                if loop.time() - said > QUIET:
                    yield ": quiet\n\n"
                    said = loop.time()
                await asyncio.sleep(PAUSE)
                await self._hub.wait(LOOK - PAUSE)
                try:
                    job = await self._view.job(name)
                    heard = loop.time()
                except Problem as error:  # it is forgotten, or another controller does not know it
                    said_why = json.dumps({"code": error.code, "message": error.message})
                    yield f"event: gone\ndata: {said_why}\n\n"
                    return
                except Unreachable:
                    if loop.time() - heard > SILENT:
                        return
        finally:
            self._readers -= 1


def _seen(job: messages.JobState) -> object:
    """What of it is a change: its ages are none."""
    each = [(p.instance, p.state, p.chunks, p.bytes, p.attempt, p.reason) for p in job.parts]
    return job.state, job.chunks_total, job.bytes_total, each


def _event(job: messages.JobState) -> str:
    data = models.Job.model_validate(job).model_dump_json()
    return f"event: job\ndata: {data}\n\n"
