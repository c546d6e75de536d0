"""REST v1: operations on one instance, each a command that is answered when it has ended."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from lmkv.core import messages
from lmkv.web import models
from lmkv.web.auth import needs
from lmkv.web.cluster_view import ClusterView
from lmkv.web.rest import ERRORS, UNANSWERED, Name

Deadline = Annotated[float, Query(gt=0, le=600, description="seconds that the instance may take")]


def routes(view: ClusterView) -> APIRouter:
    router = APIRouter(prefix="/v1/instances", responses={**ERRORS, **UNANSWERED})

    @router.post(
        "/{instance:path}/sync",
        summary="A full sync, and the drift that it mended",
        dependencies=[needs("operate")],
    )
    async def sync(instance: Name, deadline: Deadline = 30.0) -> models.Synced:
        found = await view.command(instance, "sync", messages.SyncResult, deadline=deadline)
        return models.Synced.model_validate(found)

    @router.post(
        "/{instance:path}/verify",
        summary="The directory against the slot table, and sampled slots against their digests",
        dependencies=[needs("operate")],
    )
    async def verify(
        instance: Name, body: models.Verify | None = None, deadline: Deadline = 30.0
    ) -> models.Verified:
        arguments = {"sample": str((body or models.Verify()).sample)}
        found = await view.command(instance, "verify", messages.VerifyResult, arguments, deadline)
        return models.Verified.model_validate(found)

    @router.get(
        "/{instance:path}/config",
        summary="The settings that it runs with, and who set each",
        dependencies=[needs("read")],
    )
    async def config(instance: Name) -> models.Settings:
        return models.Settings.model_validate(await view.settings(instance))

    @router.get(
        "/{instance:path}/why",
        summary="The last requests that ended there, and why their tokens hit or missed",
        dependencies=[needs("read")],
    )
    async def why(
        instance: Name,
        last: Annotated[int, Query(ge=1, le=256)] = 20,
        request: Annotated[str, Query(max_length=256, description="a part of its name")] = "",
    ) -> models.Why:
        arguments = {"last": str(last), **({"request": request} if request else {})}
        found = await view.command(instance, "why", messages.WhyResult, arguments)
        return models.Why.model_validate(found)

    return router
