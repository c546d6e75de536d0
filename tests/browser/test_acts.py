"""Everything that pages do, by clicking: against a live controller, instances that take jobs as a
script says, and real agents where a command is no job."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lmkv.core import tokens
from lmkv.core.messages import Command
from lmkv.sim.trace import tokens as prompt_of

from tests.browser.browser import Tab
from tests.browser.browser import tab as new_tab
from tests.browser.lively import Pair
from tests.browser.test_pages import open_at
from tests.contract.test_command_lines import lmkv
from tests.contract.test_controller import until
from tests.contract.test_controllers import Instance
from tests.scripted_jobs import WHOLE, Worker
from tests.stub_instance import HOST_B
from tests.web import TOKENS, Web, prompt_keys

KEYS = prompt_keys(TOKENS)  # two chunks
LISTED = ",".join(map(str, TOKENS))
LOOKUP = f"/lookup?tokens={LISTED}"
EVIL = "<b id=evil>"


@pytest.fixture
def pair(web: Web) -> Iterator[tuple[Worker, Worker]]:
    """`a` has two chunks of TOKENS and `b` the first of them."""
    with Worker("a", [web], 1) as a, Worker("b", [web], 2, host=HOST_B) as b:
        a.store(KEYS)
        b.store(KEYS[:16])
        until(
            lambda: web.ask("/v1/lookup", {"tokens": TOKENS}).json["holders"] == [["a", "b"], ["a"]]
        )
        yield a, b
        for each in (a, b):
            each.release()


def press(tab: Tab, name: str, place: str = ".main") -> None:
    tab.page.locator(place).get_by_role("button", name=name, exact=True).click()


def opened(tab: Tab, act: str, place: str = ".main", says: str = "") -> None:
    """The dialog of an act."""
    press(tab, act, place)
    tab.page.get_by_role("heading", name=f"{says or act}: ").wait_for()


def choose(tab: Tab, field: str, name: str) -> None:
    """Of a list."""
    tab.page.locator(".act").get_by_label(field, exact=True).click()
    tab.page.get_by_role("option", name=name, exact=True).click()
    tab.page.get_by_role("option").first.wait_for(state="hidden")


def fill(tab: Tab, field: str, text: str) -> None:
    tab.page.locator(".act").get_by_label(field, exact=True).fill(text)


def lines(tab: Tab) -> tuple[list[str], list[str]]:
    """The command and the request, in words."""
    shown = tab.page.locator(".act pre.line")
    command, request = (shlex.split(shown.nth(i).inner_text()) for i in (0, 1))
    return command, request


def started(tab: Tab, act: str) -> str:
    """Start it, and go to its job; the id."""
    press(tab, act, ".act")
    link = tab.page.locator(".act").get_by_role("link")
    link.click()
    tab.page.wait_for_url("**/jobs/j*")
    return str(tab.page.url).rpartition("/")[2]


def commands(worker: Worker, job: str) -> list[Command]:
    return [each for each in worker.commands if each.id == job]


def shown_do_the_same(
    web: Web, worker: Worker, command: list[str], request: list[str], sent: Command
) -> list[str]:
    """The jobs that the shown command and request begin; `sent` is what the click has sent."""
    assert request[:3] == ["curl", "-X", "POST"] and request[3] == web.http + "/v1/jobs"
    again = web.ask("/v1/jobs", json.loads(request[request.index("-d") + 1]))
    assert again.status == 202, again
    more = ["--yes"] if sent.operation == "clear" else []
    said, _ = lmkv(*command[1:], *more, "--controller", web.http, "-o", "json")
    begun = [again.json["id"], json.loads(said)["id"]]
    drop = {"asked_by": "", "command": ""}
    for name in begun:
        [same] = commands(worker, name)
        assert same.arguments | drop == sent.arguments | drop
    return begun


def jobs_of(*workers: Worker) -> list[str]:
    """What it was told to do, but for its settings, which any page of it asks for."""
    told = (each.operation for worker in workers for each in worker.commands)
    return [operation for operation in told if operation != "config"]


# ------------------------------------------------------------------ on a prompt


@pytest.mark.parametrize(
    ("act", "fields", "word", "command", "arguments"),
    [
        ("Pin", {"At": "a", "For": "90 min", "Owner": "ann's"}, "",
         ["--instance", "a", "--ttl", "5400s", "--owner", "ann's"],
         {"ttl": "5400.0", "owner": "ann's"}),
        ("Unpin", {"At": "a", "Owner": "ann"}, "", ["--instance", "a", "--owner", "ann"],
         {"owner": "ann"}),
        ("Copy", {"To": "b", "From": "a"}, "", ["--from", "a", "--to", "b"], {"source": "a"}),
        ("Move", {"To": "b", "From": "a"}, "a", ["--from", "a", "--to", "b"], {"source": "a"}),
        ("Clear", {"At": "a"}, "a", ["--instance", "a"], {}),
        ("Compress", {"At": "a"}, "", ["--instance", "a"], {}),
        ("Decompress", {"At": "a"}, "", ["--instance", "a"], {}),
    ],
    ids=str,
)  # fmt: skip
def test_each_act_on_a_prompt(
    web: Web,
    pair: tuple[Worker, Worker],
    tab: Tab,
    act: str,
    fields: dict[str, str],
    word: str,
    command: list[str],
    arguments: dict[str, str],
) -> None:
    worker = pair[1] if act in ("Copy", "Move") else pair[0]
    open_at(tab, web, LOOKUP)
    opened(tab, act)
    tab.see(f"{act}: 2 chunks of a prompt")
    for field, value in fields.items():
        (choose if field in ("At", "To", "From") else fill)(tab, field, value)
    wanted = ["lmkv", act.lower(), *command, "--tokens", LISTED]
    until(lambda: lines(tab)[0] == wanted)
    request = lines(tab)[1]
    if word:
        fill(tab, "Its name, to go on", word)
    job = started(tab, act)
    tab.see("done")
    assert "2 of 2 chunks" in tab.text()
    [sent] = commands(worker, job)
    assert worker.keys[job] == KEYS
    assert {name: sent.arguments.get(name) for name in arguments} == arguments
    assert sent.arguments["asked_by"] == "dashboard"
    for name in shown_do_the_same(web, worker, wanted, request, sent):
        assert worker.keys[name] == KEYS


def test_without_an_instance_every_holder_does_it(
    web: Web, pair: tuple[Worker, Worker], tab: Tab
) -> None:
    open_at(tab, web, LOOKUP)
    opened(tab, "Compress")
    job = started(tab, "Compress")
    tab.see("2 of 2 have told")
    tab.see("done")
    assert [len(commands(each, job)) for each in pair] == [1, 1]


def test_what_takes_something_away_asks_for_its_name(
    web: Web, pair: tuple[Worker, Worker], tab: Tab
) -> None:
    open_at(tab, web, LOOKUP)
    opened(tab, "Clear")
    tab.see("To go on, type default:")  # at every holder: the cluster's name
    choose(tab, "At", "b")
    tab.see("To go on, type b:")
    for wrong in ("", "a", "B"):
        fill(tab, "Its name, to go on", wrong)
        press(tab, "Clear", ".act")
        tab.see(f"name '{wrong}': to go on it must be 'b'")
    assert jobs_of(*pair) == []
    fill(tab, "Its name, to go on", "b")
    job = started(tab, "Clear")
    tab.see("done")
    assert len(commands(pair[1], job)) == 1


@pytest.mark.parametrize(
    ("act", "fields", "said"),
    [
        ("Pin", {}, "ttl: a pin has a time at which it ends, or an owner who ends it, or both"),
        ("Pin", {"For": "soon"}, "ttl 'soon': allowed is a time up to a year"),
        ("Copy", {}, "instance: a copy names where it goes"),
        ("Copy", {"To": "a", "From": "a"}, "source: that is where it goes"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said_in_the_dialog(
    web: Web,
    pair: tuple[Worker, Worker],
    tab: Tab,
    act: str,
    fields: dict[str, str],
    said: str,
) -> None:
    open_at(tab, web, LOOKUP)
    opened(tab, act)
    for field, value in fields.items():
        (choose if field in ("At", "To", "From") else fill)(tab, field, value)
    press(tab, act, ".act")
    tab.see(said)
    assert jobs_of(*pair) == []
    press(tab, "Close", ".act")
    tab.page.locator(".act").wait_for(state="hidden")


def test_what_the_controller_refuses_is_said_too(
    web: Web, pair: tuple[Worker, Worker], tab: Tab
) -> None:
    open_at(tab, web, LOOKUP)
    pair[0].stop()
    opened(tab, "Copy")
    field = tab.page.locator(".act").get_by_label("To", exact=True)
    field.fill("nobody")
    field.press("Enter")
    press(tab, "Copy", ".act")
    tab.see("instance: instance 'nobody' is not known here")


# ------------------------------------------------------------------ on an instance, on all


def test_a_row_offers_what_can_be_done(web: Web, pair: tuple[Worker, Worker], tab: Tab) -> None:
    open_at(tab, web, "/instances")
    press(tab, "Do with b")
    tab.see("lmkv describe instance b")
    opened(tab, "Compress", ".act")
    tab.see("Compress: all of b")
    assert lines(tab)[0] == ["lmkv", "compress", "--instance", "b", "--whole"]
    job = started(tab, "Compress")
    tab.see(f"{WHOLE} of {WHOLE} chunks")
    [sent] = commands(pair[1], job)
    assert (sent.operation, sent.arguments["whole"]) == ("compress", "1")


def test_a_click_counts_though_the_table_is_drawn_anew_meanwhile(
    web: Web, pair: tuple[Worker, Worker], tab: Tab
) -> None:
    open_at(tab, web, "/instances")
    tab.page.locator(".scroll tbody button").first.wait_for()
    press(tab, "Pause", ".top")
    tab.page.evaluate(
        """() => {
          const event = name => new PointerEvent(name, {bubbles: true});
          const first = () => document.querySelector('.scroll tbody button');
          const shown = first().closest('.scroll').parentElement;
          first().dispatchEvent(event('pointerdown'));
          shown.innerHTML = shown.innerHTML;
          first().dispatchEvent(event('pointerup'));
        }"""
    )
    tab.see("lmkv describe instance a")


@pytest.mark.parametrize(
    ("act", "fields", "word", "command", "arguments"),
    [
        ("Pin", {"For": "2h", "Owner": "ann"}, "",
         ["--instance", "a", "--ttl", "7200s", "--owner", "ann"],
         {"ttl": "7200.0", "owner": "ann"}),
        ("Unpin", {"Owner": "ann"}, "", ["--instance", "a", "--owner", "ann"], {"owner": "ann"}),
        ("Copy", {"To": "b"}, "", ["--from", "a", "--to", "b"], {"source": "a"}),
        ("Move", {"To": "b"}, "a", ["--from", "a", "--to", "b"], {"source": "a"}),
        ("Clear", {}, "a", ["--instance", "a"], {}),
        ("Compress", {}, "", ["--instance", "a"], {}),
        ("Decompress", {}, "", ["--instance", "a"], {}),
    ],
    ids=str,
)  # fmt: skip
def test_each_act_on_an_instance_on_its_page(
    web: Web,
    pair: tuple[Worker, Worker],
    tab: Tab,
    act: str,
    fields: dict[str, str],
    word: str,
    command: list[str],
    arguments: dict[str, str],
) -> None:
    pulls = act in ("Copy", "Move")
    worker, other = reversed(pair) if pulls else pair
    open_at(tab, web, "/instances/a")
    opened(tab, act)
    tab.see(f"{act}: all of a")
    offered = tab.page.locator(".act input").evaluate_all(
        "fields => fields.filter(f => f.checkVisibility()).map(f => f.ariaLabel)"
    )
    assert offered == [*fields, *(["Its name, to go on"] if word else [])]
    if pulls:
        tab.page.locator(".act").get_by_label("To", exact=True).click()
        tab.page.get_by_role("option").first.wait_for()
        assert tab.page.get_by_role("option").all_inner_texts() == ["b"]  # not where it comes from
        tab.page.locator(".act h2").click()
        tab.page.get_by_role("option").first.wait_for(state="hidden")
    for field, value in fields.items():
        (choose if field == "To" else fill)(tab, field, value)
    wanted = ["lmkv", act.lower(), *command, "--whole"]
    until(lambda: lines(tab)[0] == wanted)
    request = lines(tab)[1]
    if word:
        press(tab, act, ".act")
        tab.see(f"name '': to go on it must be '{word}'")
        assert jobs_of(*pair) == []
        fill(tab, "Its name, to go on", word)
    job = started(tab, act)
    tab.see("done")
    [sent] = commands(worker, job)
    assert commands(other, job) == []
    assert (sent.arguments["whole"], sent.arguments["asked_by"]) == ("1", "dashboard")
    assert {name: sent.arguments.get(name) for name in arguments} == arguments
    shown_do_the_same(web, worker, wanted, request, sent)


def test_the_cluster_is_cleared_by_its_name(
    web: Web, pair: tuple[Worker, Worker], tab: Tab
) -> None:
    open_at(tab, web, "/instances")
    opened(tab, "Clear the cluster", says="Clear")
    tab.see("Clear: the whole cluster")
    assert lines(tab)[0] == ["lmkv", "clear", "--whole"]
    fill(tab, "Its name, to go on", "default")
    job = started(tab, "Clear")
    tab.see("done")
    assert [len(commands(each, job)) for each in pair] == [1, 1]


def test_sync_and_verify_of_a_real_agent(web: Web, tab: Tab) -> None:
    us = Instance("rack/one", [web.state])
    try:
        us.hold(list(range(8)))
        path = "/v1/instances/rack/one"
        until(lambda: web.ask(path).status == 200 and web.ask(path).json["keys"] == 2)
        open_at(tab, web, "/instances/rack%2Fone")
        tab.see("chunk_tokens")  # its settings
        row = tab.page.locator("tr", has_text="controllers").first
        assert row.locator("td").all_inner_texts() == ["controllers", f"['{web.state}']", "inline"]
        opened(tab, "Full sync")
        line, request = lines(tab)
        assert line == ["lmkv", "sync", "rack/one"]
        press(tab, "Full sync", ".act")
        tab.see("2 chunks before, 2 after. Mended: 0 missing, 0 moved, 0 gone.")
        assert web.ask(request[3].removeprefix(web.http), method="POST").status == 200
        press(tab, "Close", ".act")
        tab.page.locator(".act").wait_for(state="hidden")
        opened(tab, "Verify")
        assert lines(tab)[0] == ["lmkv", "verify", "--instance", "rack/one"]
    finally:
        us.agent.close()


def test_a_real_agent_pins_unpins_and_clears(web: Web, tab: Tab) -> None:
    us = Instance("us", [web.state])
    try:
        prompt = list(range(8))
        us.hold(prompt)
        until(lambda: web.ask("/v1/lookup", {"tokens": prompt}).json.get("matched") == {"us": 8})
        path = "/lookup?tokens=" + ",".join(map(str, prompt))
        open_at(tab, web, path)
        opened(tab, "Pin")
        fill(tab, "Owner", "ann")
        started(tab, "Pin")
        tab.see("done")
        assert us.agent.pending["pins"] == 2
        open_at(tab, web, "/instances/us")
        tab.page.locator("tr", has_text="ann").wait_for()
        open_at(tab, web, "/pins")
        tab.page.get_by_role("button", name="Unpin ann at us").click()
        started(tab, "Unpin")
        tab.see("done")
        assert us.agent.pending["pins"] == 0
        open_at(tab, web, path)
        opened(tab, "Clear")
        fill(tab, "Its name, to go on", "default")
        started(tab, "Clear")
        tab.see("done")
        until(lambda: web.ask("/v1/lookup", {"tokens": prompt}).json["matched"] == {})
        open_at(tab, web, path)
        opened(tab, "Pin")
        fill(tab, "Owner", "ann")
        press(tab, "Pin", ".act")
        tab.see("no instance holds a chunk of it")
        assert set(us.agent.pending.values()) == {0}
    finally:
        us.agent.close()


def test_simulated_agents_do_all_of_it(web: Web, tab: Tab) -> None:
    """Every act on the pages of two instances, one after the other: what its job says, and who
    holds the prompt then."""
    first, second = "sim-00000", "sim-00001"
    tokens = prompt_of(Pair.PROMPT)
    pair = Pair(web.state)
    pair.begin()

    def holders() -> list[str]:
        answer = web.ask("/v1/lookup", {"tokens": tokens})
        return answer.json["holders"][-1] if answer.status == 200 else [answer.json]

    try:
        until(lambda: holders() == [first])
        for act, at, fields, word, said, left in (
            ("Pin", first, {"Owner": "ann"}, "", "5 of 5 chunks · 5.0 MiB", [first]),
            ("Compress", first, {}, "", "5 pinned", [first]),
            ("Unpin", first, {"Owner": "ann"}, "", "5 of 5 chunks", [first]),
            ("Compress", first, {}, "", "5 of 5 chunks · 1.2 MiB", [first]),
            ("Copy", first, {"To": second}, "", "5 of 5 chunks · 3.8 MiB", [first, second]),
            ("Decompress", second, {}, "", "5 of 5 chunks · 1.2 MiB", [first, second]),
            ("Compress", second, {}, "", "5 of 5 chunks · 1.2 MiB", [first, second]),
            ("Move", first, {"To": second}, first, "5 present", [second]),
            ("Clear", second, {}, second, "5 of 5 chunks", []),
        ):
            open_at(tab, web, f"/instances/{at}")
            opened(tab, act)
            for field, value in fields.items():
                (choose if field == "To" else fill)(tab, field, value)
            if word:
                fill(tab, "Its name, to go on", word)
            started(tab, act)
            tab.see("done")
            assert said in tab.text(), act
            until(lambda: holders() == left)  # noqa: B023
        assert [set(each.agent.pending.values()) for each in pair.world.instances] == [{0}, {0}]
    finally:
        pair.end()


# ------------------------------------------------------------------ jobs


def submit(web: Web, **body: Any) -> str:
    answer = web.ask("/v1/jobs", body)
    assert answer.status == 202, answer
    return str(answer.json["id"])


def test_a_job_is_seen_to_go_on_and_is_cancelled(
    web: Web, pair: tuple[Worker, Worker], tab: Tab
) -> None:
    a, _ = pair
    a.hold()
    job = submit(web, operation="compress", whole=True, instance="a")
    open_at(tab, web, "/jobs?state=running&instance=a")
    row = tab.page.locator("tbody tr", has_text=job[:9])
    row.get_by_text(f"1 of {WHOLE} chunks").wait_for()
    assert row.get_by_role("progressbar").get_attribute("aria-valuenow") == "12"
    assert row.locator("td").nth(4).inner_text() == "127.0.0.1"
    tab.page.get_by_role("button", name=f"Cancel {job}").click()
    tab.see("There is no such job.")  # none runs any more
    assert jobs_of(a) == ["compress", "cancel"]
    tab.page.get_by_role("link", name="cancelled").click()
    tab.page.wait_for_url("**/jobs?state=cancelled&instance=a")
    row.get_by_text("cancelled").wait_for()
    row.get_by_role("link", name=job[:9]).click()
    tab.page.wait_for_url(f"**/jobs/{job}")
    a.release()
    tab.page.get_by_role("button", name=f"Retry {job}").click()
    tab.see("attempt 2")
    tab.see("done")
    assert tab.page.get_by_role("button", name="Retry").count() == 0


def test_a_job_that_failed_says_why_and_is_tried_again(
    web: Web, pair: tuple[Worker, Worker], tab: Tab
) -> None:
    a, _ = pair
    a.fails = "no_room", f"{EVIL} all of its slots are pinned"
    job = submit(web, operation="pin", tokens=TOKENS, owner=EVIL, instance="a")
    open_at(tab, web, "/jobs")
    row = tab.page.locator("tbody tr", has_text=job[:9])
    row.get_by_text(f"{EVIL} all of its slots are pinned").wait_for()
    assert tab.page.locator("#evil").count() == 0
    a.fails = None
    row.get_by_role("button", name=f"Retry {job}").click()
    row.get_by_text("done").wait_for()
    open_at(tab, web, "/pins?instance=a")
    pin = tab.page.locator("tbody tr", has_text=EVIL)
    assert pin.locator("td").all_inner_texts()[:5] == [
        "a", job[:9], EVIL, "when it is unpinned", "2",
    ]  # fmt: skip
    open_at(tab, web, "/instances/a")
    tab.see(job[:9])
    open_at(tab, web, "/pins")
    tab.page.get_by_role("button", name=f"Unpin {EVIL} at a").click()
    tab.see(f"Unpin: what {EVIL} has pinned at a")
    started(tab, "Unpin")
    tab.see("done")
    open_at(tab, web, "/pins")
    tab.see("Nothing is pinned.")


def test_a_job_that_is_gone(web: Web, pair: tuple[Worker, Worker], tab: Tab) -> None:
    open_at(tab, web, "/jobs/j0123")
    tab.page.locator(".banner").wait_for()
    assert "j0123" in tab.text(".banner")


def test_an_end_that_was_not_waited_for(web: Web, pair: tuple[Worker, Worker], tab: Tab) -> None:
    """Another one was faster: the button says what it met, in one sentence."""
    a, _ = pair
    a.hold()
    job = submit(web, operation="compress", whole=True, instance="a")
    open_at(tab, web, f"/jobs/{job}")
    button = tab.page.get_by_role("button", name=f"Cancel {job}")
    button.wait_for()
    press(tab, "Pause", ".top")
    assert web.ask(f"/v1/jobs/{job}/cancel", method="POST").status == 200
    button.click()
    tab.page.locator(".banner").filter(has_text="cancelled").wait_for()


# ------------------------------------------------------------------ who may


def logged_in(web: Web, token: str, tab: Tab, path: str) -> None:
    tab.page.goto(web.http + path)
    tab.page.get_by_label("Token").fill(token)
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_url("**" + path)
    tab.page.wait_for_function("window.did_handshake === true")


def test_who_may_not_act_sees_no_act(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    known = {scope: tokens.add(path, scope, scope) for scope in ("read", "operate", "admin")}
    web = Web("--tokens", str(path))
    header = {"Authorization": f"Bearer {known['admin']}"}
    until(lambda: web.ask("/readyz").status == 200)
    try:
        with Worker("a", [web], 1) as a:
            a.store(KEYS)
            until(lambda: web.ask("/v1/instances/a", **header).json.get("keys") == 2)
            for scope, token in known.items():
                with new_tab(browser) as tab:
                    logged_in(web, token, tab, "/instances")
                    press(tab, "Do with a")
                    tab.see("lmkv describe instance a")
                    offered = tab.page.locator(".act").get_by_role("button", name="Clear").count()
                    assert offered == (scope != "read")
                    press(tab, "Close", ".act")
                    whole = tab.page.get_by_role("button", name="Clear the cluster").count()
                    assert whole == (scope == "admin")
                    open_at(tab, web, "/instances/a")
                    tab.see("Its pins")
                    for act in ("Pin", "Copy", "Move", "Clear"):
                        shown = tab.page.get_by_role("button", name=act, exact=True)
                        assert shown.count() == offered
                    open_at(tab, web, LOOKUP)
                    tab.see("2 chunks of 16")
                    assert tab.page.get_by_role("button", name="Pin", exact=True).count() == offered
            with new_tab(browser) as tab:  # what is not offered is not done either
                less = "this takes a token of scope operate"
                logged_in(web, known["read"], tab, "/jobs")
                tab.page.evaluate("emitEvent('lmkv_act', {do: 'cancel', job: 'j1'})")
                tab.see(less)
                open_at(tab, web, "/pins")
                tab.page.evaluate("emitEvent('lmkv_act', {instance: 'a', owner: 'ann'})")
                tab.see("Unpin: what ann has pinned at a")
                press(tab, "Unpin", ".act")
                tab.see(less)
                assert jobs_of(a) == []
            with new_tab(browser) as tab:
                logged_in(web, known["operate"], tab, LOOKUP)
                opened(tab, "Pin")
                fill(tab, "Owner", "ann")
                tab.page.locator(".act pre.line").filter(has_text="ann").first.wait_for()
                assert (
                    '"Authorization: Bearer $LMKV_TOKEN"' in tab.page.locator(".act").inner_text()
                )
                job = started(tab, "Pin")
                [sent] = commands(a, job)
                assert sent.arguments["asked_by"] == "operate"
                open_at(tab, web, "/jobs")
                tab.see("operate")
                # The token is taken away while the page is open.
                open_at(tab, web, LOOKUP)
                opened(tab, "Clear")
                path.write_text("")
                os.kill(web.process.pid, signal.SIGHUP)
                tab.page.wait_for_url("**/login?**")
                assert jobs_of(a) == ["pin"]
                assert tab.said == []
    finally:
        assert web.end()[0] == 0


# ------------------------------------------------------------------ what is no prompt


def paste(field: Any, text: str) -> None:
    field.evaluate(
        "(field, text) => { field.value = text; field.dispatchEvent(new Event('input')); }", text
    )


@pytest.mark.parametrize("form", ["Token ids", "Text", "Chat messages, as JSON"])
@pytest.mark.parametrize(
    "pasted",
    ["\x7fELF\x02\x01\x01\x00\x00\x00ÿþ\ufffd", "\ud800", "x" * 900_000, "é" * 900_000],
    ids=["binary", "half a character", "much", "much more"],
)
def test_a_paste_that_is_no_prompt(
    web: Web, pair: tuple[Worker, Worker], tab: Tab, form: str, pasted: str
) -> None:
    """One sentence, and the page goes on."""
    open_at(tab, web, "/lookup")
    tab.page.get_by_text(form, exact=True).click()
    field = tab.page.get_by_label("Prompt")
    paste(field, pasted)
    press(tab, "Look up")
    tab.page.locator(".banner").wait_for()
    said = tab.text(".banner")
    assert "\n" not in said and len(said) < 300, said
    tab.page.get_by_text("Token ids", exact=True).click()
    field.fill(LISTED)
    press(tab, "Look up")
    tab.see("40 tokens: 2 chunks of 16, and 8 beside them")
    tab.page.locator(".banner").wait_for(state="detached")


def test_a_million_characters(web: Web, pair: tuple[Worker, Worker], tab: Tab) -> None:
    open_at(tab, web, "/lookup?text=before")
    field = tab.page.get_by_label("Prompt")
    for pasted in ("x" * 1_000_000, '"' * 400_000):
        paste(field, pasted)
        tab.see(f"prompt: {len(pasted)} characters are more than a page takes")
        assert field.input_value() == ""
        press(tab, "Look up")
        tab.see("text: there are none")


def test_what_is_seen_has_a_url(web: Web, pair: tuple[Worker, Worker], tab: Tab) -> None:
    for path, field, value in (("/jobs?state=failed", "Instance", "b"), ("/pins", "Instance", "b")):
        open_at(tab, web, path)
        tab.page.get_by_label(field).fill(value)
        tab.page.keyboard.press("Enter")
        tab.page.wait_for_url(re.compile("instance=b"))
        assert tab.page.get_by_label(field).input_value() == value
    open_at(tab, web, "/jobs?state=lost&old=1&instance=" + "x" * 500)
    tab.see("There is no such job.")
