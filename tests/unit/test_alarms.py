"""What must not happen and did: from the store that differs to the number that people see."""

from __future__ import annotations

import logging

import pytest
from lmkv.agent.refusals import Refusals
from lmkv.agent.stats import Stats
from lmkv.core.messages import Alarm

from tests.fake_links import World


def test_a_workers_alarm_is_counted_and_logged_with_its_rank(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World(ranks=2)
    world.at("ipc://worker1").say(Alarm(1, "audit", "chunk 00ff differs when it is gathered twice"))
    world.turn()
    assert world.agent.stats.take()["alarms"] == {"audit": 1}
    assert world.agent.stats.take() == {}
    [line] = [r for r in caplog.records if "audit" in r.message]
    assert line.levelno == logging.ERROR
    assert line.message == "lmkv: audit: rank 1: chunk 00ff differs when it is gathered twice"


def test_a_flood_is_one_line_and_every_one_of_it_is_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stats = Stats()
    refuse = Refusals(stats)
    for n in range(1000):
        refuse("message", f"from tcp://[::1]:{n}: a frame of {n} bytes, epoch {n:016x}")
    refuse("of a later release", "something else")
    for _ in range(2):
        refuse("audit", "chunk 1 differs")
    assert stats.take()["alarms"] == {"message": 1001, "audit": 2}
    assert len(caplog.records) == 4
