"""Controllers that hang, end and come back, and who may look."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from lmkv.controller.web import END_DEADLINE
from lmkv.core import tokens

from tests import http_client
from tests.browser.browser import tab as new_tab
from tests.contract.test_controller import Instance, until
from tests.contract.test_controllers import Instance as Agent
from tests.ports import free_port
from tests.scripted_jobs import Worker
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


def test_jobs_outlive_the_controller_that_took_them(browser: Any) -> None:
    port = free_port(3)
    web = Web(port=port)
    web.up()
    again = None
    try:
        with new_tab(browser) as tab, Worker("a", [web]) as a:
            a.hold()
            until(lambda: web.ask("/v1/instances/a").status == 200)
            job = web.ask("/v1/jobs", {"operation": "compress", "whole": True, "instance": "a"})
            assert job.status == 202, job
            tab.page.goto(f"{web.http}/jobs/{job.json['id']}")
            tab.see("1 of 8 chunks")
            web.end(signal.SIGKILL)
            tab.page.locator("#popup[aria-hidden=false]").wait_for()
            again = Web(port=port)
            again.up()
            a.release()
            tab.see("8 of 8 chunks")
            tab.page.locator(".banner").wait_for(state="detached")
    finally:
        assert again is None or again.end() == (0, "")


def jobs(web: Web) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = web.ask("/v1/jobs").json["jobs"]
    return found


def test_an_act_that_was_not_answered_is_done_once(browser: Any) -> None:
    """The same click again is the same job, though the first one has come through after all."""
    web = Web("--dead-after-beats", "1000", "--suspect-after-beats", "999")
    web.up()
    us = Agent("us", [web.state])
    try:
        us.hold(list(range(8)))
        until(lambda: web.ask("/v1/instances/us").json.get("keys") == 2)
        with new_tab(browser) as tab:
            tab.page.goto(web.http + "/instances/us")
            tab.page.wait_for_function("window.did_handshake === true")
            tab.page.get_by_role("button", name="Clear", exact=True).click()
            tab.page.locator(".act").get_by_label("Its name, to go on").fill("us")
            start = tab.page.locator(".act").get_by_role("button", name="Clear")
            web.process.send_signal(signal.SIGSTOP)
            start.click()
            tab.page.locator(".act .why").get_by_text(SILENT).wait_for()
            web.process.send_signal(signal.SIGCONT)
            until(lambda: web.ask("/readyz").status == 200)
            # It has come through, or its instance had gone and come back meanwhile.
            until(lambda: {each["state"] for each in jobs(web)} <= {"done"})
            start.click()
            tab.page.locator(".act").get_by_role("link").click()
            tab.see("2 of 2 chunks")
            assert [(each["state"], each["attempt"]) for each in jobs(web)] == [("done", 1)]
    finally:
        us.agent.close()
        web.process.send_signal(signal.SIGCONT)
        assert web.end() == (0, "")


def test_open_pages_do_not_delay_the_end(browser: Any) -> None:
    """All ends within 2 s of SIGTERM: the web process is killed where it does not end itself."""
    assert END_DEADLINE < 2.0
    web = Web()
    web.up()
    children = web.children()
    with new_tab(browser) as tab:
        tab.page.goto(web.http)
        tab.see("No drift")
        assert web.end() == (0, "")
    assert not any(Path(f"/proc/{child}").exists() for child in children)


def test_a_token_opens_the_pages_until_it_is_taken_away(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    token = tokens.add(path, "ops", "read")
    web = Web("--tokens", str(path))
    try:
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
