"""Sessions of browsers: as long as their token, bounded, and of this host."""

from __future__ import annotations

from pathlib import Path

import pytest
from lmkv.core import tokens
from lmkv.core.clock import ManualClock
from lmkv.web.auth import EVERYONE, Tokens
from lmkv.web.login import _own
from lmkv.web.sessions import COOKIE, KEPT, LIFE, Sessions


def cookie(session: str) -> str:
    return f"other=1; {COOKIE}={session}"


def test_a_session_ends() -> None:
    clock = ManualClock()
    sessions = Sessions(clock)
    name = sessions.open("hash")
    clock.advance(LIFE - 1)
    assert sessions.digest(cookie(name)) == "hash"
    clock.advance(1)
    assert sessions.digest(cookie(name)) == ""
    again = sessions.open("hash")
    sessions.close(cookie(again))
    assert sessions.digest(cookie(again)) == ""
    for header in ("", "\0", cookie(""), cookie("x" * 10_000), 'a="', "=;=;" * 5000):
        assert sessions.digest(header) == ""
        sessions.close(header)


def test_the_oldest_makes_room() -> None:
    sessions = Sessions(ManualClock())
    names = [sessions.open("hash") for _ in range(KEPT + 1)]
    assert sessions.digest(cookie(names[0])) == ""
    assert sessions.digest(cookie(names[1])) == sessions.digest(cookie(names[-1])) == "hash"


def test_a_token_that_is_taken_away_ends_its_sessions(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    token = tokens.add(path, "ops", "read")
    known = Tokens(str(path))
    assert known.open_session(token + "x") is None
    session = known.open_session(token)
    assert session is not None and token not in session
    assert known.of_session(cookie(session)) == ("ops", "read")
    assert known.of_session("") is None
    path.write_text("")
    known.reload()
    assert known.of_session(cookie(session)) is None
    assert Tokens().of_session("") == EVERYONE


@pytest.mark.parametrize(
    "path", ["", "//else", "/\\else", "https://else", "javascript:1", "/a\r\nx: y", "else"]
)
def test_after_login_nobody_is_sent_elsewhere(path: str) -> None:
    assert _own(path) == "/"
    assert _own("/flow?seconds=60") == "/flow?seconds=60"
