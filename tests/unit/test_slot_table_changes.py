"""What controllers hear of a slot table: changes as a difference, sums, slices (DESIGN.md 7)."""

from __future__ import annotations

import pytest

from tests.slot_tables import counters, keys, make, place, store


def test_changes_are_told_once_and_cancel_out() -> None:
    table = make(4)
    store(table, 1)
    assert table.sums() == (0, 0, 0)
    assert table.slice(0, 64) == (b"", b"", b"")
    assert table.take_changes() == [(True, keys(1), place(0), counters(1))]
    assert table.take_changes() == []
    assert table.sums()[0] == 1
    table.retire(keys(1))
    table.lookup(keys(1))
    store(table, 2)
    table.retire(keys(2))
    assert table.take_changes() == []


def test_a_reused_slot_is_retracted_with_its_old_key_before_the_new_one_is_announced() -> None:
    table = make(1)
    store(table, 1)
    table.take_changes()
    store(table, 2)
    assert table.take_changes() == [
        (False, keys(1), place(0), counters(1)),
        (True, keys(2), place(0), counters(2)),
    ]


def test_a_reused_slot_with_the_same_counter_in_a_new_epoch_is_told() -> None:
    table = make(1)
    store(table, 1)
    table.take_changes()
    table.begin_epoch()
    store(table, 2)
    assert table.take_changes() == [
        (False, keys(1), place(0), counters(1)),
        (True, keys(2), place(0), counters(1)),
    ]


def test_changes_come_in_messages_worth() -> None:
    table = make(5000)
    store(table, *range(5000))
    assert [len(who) // 16 for _, who, _, _ in table.take_changes()] == [4096, 904]


def test_a_slice_has_the_slots_that_begin_in_it() -> None:
    table = make(4)
    store(table, 1, 2, 3)
    table.take_changes()
    assert table.slice(1, 33) == (keys(2, 3), place(1) + place(2), counters(2, 3))
    assert table.slice(32, 32) == (b"", b"", b"")
    with pytest.raises(ValueError, match="33 lies after last, 32"):
        table.slice(33, 32)
