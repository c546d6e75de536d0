"""What the pages say, without a browser: rates, alarms, figures, tables, and that text is text."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

import pytest
from lmkv.core.causes import CAUSES
from lmkv.core.clock import ManualClock
from lmkv.core.messages import (
    ConfigResult,
    Event,
    FlowInfo,
    InstanceState,
    Jobs,
    JobsInfo,
    JobState,
    Lookup,
    LookupInfo,
    Pair,
    Part,
    Setting,
    StatusInfo,
    Submit,
)
from lmkv.web.errors import Problem
from lmkv.web.pages import text
from lmkv.web.pages.alarms import alarms
from lmkv.web.pages.watch import BIN, KEPT, Watch

NOBODY: Any = None
EVIL = "<img src=x onerror=alert(1)>&'\""


def status(epoch: int = 1, **more: Any) -> StatusInfo:
    info = StatusInfo(1, "default", "c", epoch, "ready", "0.1.0", 1.0, 2, 3, 0, 0, 0, 0)
    for name, value in more.items():
        setattr(info, name, value)
    return info


def watched(*infos: StatusInfo) -> Watch:
    """A second between two of them."""
    clock = ManualClock()
    watch = Watch(NOBODY, clock)
    for info in infos:
        clock.advance(1)
        watch.take(info)
    return watch


# ------------------------------------------------------------------ rates


def test_rates_are_differences_by_seconds() -> None:
    infos = [
        status(hit_tokens={"hit_pool": 8 * n}, miss_tokens={"cold": 2 * n}, peer_bytes=1024 * n)
        for n in range(2 * BIN + 2)
    ]
    watch = watched(*infos)
    (point,) = watch.points()
    assert (point.tokens, point.peer_bytes) == ({"hit_pool": 8, "cold": 2}, 1024)
    assert (point.age, point.saved) == (2, 8)
    now = watch.now()
    assert now is not None and (now.age, now.saved) == (0, 8)


def test_five_minutes_are_remembered_and_no_more() -> None:
    watch = watched(*(status(peer_bytes=n) for n in range(1000)))
    assert len(watch.samples) == KEPT
    for _ in range(BIN):  # wherever the newest point is
        watch.clock.advance(1)  # type: ignore[attr-defined]
        watch.take(status(peer_bytes=1000))
        assert 300 <= watch.points()[0].age <= 300 + BIN


def test_another_life_of_the_controller_begins_anew() -> None:
    watch = watched(
        status(hit_tokens={"hit_pool": 1000}, drifts=9), status(2, hit_tokens={}), status(2)
    )
    assert len(watch.samples) == 2
    now = watch.now()
    assert now is not None and now.saved == 0
    assert watch.grown() == (0, 0)


# ------------------------------------------------------------------ alarms


def test_a_good_day_has_no_alarm() -> None:
    good = status(versions={"0.1.0": 3}, miss_tokens={"digest": 5}, drifts=2)
    assert alarms(watched(good, good)) == []
    assert alarms(Watch(NOBODY)) == []


def test_each_alarm_names_what_is_wrong() -> None:
    assert ["Drift: 2 heartbeats" in text for text in alarms(watched(status(), status(drifts=2)))]
    (digest,) = alarms(watched(status(), status(miss_tokens={"digest": 256})))
    assert digest.startswith("Digest: 256 tokens")
    (skew,) = alarms(watched(status(versions={"0.1.0": 2, "0.2.0": 1})))
    assert "0.1.0 (2), 0.2.0 (1); the controller runs 0.1.0" in skew
    (other,) = alarms(watched(status(versions={"0.2.0": 1})))
    assert "the controller runs 0.1.0" in other
    watch = watched(status(states={"incompatible": 3}))
    watch.incompatible = [InstanceState("b", 1, "incompatible", differs="dtype", differs_from="a")]
    assert alarms(watch) == [
        "b shares nothing with a: they differ in dtype.",
        "2 more instances are incompatible.",
    ]


# ------------------------------------------------------------------ figures


@pytest.mark.parametrize(
    ("number", "said"),
    [(0, "0"), (7, "7"), (999, "999"), (1234, "1.23k"), (99_949, "99.9k"), (250_000, "250k"),
     (1_500_000, "1.5M"), (2e9, "2G"), (3e12, "3T")],
)  # fmt: skip
def test_counts(number: float, said: str) -> None:
    assert text.count(number) == said


@pytest.mark.parametrize(
    ("number", "said"),
    [(0, "0 B"), (999, "999 B"), (1024, "1.0 KiB"), (1536 << 10, "1.5 MiB"), (200 << 30, "200 GiB"),
     (5 << 40, "5.0 TiB")],
)  # fmt: skip
def test_sizes(number: float, said: str) -> None:
    assert text.size(number) == said


def test_ages_and_shares() -> None:
    assert [text.age(s) for s in (0.25, 61, 600, 7200, 200_000)] == [
        "0.2 s", "61 s", "10 min", "2 h", "2 d",
    ]  # fmt: skip
    assert (text.percent(1, 3), text.percent(0, 0)) == ("33 %", "-")


# ------------------------------------------------------------------ pages

pages = pytest.importorskip("lmkv.web.pages.overview", reason="the extra dashboard is not there")


def test_what_others_named_is_only_text() -> None:
    from lmkv.web.pages import commands, flow, instance, instances, job, jobs, lookup, overview
    from lmkv.web.pages.pins import Pins, PinsInfo, PinState, pins_html

    state = InstanceState(
        EVIL, 1, "incompatible", model=EVIL, version=EVIL, serving_url=EVIL, differs=EVIL,
        differs_from=EVIL, hit_tokens={EVIL: 1}, pool_granules={EVIL: 1},
    )  # fmt: skip
    found = LookupInfo(1, 16, ["00" * 16], [[EVIL]], {EVIL: 16}, {EVIL: EVIL}, 20)
    asked = Lookup(tokens=[1], salt=EVIL, like=EVIL)
    question = instances.Instances(sort="fill", filter=EVIL)
    info = instances.InstancesInfo(1, [state], total=90)
    part = Part(EVIL, EVIL, EVIL, EVIL, EVIL, skipped={EVIL: 1}, reason=EVIL, owner=EVIL)
    done = JobState(
        EVIL, "move", EVIL, [part], source=EVIL, skipped={EVIL: 2}, reason=EVIL, asked_by=EVIL,
    )  # fmt: skip
    asking = Jobs(state=EVIL, instance=EVIL, after=EVIL)
    pinned = PinsInfo(1, [PinState(EVIL, EVIL, EVIL, 1.0, 1, 1, EVIL)], EVIL, 1)
    settings = ConfigResult([Setting(EVIL, EVIL, EVIL, EVIL)])
    shown = [
        overview.events_html([(Event(1, EVIL, EVIL, EVIL, 0.0, EVIL), 0.0)]),
        instance.pool_html(state), instance.identity_html(state),
        instance.causes_html(state), instance.sharing_html(state),
        instances.instances_html(info, question, 2), instances._form(EVIL, EVIL, EVIL),
        flow.flow_html(FlowInfo(1, 10, 5, 1, [Pair(EVIL, EVIL, 5)])),
        lookup.found_html(found), commands.line_html(commands.lookup(asked), EVIL),
        text.instance_link(EVIL), jobs._form(asking),
        jobs.jobs_html(JobsInfo(1, [done], EVIL, 1, {EVIL: 1}), asking, False, True),
        job.facts_html(done, True), job.parts_html(done), instance.settings_html(settings),
        pins_html(pinned, Pins(instance=EVIL, after=EVIL), True),
    ]  # fmt: skip
    for html in shown:
        assert "<img" not in html and "onerror=alert(1)>" not in html, html
    assert "Page 2 of 4" in shown[5]


def test_what_ended_long_ago_is_folded_up() -> None:
    from lmkv.web.pages.jobs import OLD, jobs_html

    ages = {"j1": 5.0, "j2": OLD, "j3": OLD + 1}
    ended = [JobState(name, "pin", "done", ended_age=age) for name, age in ages.items()]
    told = [JobState("j0", "pin", "running", age=OLD * 9), *ended]
    info = JobsInfo(1, told, total=4, states={"running": 1, "done": 3})

    def shown(question: Jobs, old: bool = False, may: bool = True) -> str:
        return jobs_html(info, question, old, may)

    def names(html: str) -> list[str]:
        return re.findall('href="/jobs/(j[0-9])"', html)

    assert names(shown(Jobs())) == ["j0", "j1", "j2"]
    assert '<a href="/jobs?old=1">1 that ended more than 10 minutes ago</a>' in shown(Jobs())
    assert names(shown(Jobs(), old=True)) == names(shown(Jobs(after="j9"))) == ["j0", *ages]
    assert 'aria-current="true" href="/jobs?state=done">done 3<' in shown(Jobs(state="done"))
    assert (shown(Jobs()).count("<button"), shown(Jobs(), may=False).count("<button")) == (1, 0)


def test_how_far_a_job_is() -> None:
    from lmkv.web.pages.jobs import pace, progress_html

    part = Part("j1", "copy", "a", "running", "b", 1, 4, 1 << 20, 4 << 20, {"present": 1})
    assert 'aria-valuenow="25"' in progress_html(part)
    assert "1 of 4 chunks · 1.0 MiB of 4.0 MiB" in progress_html(part)
    assert "1 present" in progress_html(part)
    job = JobState("j1", "copy", "running", [part], rate=2 << 20, eta=90.0)
    assert "2.0 MiB/s, 90 s left, 1 present" in progress_html(part, pace(job))
    assert pace(JobState("j1", "copy", "done", [part], rate=2 << 20, eta=90.0)) == ""
    assert "aria-valuenow" not in progress_html(Part("j1", "clear", "a", "queued"))
    assert 'aria-valuenow="100"' in progress_html(Part("j1", "clear", "a", "done", chunks=3))


@pytest.mark.parametrize(
    ("said", "seconds"),
    [("", 0), ("30", 30), ("90s", 90), ("10 m", 600), ("1.5h", 5400), ("7d", 604_800)],
)
def test_how_long_a_pin_is_kept(said: str, seconds: float) -> None:
    from lmkv.web.pages import acts

    assert acts.seconds(said) == seconds


@pytest.mark.parametrize("wrong", ["0", "-1", "1y", "h", "1e9", "9" * 400, "367d", "nan", "٣"])
def test_a_time_that_is_none(wrong: str) -> None:
    from lmkv.web.pages import acts

    with pytest.raises(Problem, match="ttl "):
        acts.seconds(wrong)


def test_the_same_as_a_command_and_as_a_request() -> None:
    from lmkv.web.pages import commands

    asked = Submit(0, "move", text="it's", salt="s", instance="b", source="a", owner="o", ttl=90.0)
    assert shlex.split(commands.operation(asked)) == [
        "lmkv", "move", "--from", "a", "--to", "b", "--ttl", "90s", "--owner", "o", "--salt", "s",
        "--", "it's",
    ]  # fmt: skip
    assert commands.body(asked) == {
        "operation": "move", "instance": "b", "source": "a", "text": "it's", "salt": "s",
        "owner": "o", "ttl_s": 90.0,
    }  # fmt: skip
    whole = commands.operation(Submit(0, "clear", instance="b", whole=True))
    assert whole == "lmkv clear --instance b --whole"
    line = commands.request("http://h/v1/jobs", commands.body(asked), token=True)
    assert '-H "Authorization: Bearer $LMKV_TOKEN"' in line
    words = shlex.split(line)
    assert json.loads(words[-1]) == commands.body(asked)
    long = commands.request("http://h/v1/jobs", {"text": "x" * 10_000}, token=False)
    assert shlex.split(long)[-1] == "@FILE"
    assert commands.request("http://h/v1/instances/a%27b/sync", None, False).split()[-1][0] == "h"


def test_token_ids_as_people_paste_them() -> None:
    from lmkv.web.pages.commands import lookup as command
    from lmkv.web.pages.lookup import numbers

    assert numbers(" [1, 2,3\n4] ") == [1, 2, 3, 4]
    for wrong in ("", "[]", "1,x", "-1", "4294967296", "1.5", "٣", "9" * 5000, "\0"):
        with pytest.raises(Problem, match="tokens: "):
            numbers(wrong)
    said = command(Lookup(tokens=[1, 2], salt="it's"))
    assert shlex.split(said) == ["lmkv", "lookup", "--salt", "it's", "--tokens", "1,2"]
    assert "@FILE" in command(Lookup(tokens=[*range(10_000)]))
    said = command(Lookup(text="-it's", like="a"))
    assert shlex.split(said) == ["lmkv", "lookup", "--like", "a", "--", "-it's"]
    assert command(Lookup(text="@home")) == "lmkv lookup -- @FILE"
    messages = [{"role": "user", "content": "hi"}]
    assert command(Lookup(messages=messages)) == "lmkv lookup --messages FILE"
    assert "@FILE" in command(Lookup(text="x" * 10_000))


@pytest.mark.parametrize(
    ("form", "prompt", "said"),
    [("messages", "{", "messages: no JSON"), ("messages", "[" * 100_000, "messages: no JSON"),
     ("messages", '{"role": "user"}', "messages: Input should be"),
     ("messages", "[]", "there are none"),
     ("messages", '[{"role": 5}]', "messages.0"), ("text", "", "text: there are none"),
     ("tokens", "x", "tokens: 'x'"), ("text", "x" * (2 << 20), "text: String should have at most")],
    ids=range(8),
)  # fmt: skip
def test_a_prompt_that_is_none(form: str, prompt: str, said: str) -> None:
    from lmkv.web.pages.lookup import question

    with pytest.raises(Problem, match=re.escape(said)):
        question(form, prompt, "", "")


def test_every_cause_has_a_colour_and_circles_are_drawn_straight() -> None:
    from lmkv.web.pages import charts

    assert set(charts.COLOURS) == set(CAUSES)
    assert len(set(charts.COLOURS.values())) == len(CAUSES)
    info = FlowInfo(1, 10, 3, 2, [Pair("a", "b", 2), Pair("b", "a", 1)])
    (series,) = charts.flow(info)["series"]
    names = [node["name"] for node in series["data"]]
    assert len(set(names)) == 4
    assert all(each["source"] in names[:2] for each in series["links"])
    assert all(each["target"] in names[2:] for each in series["links"])
    assert [charts.step(most) for most in (0, 3, 5 << 20, 763 << 20)] == [
        1, 1, 2 << 20, 200 << 20,
    ]  # fmt: skip
