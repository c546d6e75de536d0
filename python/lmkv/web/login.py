"""`/login`: a token for a cookie, one plain page; without a tokens file there is nothing to do."""

from __future__ import annotations

from html import escape
from urllib.parse import parse_qs

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from lmkv.web.auth import Tokens
from lmkv.web.errors import Problem
from lmkv.web.sessions import COOKIE, LIFE

PATH = "/login"
MOST_BYTES = 8192  # of the form
HEAD = """<!doctype html><html lang="en"><meta charset="utf-8"><title>lmkv: log in</title>
<link rel="icon" href="data:,">
<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:26em;margin:15vh auto;padding:0 1em}
label,input,button{display:block;width:100%;box-sizing:border-box;font:inherit}
input,button{margin:.4em 0 1em;padding:.5em}p{min-height:1.5em}b{color:#d33}</style>"""


def routes(tokens: Tokens) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get(PATH)
    async def form(to: str = "/") -> Response:
        return _form(to) if tokens.wanted else RedirectResponse(_own(to), 303)

    @router.post(PATH)
    async def login(request: Request) -> Response:
        body = await request.body()
        if len(body) > MOST_BYTES:
            text = f"a form of {len(body)} bytes, at most {MOST_BYTES} are allowed"
            raise Problem(413, "too_large", text)
        fields = parse_qs(body.decode("latin-1"))
        to, token = (fields.get(name, [""])[0] for name in ("to", "token"))
        session = tokens.open_session(token.strip())
        if session is None:
            return _form(to, "This token is not known here.", 403)
        answer = RedirectResponse(_own(to), 303)
        secure = request.url.scheme == "https"
        answer.set_cookie(
            COOKIE, session, max_age=int(LIFE), httponly=True, samesite="strict", secure=secure
        )
        return answer

    @router.post("/logout")
    async def logout(request: Request) -> Response:
        tokens.close_session(request.headers.get("cookie", ""))
        answer = RedirectResponse(PATH, 303)
        answer.delete_cookie(COOKIE)
        return answer

    return router


def _own(path: str) -> str:
    """A path of this host, and nothing that leads to another one."""
    good = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable()
    return path if good else "/"


def _form(to: str, trouble: str = "", status: int = 200) -> HTMLResponse:
    text = f"""{HEAD}<h1>lmkv</h1><form method="post" action="{PATH}">
<input type="hidden" name="to" value="{escape(_own(to))}">
<label for="token">Token, as <code>lmkv keys token</code> printed it</label>
<input id="token" name="token" type="password" autocomplete="current-password" autofocus required>
<button>Log in</button></form><p role="alert"><b>{escape(trouble)}</b></p>"""
    return HTMLResponse(text, status)
