"""Controllers that hang, end and come back, and who may look."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from lmkv.core import tokens

from tests import http_client
from tests.browser.browser import tab as new_tab
from tests.contract.test_controller import Instance, free_port
from tests.stub_instance import StubInstance
from tests.web import Web

SILENT = "The controller does not answer"


def test_a_controller_that_hangs_is_told_and_forgotten(browser: Any) -> None:
    web = Web()
    web.up()
    try:
        with new_tab(browser) as tab:
            tab.page.goto(web.http)
            tab.see("No drift")
            web.process.send_signal(signal.SIGSTOP)
            tab.see(SILENT)
            for path in ("/", "/instances", "/instances/a", "/lookup", "/jobs", "/pins", "/flow"):
                assert web.ask(path, Accept="text/html").status == 200
            web.process.send_signal(signal.SIGCONT)
            tab.page.get_by_text(SILENT).wait_for(state="detached")
            assert tab.said == []
    finally:
        web.process.send_signal(signal.SIGCONT)
        assert web.end() == (0, "")


def test_a_page_outlives_its_controller(browser: Any) -> None:
    port = free_port(3)
    web = Web(port=port)
    web.up()
    with new_tab(browser) as tab:
        tab.page.goto(web.http + "/instances?sort=fill")
        tab.see("No instance has registered yet.")
        web.end(signal.SIGKILL)
        tab.page.locator("#popup[aria-hidden=false]").wait_for()
        again = Web(port=port)
        try:
            again.up()
            with Instance(StubInstance("new", 4), again) as late:
                late.join()
                tab.see("new")
                assert tab.page.url.endswith("/instances?sort=fill")
        finally:
            assert again.end() == (0, "")


def test_open_pages_do_not_delay_the_end(browser: Any) -> None:
    web = Web()
    web.up()
    children = web.children()
    with new_tab(browser) as tab:
        tab.page.goto(web.http)
        tab.see("No drift")
        began = time.monotonic()
        assert web.end() == (0, "")
        assert time.monotonic() - began < 2.0  # the promise is in seconds
    assert not any(Path(f"/proc/{child}").exists() for child in children)


def test_a_token_opens_the_pages_until_it_is_taken_away(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    token = tokens.add(path, "ops", "read")
    web = Web("--tokens", str(path))
    try:
        from tests.contract.test_controller import until

        until(lambda: web.ask("/readyz").status == 200)
        assert web.ask("/").status == 401
        with new_tab(browser) as tab:
            tab.page.goto(web.http + "/flow?seconds=60")
            tab.page.get_by_label("Token").fill("lmkv_wrong")
            tab.page.keyboard.press("Enter")
            tab.see("This token is not known here.")
            tab.page.get_by_label("Token").fill(token)
            tab.page.keyboard.press("Enter")
            tab.page.wait_for_url("**/flow?seconds=60")
            tab.see("Nothing came from a peer")
            (cookie,) = tab.page.context.cookies()
            assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
            assert token not in cookie["value"]
            path.write_text("")
            os.kill(web.process.pid, signal.SIGHUP)
            tab.page.wait_for_url("**/login?**")
    finally:
        assert web.end()[0] == 0


def test_a_page_of_another_host_gets_no_socket(tmp_path: Path) -> None:
    web = Web()
    web.up()
    try:
        upgrade = {
            "Connection": "Upgrade", "Upgrade": "websocket", "Sec_WebSocket_Version": "13",
            "Sec_WebSocket_Key": "AAAAAAAAAAAAAAAAAAAAAA==",
        }  # fmt: skip
        path = "/_nicegui_ws/socket.io/?EIO=4&transport=websocket"
        answer = http_client.ask(web.http, path, Origin="http://evil.example", **upgrade)
        assert answer.status == 403
    finally:
        assert web.end() == (0, "")
