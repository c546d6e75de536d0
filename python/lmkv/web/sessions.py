"""Sessions of browsers: a token is shown once, and then a cookie stands for it.

Only the token's hash is kept, and what it may do is looked up each time, so that a token that is
taken away ends its sessions. They end with this process too.
"""

from __future__ import annotations

import secrets
from http.cookies import CookieError, SimpleCookie

from lmkv.core.clock import Clock, monotonic

COOKIE = "lmkv_session"
LIFE = 12 * 3600.0  # seconds
KEPT = 1024
LONGEST = 4096  # characters of a header


class Sessions:
    def __init__(self, clock: Clock = monotonic) -> None:
        self._clock = clock
        self._open: dict[str, tuple[str, float]] = {}  # token's hash, end; the oldest first

    def open(self, digest: str) -> str:
        """What the cookie is to say."""
        while len(self._open) >= KEPT:
            del self._open[next(iter(self._open))]
        name = secrets.token_urlsafe(32)
        self._open[name] = digest, self._clock() + LIFE
        return name

    def digest(self, cookies: str) -> str:
        """The token's hash, by a `Cookie` header; "" for none."""
        name = self._name(cookies)
        digest, end = self._open.get(name, ("", 0.0))
        if digest and self._clock() >= end:
            del self._open[name]
            return ""
        return digest

    def close(self, cookies: str) -> None:
        self._open.pop(self._name(cookies), None)

    @staticmethod
    def _name(cookies: str) -> str:
        try:
            found = SimpleCookie(cookies[:LONGEST]).get(COOKIE)
        except CookieError:
            return ""
        return found.value if found is not None else ""
