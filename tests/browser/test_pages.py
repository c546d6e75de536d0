"""Each page in a real browser, against a live controller and instances that are a table and a
socket. What must be seen is waited for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from lmkv.core.messages import Heartbeat, HeartbeatOk

from tests.browser.browser import Tab
from tests.browser.browser import tab as new_tab
from tests.contract.test_controller import Instance
from tests.stub_instance import HOST_B, NAMESPACE, StubInstance
from tests.web import TOKENS, Web, leave, prompt_keys, store

PAGES = (
    "/", "/instances", "/instances/a", "/lookup", "/jobs", "/jobs/j1", "/pins", "/flow",
)  # fmt: skip
EVIL = "<b id=evil>"
POOL = {"free": 250, "readable": 700, "limbo": 50}


def beat(instance: Instance, **told: Any) -> None:
    stub = instance.stub
    instance.tell((Heartbeat(stub.epoch, stub.number(), *stub.table.sums(), **told), ()))
    instance.take(HeartbeatOk)


@pytest.fixture(scope="module")
def pair(web: Web) -> Iterator[tuple[Instance, Instance]]:
    """`a` has two chunks of TOKENS and `b` the first of them, which came from `a`."""
    a, b = StubInstance("a", 1), StubInstance(EVIL, 2, host=HOST_B)
    a.registration.version = b.registration.version = "0.1.0"
    with Instance(a, web) as first, Instance(b, web) as second:
        for each in (first, second):
            each.join()
        made = prompt_keys(TOKENS)
        store(first, made)
        store(second, made[:16])
        beat(
            first, hit_tokens={"hit_pool": 1500}, miss_tokens={"cold": 500},
            pool_granules=POOL, running=4,
        )  # fmt: skip
        beat(second, peer_bytes={"a": 3 << 20}, pool_granules={"free": 900, "readable": 100})
        yield first, second
        for each in (first, second):
            leave(each)


def open_at(tab: Tab, web: Web, path: str) -> None:
    tab.page.goto(web.http + path)
    tab.page.wait_for_function("window.did_handshake === true")


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("path", PAGES)
def test_no_page_complains_or_asks_another_host(
    web: Web, pair: tuple[Instance, Instance], browser: Any, path: str, colours: str
) -> None:
    with new_tab(browser, colours) as tab:
        open_at(tab, web, path)
        tab.page.wait_for_timeout(1500)  # a refresh or two
        assert tab.page.locator("#evil").count() == 0
        assert tab.page.evaluate("document.body.classList.contains('body--dark')") == (
            colours == "dark"
        )
        ink, ground = (
            tab.page.evaluate(f"getComputedStyle(document.querySelector('header')).{what}")
            for what in ("color", "backgroundColor")
        )
        light = [sum(map(int, re.findall(r"\d+", each)[:3])) for each in (ink, ground)]
        assert (light[0] > light[1] + 300) if colours == "dark" else (light[1] > light[0] + 300)
        assert tab.said == []
        assert tab.asked == {web.http.removeprefix("http://")}


@pytest.mark.parametrize("path", PAGES)
def test_a_narrow_page_scrolls_no_more_than_its_tables(
    web: Web, pair: tuple[Instance, Instance], tab: Tab, path: str
) -> None:
    tab.page.set_viewport_size({"width": 420, "height": 800})
    open_at(tab, web, path)
    tab.page.wait_for_function("!document.querySelector('.w') || document.querySelector('td')")
    assert tab.page.evaluate("document.documentElement.scrollWidth") == 420


def test_the_overview_counts_and_moves(web: Web, pair: tuple[Instance, Instance], tab: Tab) -> None:
    open_at(tab, web, "/")
    tab.see("No drift, no digest mismatch")
    live = tab.page.locator(".figure", has_text="Live")
    live.locator("b", has_text=re.compile("^2$")).wait_for()
    tab.see("registered")
    beat(pair[0], hit_tokens={"hit_pool": 600_000}, pool_granules=POOL, running=4)
    tab.page.wait_for_function(
        "[...document.querySelectorAll('.figure')].some(e => e.innerText.match(/Saved[^]*\\dk/))"
    )
    assert tab.page.locator(".nicegui-echart svg").count() == 2


def test_the_red_bar_names_the_differing_field(
    web: Web, pair: tuple[Instance, Instance], tab: Tab
) -> None:
    stub = StubInstance("z", 9, namespace=NAMESPACE.replace("weights=one", "weights=two"))
    stub.registration.version = "0.0.9"
    open_at(tab, web, "/")
    with Instance(stub, web) as other:
        other.join()
        tab.see("z shares nothing with a: they differ in weights.")
        tab.see("Version skew")
        other.stub.store(5)
        other.stub.seq -= 1  # an announcement was never sent
        other.beat()
        tab.see("Drift: 1 heartbeats")
        open_at(tab, web, "/instances/z")
        assert "It differs from a in weights" in tab.text()
        leave(other)


def test_instances_are_sorted_filtered_and_linked(
    web: Web, pair: tuple[Instance, Instance], tab: Tab
) -> None:
    open_at(tab, web, "/instances")
    tab.page.get_by_role("link", name="Pool filled").click()
    tab.page.wait_for_url("**/instances?sort=fill&desc=1")
    assert tab.page.locator("tbody tr").first.locator("td").all_inner_texts()[:9] == [
        "a", "live", "m", "75 %", "-", "0", "50", "0 B", "3.0 MiB",
    ]  # fmt: skip
    tab.page.get_by_role("link", name="Pool filled").click()
    tab.page.wait_for_url("**/instances?sort=fill")
    assert tab.page.locator("tbody tr td a").first.inner_text() == EVIL
    tab.page.get_by_label("Filter").fill("nobody")
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_url(re.compile("filter=nobody"))
    tab.see("No instance is like that.")
    open_at(tab, web, "/instances?filter=a&page=9999&sort=beauty")
    tab.see("Page 9999 of 1")
    tab.page.get_by_role("link", name="Previous").click()
    tab.see("Page 1 of 1")
    tab.page.get_by_role("link", name="a", exact=True).click()
    tab.page.wait_for_url("**/instances/a")
    tab.see("4 running, 0 waiting")
    assert "70 %" in tab.text()


def test_an_instance_that_nobody_knows(web: Web, pair: tuple[Instance, Instance], tab: Tab) -> None:
    open_at(tab, web, "/instances/nobody")
    tab.see("instance 'nobody' is not known here")


def test_lookup_shows_holders_and_the_command(
    web: Web, pair: tuple[Instance, Instance], tab: Tab
) -> None:
    open_at(tab, web, "/lookup")
    field = tab.page.get_by_label("Prompt")
    field.fill(str(TOKENS))
    tab.page.keyboard.press("Control+Enter")
    tab.see("40 tokens: 2 chunks of 16, and 8 beside them")
    shades = tab.page.locator(".strip i")
    assert [shades.nth(i).get_attribute("class") for i in range(2)] == ["h2", "h1"]
    line = tab.page.locator("pre.line").inner_text()
    assert line == f"lmkv lookup --tokens {','.join(map(str, TOKENS))}"
    tab.page.get_by_role("button", name="Copy line").click()
    tab.see("Copied")
    for wrong, said in (("1, x", "'x' is not a token id"), ("", "tokens: there are none")):
        field.fill(wrong)
        tab.page.get_by_role("button", name="Look up").click()
        tab.see(said)
    tab.page.get_by_text("Text", exact=True).click()
    field.fill("hello")
    tab.page.get_by_role("button", name="Look up").click()
    tab.page.locator(".banner").wait_for()  # no stub tokenises
    open_at(tab, web, "/lookup?tokens=1,2,3")
    tab.see("Too short: there is no whole chunk.")


def test_flow_shows_who_gave_to_whom(web: Web, pair: tuple[Instance, Instance], tab: Tab) -> None:
    open_at(tab, web, "/flow")
    tab.see("3.0 MiB in")
    row = tab.page.locator("tbody tr").first.locator("td").all_inner_texts()
    assert (row[:3], row[4]) == (["a", EVIL, "3.0 MiB"], "100 %")
    assert tab.page.locator(".nicegui-echart svg path").count() >= 3
    tab.page.get_by_role("link", name="1 min").click()
    tab.page.wait_for_url("**/flow?seconds=60")


def test_pause_colours_and_kiosk(web: Web, pair: tuple[Instance, Instance], tab: Tab) -> None:
    open_at(tab, web, "/")
    dark = "document.body.classList.contains('body--dark')"
    for name, wanted in (("light", False), ("dark", True)):
        tab.page.locator("#colours").click()
        tab.see(f"Colours: {name}")
        assert tab.page.evaluate(dark) == wanted
    tab.page.reload()
    tab.see("Colours: dark")
    tab.page.wait_for_function(dark)
    tab.page.get_by_role("button", name="Pause").click()
    tab.see("Resume")
    with Instance(StubInstance("late", 3), web) as late:
        late.join()
        tab.page.wait_for_timeout(2500)
        assert "late" not in tab.text()
        tab.page.get_by_role("button", name="Resume").click()
        tab.see("late")
        leave(late)
    open_at(tab, web, "/?kiosk")
    assert not tab.page.locator("header").is_visible()
    assert tab.page.locator(".figure").count() == 8
