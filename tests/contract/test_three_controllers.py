"""Three real controllers: whatever happens to one, no request fails and none misses by it.

Each has a network namespace of its own where the system lets. Simulated instances ask without
pause. Their locate deadline is long, so that a busy machine does not decide what is missed: what is
counted is that locates went on to the next controller and were answered there. How long that takes
by the clock is told by `make faults`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.faults.networks import why_not
from tests.faults.three import FAULTS, NEED_A_LINK, Three

SETTINGS = {"locate_deadline": 6.0, "connect_deadline": 30.0, "pull": "always"}
MORE = 30  # requests, of which each of the six instances has five
# What a fleet without faults meets: nobody has it, its tail is no chunk, it was overwritten since.
INNOCENT = {"cold", "too_short", "gone", "hit_pool", "hit_peer"}


def innocent(told: Any) -> None:
    assert told["begun"] == told["ended"]
    assert set(told["causes"]) <= INNOCENT, told
    assert told["causes"]["hit_peer"] > 0


@pytest.fixture(scope="module")
def three() -> Iterator[Three]:
    with Three(6, SETTINGS) as running:
        yield running


@pytest.mark.parametrize("fault", FAULTS)
def test_one_of_three_is_lost_and_comes_back(three: Three, fault: str) -> None:
    """One fault after another: what comes back is as good as new."""
    if fault in NEED_A_LINK and why_not():
        pytest.skip(why_not())
    three.fleet("go")
    three.all_ask(0, 1, 2)
    before = three.ask_more(MORE)
    lost = three.first()
    three.strike(fault, lost)
    three.ask_more(MORE)
    three.all_ask(*{0, 1, 2} - {lost})
    told = three.ask_more(MORE)
    assert set(told["causes"]) <= INNOCENT, told
    if fault != "killed":  # that breaks connections, so nothing more is sent there
        assert told["resent"] > before["resent"]
    three.heal(fault, lost)
    three.all_ask(0, 1, 2)
    innocent(three.fleet("rest"))
    assert three.all_agree()["keys"] > 0


def test_all_three_are_restarted_at_once() -> None:
    with Three(6, SETTINGS) as three:
        three.ask_more(MORE)
        for i in range(3):
            three.strike("killed", i)
        three.ask_more(MORE)  # nobody is there: what the own pool has not is computed
        three.until(lambda told: not told["asked"])
        for i in range(3):
            three.heal("killed", i)
        three.all_ask(0, 1, 2)
        three.ask_more(MORE)
        told = three.fleet("rest")
        assert told["begun"] == told["ended"]
        lost = {"locate_timeout", "no_controller", "peer_dead"}
        assert set(told["causes"]) <= INNOCENT | lost, told
        assert three.all_agree()["keys"] > 0


def test_one_that_is_started_late_is_ready_and_whole() -> None:
    with Three(6, SETTINGS, late=True) as three:
        three.all_ask(0, 1)
        three.ask_more(MORE)
        three.start(2)
        three.all_ask(0, 1, 2)
        for i in (0, 1):
            three.strike("killed", i)
        three.all_ask(2)  # it alone knows all that was stored before it came
        three.ask_more(MORE)
        for i in (0, 1):
            three.heal("killed", i)
        three.all_ask(0, 1, 2)
        innocent(three.fleet("rest"))
        assert three.all_agree()["keys"] > 0
