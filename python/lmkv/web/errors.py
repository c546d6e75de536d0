"""One form for everything that goes wrong: `{"error": {"code", "message", "field"}}`.

`Problem` is raised where it is found; 4xx is the caller's mistake, 503 the controller's silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from lmkv.core.client import Unreachable
from lmkv.core.messages import Refused, Unsupported

# What a controller refuses, by code; all else is a bad request.
STATUSES = {
    "unknown_instance": 404,
    "unknown_model": 404,
    "unknown_request": 404,
    "unknown_prefix": 404,
    "unknown_job": 404,
    "unavailable": 409,
    "conflict": 409,
    "ended": 409,
    "incompatible": 409,
    "too_large": 413,
    "busy": 429,
    "unsupported": 501,
    "failed": 502,
    "warming": 503,
    "timeout": 504,
}
RETRY = {"Retry-After": "1"}
VALUE = 64  # characters of a value that is repeated


class Problem(Exception):
    def __init__(self, status: int, code: str, message: str, field: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.field = status, code, message, field


def refused(answer: Refused) -> Problem:
    return Problem(STATUSES.get(answer.code, 400), answer.code, answer.message, answer.field)


def unserved(answer: Unsupported) -> Problem:
    return Problem(501, "unsupported", f"{answer.name!r} is not known here: an older release")


def body(
    status: int, code: str, message: str, field: str = "", headers: Mapping[str, str] | None = None
) -> JSONResponse:
    content = {"error": {"code": code, "message": message, "field": field}}
    return JSONResponse(content, status, headers=dict(headers or {}))


def sentence(field: str, error: Mapping[str, Any]) -> str:
    """What pydantic says of a field, with its value where that is plain and short."""
    value = error["input"]
    plain = isinstance(value, (str, int, float)) and len(repr(value)) <= VALUE
    return f"{field} = {value!r}: {error['msg']}" if plain else f"{field}: {error['msg']}"


def install(app: FastAPI) -> None:
    """Let every error of `app` have the one form."""

    @app.exception_handler(Problem)
    async def problem(request: Request, error: Problem) -> JSONResponse:
        headers = RETRY if error.status in (429, 503) else None
        return body(error.status, error.code, error.message, error.field, headers)

    @app.exception_handler(Unreachable)
    async def unreachable(request: Request, error: Unreachable) -> JSONResponse:
        return body(503, "unreachable", str(error), headers=RETRY)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = [str(part) for part in first["loc"][1:]]  # after body, query or path
        if first["type"] == "json_invalid":
            return body(400, "json", f"the body is no JSON: {first['ctx']['error']}", "")
        field = ".".join(place)[:256]
        if not place:
            return body(400, "json", "body: allowed is an object, as content-type application/json")
        return body(400, "field", sentence(field, first), field)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        phrase = HTTPStatus(error.status_code).phrase.lower()
        path = quote(request.scope["path"])[:200]
        text = f"{request.method} {path}: {str(error.detail).lower()}"
        return body(error.status_code, phrase.replace(" ", "_"), text, headers=error.headers)

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> JSONResponse:
        # uvicorn logs it
        return body(500, "internal", "this is a defect of lmkv; its log says more")
