"""The CLI's questions over REST: the same answers as over the controller's own socket.

`Http(address).ask(message, kind)`: NoAnswer when nobody answers in time, Denied without access,
Wrong with one sentence when the answer is another error or none of lmkv's.
"""

from __future__ import annotations

import http.client
import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from lmkv.cli import access
from lmkv.core.messages import (
    AskJob,
    Controllers,
    Instances,
    Jobs,
    Lookup,
    Message,
    Pins,
    Prefixes,
    Status,
    Submit,
)

DEADLINE = 5.0  # seconds
LOOKUP_DEADLINE = 15.0  # an instance may have its part in it
JOB_DEADLINE = 25.0  # so may several
PAGE = 250
READ_ONLY = ("config", "why")  # operations
GOOD = (200, 202)
MOST_BYTES = 64 << 20  # of an answer

M = TypeVar("M")


class NoAnswer(Exception):
    """Nobody answers."""


class Wrong(Exception):
    """What is answered is an error."""


class Denied(Wrong):
    """Whoever asks has no access, or not enough."""


class Http:
    """`address` is http://HOST:PORT or https://HOST:PORT; ValueError if not, or for access that is
    none."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        parts.port  # noqa: B018 (ValueError unless it is a port)
        if not parts.hostname or parts.query or parts.fragment or parts.path not in ("", "/"):
            raise ValueError(f"{address!r} is not http://HOST:PORT or https://HOST:PORT")
        self._address = address.rstrip("/")
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
        if parts.scheme == "https":
            handlers.append(urllib.request.HTTPSHandler(context=access.tls()))
        self._opener = urllib.request.build_opener(*handlers)
        self._headers = access.headers() | {"Content-Type": "application/json"}

    def ask(self, message: Message, kind: type[M], *arrays: bytes) -> M:
        body = self._body(message, *arrays)
        try:
            return msgspec.convert(_epochs({**body, "request": 0}), kind)
        except (msgspec.ValidationError, ValueError) as error:
            raise Wrong(f"{self._address} is no lmkv controller's web process: {error}") from None

    def command(
        self,
        instance: str,
        operation: str,
        arguments: dict[str, str],
        kind: type[M],
        deadline: float,
    ) -> M:
        """An operation on an instance: what only reads is asked for, the others are posted."""
        path = f"/v1/instances/{quote(instance, safe='')}/{operation}"
        if operation in READ_ONLY:
            body = self._get(f"{path}?{urlencode(arguments)}", None, deadline + DEADLINE)
        else:
            values = {name: int(value) for name, value in arguments.items()}
            body = self._get(f"{path}?deadline={deadline:g}", values, deadline + DEADLINE)
        try:
            return msgspec.convert(body, kind)
        except msgspec.ValidationError as error:
            raise Wrong(f"{self._address} is no lmkv controller's web process: {error}") from None

    def _submitted(self, message: Submit, keys: bytes = b"") -> dict[str, Any]:
        names = ("operation", "instance", "source", "whole", "tokens", "text", "messages", "salt",
                 "lora", "like", "model", "owner")  # fmt: skip
        given = {name: getattr(message, name) for name in names if getattr(message, name)}
        if keys:
            given["keys"] = [keys[i : i + 16].hex() for i in range(0, len(keys), 16)]
        if message.ttl:
            given["ttl_s"] = message.ttl
        if message.id:
            given["idempotency_key"] = message.id
        return {"job": self._get("/v1/jobs", given, JOB_DEADLINE)}

    def _body(self, message: Message, *arrays: bytes) -> dict[str, Any]:
        if isinstance(message, Submit):
            return self._submitted(message, *arrays)
        if isinstance(message, AskJob):
            path = f"/v1/jobs/{quote(message.id, safe='')}"
            if message.action:
                found = self._get(f"{path}/{message.action}", {}, JOB_DEADLINE)
            else:
                found = self._get(path)
            return {"job": found}
        if isinstance(message, Jobs):
            return self._get(f"/v1/jobs?{_query(message, 'after', 'limit', 'state', 'instance')}")
        if isinstance(message, Pins):
            found = self._get(f"/v1/pins?{_query(message, 'instance', 'after', 'limit')}")
            for pin in found.get("pins", []):
                pin["left"] = pin.pop("left_s", None) or 0.0
            return found
        if isinstance(message, Status):
            return {**self._get("/v1/cluster"), "instances": self._instances()}
        if isinstance(message, Instances) and message.instance:
            found = self._get(f"/v1/instances/{quote(message.instance, safe='')}")
            return {"instances": [found]}
        if isinstance(message, Instances):
            return self._page(message.after, message.limit)
        if isinstance(message, Controllers):
            return self._get("/v1/controllers")
        if isinstance(message, Prefixes):
            return self._get(f"/v1/prefixes?top={message.top}")
        assert isinstance(message, Lookup)
        names = ("tokens", "text", "messages", "salt", "lora", "like", "model")
        given = {name: getattr(message, name) for name in names if getattr(message, name)}
        return self._get("/v1/lookup", given, LOOKUP_DEADLINE)

    def _page(self, after: str, limit: int) -> dict[str, Any]:
        return self._get(f"/v1/instances?limit={limit}&after={quote(after, safe='')}")

    def _instances(self) -> list[Any]:
        found: list[Any] = []
        after = ""
        while True:
            page = self._page(after, PAGE)
            found += page.get("instances", [])
            after = page.get("next", "")
            if not after:
                return found

    def _get(
        self, path: str, body: dict[str, Any] | None = None, timeout: float = DEADLINE
    ) -> dict[str, Any]:
        """POST when there is a body."""
        data = None if body is None else json.dumps(body).encode()
        with self._opened(path, data, timeout) as answer:
            try:
                text = answer.read(MOST_BYTES)
            except (OSError, http.client.HTTPException):
                raise NoAnswer(f"{self._address} ended in the middle of its answer") from None
        return self._checked(text, answer.status)

    def lines(self, path: str, silence: float, **headers: str) -> Iterator[str]:
        """The lines of an answer that goes on until its other end closes it, or is silent for so
        many seconds."""
        with self._opened(path, None, silence, **headers) as answer:
            if answer.status != 200:
                self._checked(answer.read(MOST_BYTES), answer.status)
            try:
                while line := answer.readline(MOST_BYTES):
                    yield line.decode(errors="replace").rstrip("\r\n")
            except (OSError, http.client.HTTPException):
                raise NoAnswer(f"{self._address} is silent") from None

    def _opened(
        self, path: str, data: bytes | None, timeout: float, **headers: str
    ) -> http.client.HTTPResponse:
        """An answer of any status."""
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self._address + path, data, {**self._headers, **more})
        try:
            opened: http.client.HTTPResponse = self._opener.open(request, timeout=timeout)
        except urllib.error.HTTPError as error:
            return error  # type: ignore[return-value]  # it reads like an answer
        except OSError as error:  # also URLError, a timeout, and an end without an answer
            reason = getattr(error, "reason", error)
            if isinstance(reason, ssl.SSLError) and not isinstance(reason, ssl.SSLEOFError):
                raise Wrong(f"{self._address}: {_tls_trouble(reason)}") from None
            words = getattr(reason, "strerror", None) or reason
            raise NoAnswer(f"{self._address} does not answer: {words}") from None
        except http.client.HTTPException:
            raise Wrong(f"{self._address} does not speak HTTP") from None
        return opened

    def _checked(self, text: bytes, status: int) -> dict[str, Any]:
        try:
            found = json.loads(text)
            said = found["error"]["message"] if status not in GOOD else ""
        except (ValueError, KeyError, TypeError):
            found = None
        if not isinstance(found, dict):
            raise Wrong(f"{self._address} is no lmkv controller's web process (status {status})")
        if status == 503:
            raise NoAnswer(str(said))
        if status == 401:
            which = "this token is not known there" if access.token() else "a token is wanted"
            raise Denied(f"{self._address}: {which} ({access.TOKEN})")
        if status == 403:
            raise Denied(str(said))
        if status not in GOOD:
            raise Wrong(str(said))
        return found


def _tls_trouble(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message} (--cacert or LMKV_CACERT)"
    reason = (error.reason or str(error)).lower().replace("_", " ")
    return f"no TLS is spoken there ({reason}): is it http://?"


def _query(message: Message, *names: str) -> str:
    return urlencode({name: getattr(message, name) for name in names if getattr(message, name)})


def _epochs(body: dict[str, Any]) -> dict[str, Any]:
    """REST has them as hex digits."""
    for each in (body, *body.get("instances", []), *body.get("controllers", [])):
        if "epoch" in each:
            each["epoch"] = int(each["epoch"], 16)
    return body
