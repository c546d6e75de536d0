"""Who may ask what: `Gate` knows each caller before anything of a request is read, and a route says
by `needs(scope)` what it takes.

    @router.post("/v1/...", dependencies=[needs("operate")])

Without a tokens file every caller may do all. `scopes(app)` is the table of routes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from fastapi import Depends, FastAPI, Request, Security
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from lmkv.core import tokens
from lmkv.core.tokens import ADMIN, MOST_CHARACTERS, SCOPES, Grant
from lmkv.web import errors
from lmkv.web.errors import Problem
from lmkv.web.limits import Buckets
from lmkv.web.sessions import Sessions

OPEN = frozenset(  # to anyone
    {"/healthz", "/readyz", "/version", "/metrics", "/login", "/logout"}
)
GRANT = "lmkv.grant"  # in the ASGI scope
EVERYONE = Grant("", ADMIN)
bearer = HTTPBearer(auto_error=False, description="lmkv keys token")


class Tokens:
    """What the file says now. Raises BadKeys."""

    def __init__(self, path: str = "") -> None:
        self._path = path
        self._known: tokens.Tokens = {}
        self._sessions = Sessions()
        self.reload()

    @property
    def wanted(self) -> bool:
        """Whether one must have a token."""
        return bool(self._path)

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

    # ------------------------------------------------------------ browsers

    def open_session(self, token: str) -> str | None:
        """What the cookie is to say; None: that is no token."""
        if self.grant(f"Bearer {token}") is None:
            return None
        return self._sessions.open(tokens.digest(token))

    def close_session(self, cookies: str) -> None:
        self._sessions.close(cookies)

    def of_session(self, cookies: str) -> Grant | None:
        """By a `Cookie` header."""
        if not self._path:
            return EVERYONE
        return self._known.get(self._sessions.digest(cookies))

    def of(self, scope: Scope) -> Grant | None:
        """Of a request: by its header, or by its session."""
        headers = dict(scope["headers"])
        given = headers.get(b"authorization")
        if given is not None:
            return self.grant(given.decode("latin-1"))
        return self.of_session(headers.get(b"cookie", b"").decode("latin-1"))


class Gate:
    """ASGI middleware: who it is, and whether not too often; else 401 and 429."""

    def __init__(self, app: ASGIApp, known: Tokens, buckets: Buckets) -> None:
        self._app, self._known, self._buckets = app, known, buckets

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._socket(scope, receive, send)
            return
        grant = self._known.of(scope)
        who = grant.name if grant is not None else ""
        wait = self._buckets.take(who or (scope.get("client") or ("",))[0])
        if wait:
            text = f"more than {self._buckets.rate} requests a second of one client"
            headers = {"Retry-After": str(wait)}
            await errors.body(429, "too_many", text, headers=headers)(scope, receive, send)
        elif grant is None and scope["path"] not in OPEN and _by_browser(scope):
            asked = f"{scope['path']}?{scope['query_string'].decode('latin-1')}".rstrip("?")
            to = RedirectResponse(f"/login?to={quote(asked, safe='/')}", 303)
            await to(scope, receive, send)
        elif grant is None and scope["path"] not in OPEN:
            text = "authorization: allowed is Bearer and a token that is known here"
            headers = {"WWW-Authenticate": "Bearer"}
            answer = errors.body(401, "unauthorized", text, "authorization", headers)
            await answer(scope, receive, send)
        else:
            scope[GRANT] = grant
            await self._app(scope, receive, send)

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A page of another host may not speak for who looks at it."""
        headers = dict(scope["headers"])
        origin = urlsplit(headers.get(b"origin", b"").decode("latin-1")).netloc
        own = origin in ("", headers.get(b"host", b"").decode("latin-1"))
        if self._known.of(scope) is None or not own:
            await send({"type": "websocket.close", "code": 1008})  # before it is accepted: 403
        else:
            await self._app(scope, receive, send)


def _by_browser(scope: Scope) -> bool:
    """Whether somebody looks who can log in."""
    wants = dict(scope["headers"]).get(b"accept", b"")
    return scope["method"] == "GET" and b"text/html" in wants


def needs(scope: str) -> Any:
    """A dependency: 403 unless the caller has this scope, or one that includes it."""

    def check(request: Request, _: object = Security(bearer)) -> None:
        require(request, scope)

    check.scope = scope  # type: ignore[attr-defined]
    return Depends(check)


def require(request: Request, scope: str) -> None:
    """The same within a route, where it depends on what is asked. Raises Problem."""
    grant = request.scope.get(GRANT)
    if grant is None or SCOPES.index(grant.scope) < SCOPES.index(scope):
        has = grant.scope if grant else "none"
        text = f"authorization: this takes a token of scope {scope}, this one's is {has}"
        raise Problem(403, "forbidden", text, "authorization")


def asker(request: Request) -> str:
    """Who asks, for people: the token's name, or where there are none the host."""
    grant = request.scope.get(GRANT)
    if grant is not None and grant.name:
        return str(grant.name)
    return request.client.host if request.client else ""


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
