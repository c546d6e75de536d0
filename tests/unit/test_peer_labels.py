"""Peers make up their names; the series that come of them stay few and readable."""

from __future__ import annotations

from lmkv.core.clock import ManualClock
from lmkv.core.metrics import OTHER
from lmkv.core.peer_labels import LONGEST, PeerLabels


def test_as_many_as_may_be_have_a_label_and_all_others_share_one() -> None:
    labels = PeerLabels(ManualClock(), most=2)
    assert [labels.of(name) for name in ("a", "b", "c", "a", "d")] == ["a", "b", OTHER, "a", OTHER]
    assert labels.take_gone() == []


def test_a_label_that_was_not_used_for_long_makes_room() -> None:
    clock = ManualClock()
    labels = PeerLabels(clock, most=2, idle=600.0)
    assert [labels.of("a"), labels.of("b")] == ["a", "b"]
    clock.advance(599)
    assert [labels.of("a"), labels.of("c")] == ["a", OTHER]
    clock.advance(1)
    assert [labels.of("c"), labels.of("b"), labels.of("a")] == ["c", OTHER, "a"]
    assert (labels.take_gone(), labels.take_gone()) == (["b"], [])


def test_where_series_cannot_be_removed_a_label_is_for_ever() -> None:
    clock = ManualClock()
    labels = PeerLabels(clock, most=1, idle=None)
    assert labels.of("a") == "a"
    clock.advance(1e9)
    assert (labels.of("b"), labels.take_gone()) == (OTHER, [])


def test_what_does_not_print_and_what_is_long_is_not_shown() -> None:
    labels = PeerLabels(ManualClock())
    assert labels.of('a\n} 1\x00"\u202e') == 'a?} 1?"?'
    assert labels.of("ä" * 1000) == "ä" * LONGEST
