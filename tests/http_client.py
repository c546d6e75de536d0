"""HTTP for tests, with Python's own library: a status, headers and JSON or text."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any
from urllib.parse import urlencode, urlsplit

from typing_extensions import Self

DEADLINE = 20.0


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def error(self) -> dict[str, str]:
        """What the one form of errors holds."""
        assert self.status >= 400, self
        assert set(self.json) == {"error"}, self
        detail = self.json["error"]
        assert set(detail) == {"code", "message", "field"}, self
        assert all(isinstance(value, str) for value in detail.values()), self
        assert "\n" not in detail["message"], self
        return dict(detail)


def ask(url: str, path: str, body: Any = None, method: str = "", **headers: str) -> Answer:
    """POST when there is a body: bytes as they are, anything else as JSON."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=DEADLINE)
    try:
        sent = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        more = {"Content-Type": "application/json"} if body is not None else {}
        more |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method or ("GET" if body is None else "POST"), path, sent, more)
        answer = connection.getresponse()
        return Answer(answer.status, dict(answer.getheaders()), answer.read().decode())
    finally:
        connection.close()


@dataclass
class Sent:
    """A server-sent event."""

    id: str
    kind: str
    data: dict[str, Any]


class Stream:
    """`/v1/events`, or those of `path`, until the end of its `with`."""

    def __init__(self, url: str, query: str = "", last: str = "", path: str = "/v1/events") -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=DEADLINE)
        headers = {"Last-Event-ID": last} if last else {}
        self._connection.request("GET", path + query, headers=headers)
        self.answer = self._connection.getresponse()
        assert self.answer.status == 200, self.answer.read()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def __iter__(self) -> Iterator[Sent]:
        """Each wait ends at the deadline, comments or not."""
        fields: dict[str, str] = {}
        end = time.monotonic() + DEADLINE
        while line := self.answer.readline():
            assert time.monotonic() < end, "waited in vain"
            text = line.decode().rstrip("\n")
            if text:
                name, _, value = text.partition(": ")
                fields[name] = value
            elif "data" in fields:
                yield Sent(fields.get("id", ""), fields["event"], json.loads(fields["data"]))
                fields, end = {}, time.monotonic() + DEADLINE
            else:
                fields = {}

    def take(self, count: int) -> list[Sent]:
        return list(islice(self, count))

    def until(self, kind: str) -> Sent:
        return next(event for event in self if event.kind == kind)


def head(url: str, path: str, query: dict[str, str], last: str) -> int:
    """The status of an answer that has no end."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=DEADLINE)
    try:
        headers = {"Last-Event-ID": last} if last else {}
        connection.request("GET", f"{path}?{urlencode(query)}", headers=headers)
        return connection.getresponse().status
    finally:
        connection.close()
