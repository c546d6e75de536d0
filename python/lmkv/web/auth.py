"""Who may ask what: `Gate` knows each caller before anything of a request is read, and a route says
by `needs(scope)` what it takes.

    @router.post("/v1/...", dependencies=[needs("operate")])

Without a tokens file every caller may do all. `scopes(app)` is the table of routes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, Request, Security
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from starlette.types import ASGIApp, Receive, Scope, Send

from lmkv.core import tokens
from lmkv.core.tokens import ADMIN, MOST_CHARACTERS, SCOPES, Grant
from lmkv.web import errors
from lmkv.web.errors import Problem
from lmkv.web.limits import Buckets

OPEN = frozenset({"/healthz", "/readyz", "/version", "/metrics"})  # to anyone
GRANT = "lmkv.grant"  # in the ASGI scope
EVERYONE = Grant("", ADMIN)
bearer = HTTPBearer(auto_error=False, description="lmkv keys token")


class Tokens:
    """What the file says now. Raises BadKeys."""

    def __init__(self, path: str = "") -> None:
        self._path = path
        self._known: tokens.Tokens = {}
        self.reload()

    def reload(self) -> None:
        if self._path:
            self._known = tokens.read(Path(self._path))

    def grant(self, authorization: str) -> Grant | None:
        """Of a header's value; None: it may nothing."""
        if not self._path:
            return EVERYONE
        kind, _, token = authorization.partition(" ")
        if kind.lower() != "bearer" or len(token) > MOST_CHARACTERS:
            return None
        return self._known.get(tokens.digest(token.strip()))


class Gate:
    """ASGI middleware: who it is, and whether not too often; else 401 and 429."""

    def __init__(self, app: ASGIApp, known: Tokens, buckets: Buckets) -> None:
        self._app, self._known, self._buckets = app, known, buckets

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
        grant = self._known.grant(given)
        who = grant.name if grant is not None else ""
        wait = self._buckets.take(who or (scope.get("client") or ("",))[0])
        if wait:
            text = f"more than {self._buckets.rate} requests a second of one client"
            headers = {"Retry-After": str(wait)}
            await errors.body(429, "too_many", text, headers=headers)(scope, receive, send)
        elif grant is None and scope["path"] not in OPEN:
            text = "authorization: allowed is Bearer and a token that is known here"
            headers = {"WWW-Authenticate": "Bearer"}
            answer = errors.body(401, "unauthorized", text, "authorization", headers)
            await answer(scope, receive, send)
        else:
            scope[GRANT] = grant
            await self._app(scope, receive, send)


def needs(scope: str) -> Any:
    """A dependency: 403 unless the caller has this scope, or one that includes it."""
    level = SCOPES.index(scope)

    def check(request: Request, _: object = Security(bearer)) -> None:
        grant = request.scope.get(GRANT)
        if grant is None or SCOPES.index(grant.scope) < level:
            has = grant.scope if grant else "none"
            text = f"authorization: this takes a token of scope {scope}, this one's is {has}"
            raise Problem(403, "forbidden", text, "authorization")

    check.scope = scope  # type: ignore[attr-defined]
    return Depends(check)


def scopes(app: FastAPI) -> dict[tuple[str, str], str]:
    """Scope by (method, path) of every route, "" for those that are open; the highest of several.
    A route that names none, and is not open, is not there."""
    found: dict[tuple[str, str], str] = {}
    for route in app.routes:
        assert isinstance(route, APIRoute), route
        named = [call.scope for call in _calls(route.dependant) if hasattr(call, "scope")]
        for method in route.methods:
            if named:
                found[method, route.path] = max(named, key=SCOPES.index)
            elif route.path in OPEN:
                found[method, route.path] = ""
    return found


def _calls(dependant: Dependant) -> Iterator[Callable[..., Any]]:
    for each in dependant.dependencies:
        if each.call is not None:
            yield each.call
        yield from _calls(each)
