"""Routes and scopes, and how often a client may ask."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from lmkv.core import tokens
from lmkv.core.clock import ManualClock
from lmkv.core.keyfiles import BadKeys
from lmkv.web.app import build
from lmkv.web.auth import EVERYONE, OPEN, Tokens, needs, scopes
from lmkv.web.errors import Problem
from lmkv.web.events import Hub
from lmkv.web.limits import MOST_CLIENTS, Buckets


def app(compat: str = "") -> FastAPI:
    nothing: Any = None
    return build(nothing, nothing, 0, Tokens(), Buckets(1000), compat)


@pytest.mark.parametrize("compat", ["", "lmcache"])
def test_every_route_has_a_scope(compat: str) -> None:
    served = app(compat)
    table = scopes(served)
    routes = {(method, route.path) for route in served.routes for method in route.methods}  # type: ignore[attr-defined]
    assert routes == set(table)
    assert {path for (_, path), scope in table.items() if not scope} == OPEN
    assert table["POST", "/v1/lookup"] == table["POST", "/v1/locate"] == "read"
    assert all(scope in ("", *tokens.SCOPES) for scope in table.values())


def test_a_process_that_ends_is_not_ready() -> None:
    """Whoever balances load by it sends nothing more to a connection that is still open."""
    nothing: Any = None
    hub = Hub(nothing)
    served = build(nothing, hub, 0, Tokens(), Buckets(1000), "")
    readyz: Any = next(route for route in served.routes if getattr(route, "path", "") == "/readyz")
    hub.close()
    with pytest.raises(Problem) as told:
        asyncio.run(readyz.endpoint())
    assert (told.value.status, told.value.code) == (503, "draining")


def test_a_route_without_a_scope_is_noticed() -> None:
    served = app()
    served.add_api_route("/v1/new", lambda: None, methods=["POST"])
    assert ("POST", "/v1/new") not in scopes(served)
    served.add_api_route("/v1/act", lambda: None, methods=["POST"], dependencies=[needs("operate")])
    assert scopes(served)["POST", "/v1/act"] == "operate"


def test_what_a_header_grants(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    token = tokens.add(path, "ops", "operate")
    known = Tokens(str(path))
    assert known.grant(f"Bearer {token}") == ("ops", "operate")
    assert known.grant(f"bearer  {token} ") == ("ops", "operate")
    hashed = path.read_text().split()[2]
    for header in ("", token, f"Basic {token}", f"Bearer {token}x", "Bearer ", f"Bearer {hashed}",
                   "Bearer " + "x" * 10_000, "Bearer \xff"):  # fmt: skip
        assert known.grant(header) is None, header
    path.write_text("")
    assert known.grant(f"Bearer {token}") is not None  # not read again yet
    known.reload()
    assert known.grant(f"Bearer {token}") is None
    assert Tokens().grant("") == EVERYONE


def test_a_file_that_goes_opens_nothing(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    token = tokens.add(path, "ops", "admin")
    known = Tokens(str(path))
    path.unlink()
    with pytest.raises(BadKeys):
        known.reload()
    assert known.grant("") is None and known.grant(f"Bearer {token}") is not None


def test_buckets() -> None:
    clock = ManualClock()
    buckets = Buckets(4, clock)
    assert [buckets.take("a") for _ in range(5)] == [0, 0, 0, 0, 1]
    assert buckets.take("b") == 0
    clock.advance(0.25)
    assert [buckets.take("a"), buckets.take("a")] == [0, 1]
    clock.advance(1e9)
    assert [buckets.take("a") for _ in range(5)] == [0, 0, 0, 0, 1]
    for number in range(2 * MOST_CLIENTS):
        buckets.take(str(number))
    assert len(buckets._left) == MOST_CLIENTS
