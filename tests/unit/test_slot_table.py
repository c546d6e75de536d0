"""The slot table's life, told in small numbers (DESIGN.md 5).

reserve() -> admit() or abort(); retire -> revive or reuse; pins; epochs.
What controllers hear of it: test_slot_table_changes.py.
"""

from __future__ import annotations

import struct
import threading

import pytest
from lmkv._native import SlotTable

from tests.slot_tables import counters, keys, make, place, store


def numbers(raw: bytes) -> list[int]:
    return [int.from_bytes(raw[i : i + 16], "little") for i in range(0, len(raw), 16)]


def slots(places: bytes) -> list[int]:
    return [first // 16 for first, *_ in struct.iter_unpack("<IBBH", places)]


def readable(table: SlotTable) -> set[int]:
    table.take_changes()
    return set(numbers(table.slice(0, 16 * table.capacity)[0]))


# ---------------------------------------------------------------- reserve, admit, abort


def test_only_admitted_slots_are_found() -> None:
    table = make(4)
    places, counts = table.reserve(keys(1, 2), 0.0)
    assert (slots(places), counts) == ([0, 1], counters(1, 2))
    assert table.lookup(keys(1, 2)) == 0
    assert table.contains(keys(1, 2, 3)) == bytes([2, 2, 0])
    assert table.admit(places, counts) == 2
    assert table.contains(keys(1, 2, 3)) == bytes([1, 1, 0])
    assert table.lookup(keys(1, 2, 3)) == 2
    assert table.places(keys(1, 2, 3)) == (places, counts, 2)


def test_a_prefix_ends_at_the_first_hole() -> None:
    table = make(4)
    store(table, 1, 3)
    assert table.lookup(keys(1, 2, 3)) == 1
    assert table.lookup(keys(2, 3)) == 0
    assert table.lookup(b"") == 0


def test_an_aborted_slot_is_free_and_is_not_admitted() -> None:
    table = make(2)
    got = table.reserve(keys(1, 2), 0.0)
    table.abort(*got)
    assert table.granules()["free"] == 32
    assert table.admit(*got) == 0
    assert table.lookup(keys(1)) == 0
    assert slots(store(table, 1)) == [0]


def test_a_slot_in_limbo_is_not_used_until_its_end() -> None:
    table = make(2)
    got = table.reserve(keys(1, 2), 0.0)
    table.abort(*got, limbo=True)
    assert table.granules()["limbo"] == 32
    assert table.reserve(keys(3), 0.0) is None
    table.end_limbo(got[0][:8], got[1][:4])
    assert slots(store(table, 3)) == [0]
    assert table.reserve(keys(4), 0.0) is not None  # evicts 3; slot 1 stays in limbo
    assert table.granules()["limbo"] == 16


def test_a_late_end_of_limbo_frees_no_newer_life() -> None:
    table = make(1)
    got = table.reserve(keys(1), 0.0)
    table.abort(*got, limbo=True)
    table.end_limbo(*got)
    again = table.reserve(keys(2), 0.0)
    table.end_limbo(*got)
    table.abort(*got)
    assert table.granules()["reserved"] == 16
    assert table.admit(*got) == 0
    assert table.admit(*again) == 1


@pytest.mark.parametrize(
    ("asked", "word"), [((1,), "readable"), ((2,), "reserved"), ((3, 3), "twice")]
)
def test_a_key_that_is_taken_is_refused_and_nothing_changes(
    asked: tuple[int, ...], word: str
) -> None:
    table = make(8)
    store(table, 1)
    table.reserve(keys(2), 0.0)
    before = table.granules()
    with pytest.raises(ValueError, match=word):
        table.reserve(keys(5, *asked), 0.0)
    assert table.granules() == before
    assert table.contains(keys(5)) == bytes([0])


def test_no_room_is_a_return_value() -> None:
    table = make(2)
    assert table.reserve(keys(1, 2, 3), 0.0) is None
    got = table.reserve(keys(1, 2), 0.0)
    assert table.reserve(keys(3), 0.0) is None
    table.admit(*got)
    assert table.reserve(keys(3), 0.0) is not None


# ---------------------------------------------------------------- places


def test_consecutive_keys_get_consecutive_slots_of_one_segment() -> None:
    table = SlotTable(8, 4)
    table.grow(8)
    table.abort(*table.reserve(keys(1), 0.0))
    held = [table.reserve(keys(10 + i), 0.0) for i in range(8)]
    for i in (0, 2, 3, 4, 5, 6):  # free runs: 0, then 2-3 | 4-6 (a run ends with its segment)
        table.abort(*held[i])
    assert slots(table.reserve(keys(1, 2, 3), 0.0)[0]) == [4, 5, 6]
    assert slots(table.reserve(keys(4), 0.0)[0]) == [0]
    assert slots(table.reserve(keys(5, 6), 0.0)[0]) == [2, 3]


def test_a_long_request_takes_the_longest_runs_first() -> None:
    table = SlotTable(8, 8)
    table.grow(8)
    held = [table.reserve(keys(10 + i), 0.0) for i in range(8)]
    for i in (0, 2, 3, 4, 7):
        table.abort(*held[i])
    assert slots(table.reserve(keys(1, 2, 3, 4), 0.0)[0]) == [2, 3, 4, 0]


def test_the_table_grows_and_never_shrinks() -> None:
    table = SlotTable(4, 2)
    assert table.reserve(keys(1), 0.0) is None
    table.grow(2)
    assert (table.usable, table.capacity) == (2, 4)
    assert slots(store(table, 1, 2)) == [0, 1]
    table.grow(4)
    assert slots(store(table, 3)) == [2]
    with pytest.raises(ValueError, match="fewer than the 4 usable"):
        table.grow(3)
    with pytest.raises(ValueError, match="5 of a capacity of 4"):
        table.grow(5)


# ---------------------------------------------------------------- age


def test_a_prefix_ages_from_its_tail() -> None:
    table = make(6, retired_share=0.0)
    store(table, 1, 2, 3)
    store(table, 11, 12, 13)
    table.lookup(keys(1, 2, 3))
    for new, gone in ((21, 13), (22, 12), (23, 11), (24, 3), (25, 2)):
        store(table, new)
        assert gone not in readable(table)
        assert new in readable(table)
    assert 1 in readable(table)


def test_a_lookup_without_use_and_a_pulled_copy_do_not_count() -> None:
    table = make(4, retired_share=0.0)
    store(table, 1)
    store(table, 2)
    store(table, 3, 4, front=False)
    table.lookup(keys(1), use=False)
    order = []
    for new in (21, 22, 23, 24):
        before = readable(table)
        store(table, new)
        order += before - readable(table)
    assert order == [4, 3, 1, 2]


def test_a_peers_use_counts() -> None:
    table = make(2, retired_share=0.0)
    first = table.reserve(keys(1), 0.0)
    table.admit(*first)
    store(table, 2)
    table.touch(*first)
    table.touch(place(1), counters(77))  # another life: ignored
    table.touch(place(1000), counters(1))
    store(table, 3)
    assert readable(table) == {1, 3}


# ---------------------------------------------------------------- retire, revive, reuse


def test_a_retired_slot_is_revived_by_a_lookup() -> None:
    table = make(4)
    places = store(table, 1, 2)
    table.take_changes()
    assert table.retire(keys(1, 2, 9)) == 2
    assert table.granules()["retired"] == 32
    assert [change[0] for change in table.take_changes()] == [False]
    assert table.contains(keys(1, 2)) == bytes([0, 0])
    assert table.lookup(keys(1, 2), use=False) == 0
    assert table.pin(keys(1, 2)) == (b"", b"", 0)
    assert table.lookup(keys(1, 2)) == 2
    assert table.places(keys(1, 2)) == (places, counters(1, 2), 2)
    [(announced, who, where, when)] = table.take_changes()
    assert announced and sorted(numbers(who)) == [1, 2]
    assert sorted(slots(where)) == [0, 1] and sorted(when) == sorted(counters(1, 2))


def test_wrong_bytes_are_not_revived() -> None:
    table = make(4)
    store(table, 1, 2)
    assert table.retire(keys(1), revivable=False) == 1
    assert table.granules()["retired"] == 16
    assert table.lookup(keys(1, 2)) == 0
    assert table.lookup(keys(2)) == 1
    assert store(table, 1) is not None  # stored again


def test_reuse_takes_the_oldest_retired_slot() -> None:
    table = make(4, retired_share=0.0)
    store(table, 1, 2, 3, 4)
    table.retire(keys(3))
    table.retire(keys(1))
    assert slots(store(table, 5)) == [2]
    assert slots(store(table, 6)) == [0]
    assert table.lookup(keys(3)) == 0  # overwritten: no more to revive
    assert table.lookup(keys(2)) == 1


def test_consecutive_keys_get_what_is_consecutive_among_the_oldest() -> None:
    table = make(4, retired_share=0.0)
    store(table, 1, 2, 3, 4)
    table.retire(keys(2, 1, 3))
    assert slots(store(table, 5, 6, 7)) == [0, 1, 2]


def test_a_new_slot_for_a_retired_key_takes_its_name() -> None:
    table = make(4)
    store(table, 1)
    table.retire(keys(1))
    got = table.reserve(keys(1), 0.0)
    assert slots(got[0]) == [1]
    assert table.lookup(keys(1)) == 0
    table.abort(*got)
    assert table.lookup(keys(1)) == 0
    assert slots(store(table, 1)) == [1]


def test_the_fifo_is_filled_ahead_of_need() -> None:
    table = make(100, retired_share=0.03)
    store(table, *range(97))
    store(table, 97)
    assert table.granules()["retired"] == 16  # two free and one retired are three
    store(table, 101, 102, now=1.0)
    assert table.granules()["retired"] == 3 * 16
    store(table, 103, now=2.0)
    assert table.granules()["retired"] == 3 * 16
    assert table.lookup(keys(0)) == 1


def test_a_burst_that_reuses_young_slots_fills_twice_as_far() -> None:
    table = make(100, retired_share=0.03, reuse_age=0.1)
    store(table, *range(100))
    store(table, 101, 102, 103, now=10.0)
    assert table.granules()["retired"] == 6 * 16
    store(table, 104, 105, 106, now=10.05)  # takes what was retired at 10.0
    assert table.granules()["retired"] == 6 * 16
    store(table, 107, 108, 109, 110, now=11.0)  # all old enough: back to three
    assert table.granules()["retired"] == 3 * 16


# ---------------------------------------------------------------- pins


def test_a_pinned_slot_is_never_taken_for_room() -> None:
    table = make(2)
    store(table, 1, 2)
    assert table.pin(keys(1, 2, 3)) == (place(0) + place(1), counters(1, 2), 2)
    assert table.pin(keys(1))[2] == 1
    assert table.pins == 3
    assert table.granules()["pinned"] == 32
    assert table.reserve(keys(3), 0.0) is None
    places, counts, _ = table.places(keys(1, 2))
    table.unpin(places, counts)
    assert table.pins == 1
    table.unpin(place(1), counters(2))  # not pinned any more: ignored
    table.unpin(place(0), counters(9))
    assert table.pins == 1
    assert slots(store(table, 3)) == [1]
    assert table.lookup(keys(1)) == 1


def test_a_pinned_slot_that_is_retired_goes_with_its_last_pin() -> None:
    """A reader found its bytes to be wrong, while another one still reads them."""
    table = make(2)
    store(table, 1)
    table.pin(keys(1))
    table.pin(keys(1))
    places, counts, _ = table.places(keys(1))
    table.take_changes()
    assert table.retire(keys(1)) == 1
    [(announced, who, _, _)] = table.take_changes()
    assert not announced and numbers(who) == [1]
    assert table.lookup(keys(1)) == table.pin(keys(1))[2] == 0, "neither found nor revived"
    assert table.retire(keys(1)) == 0
    assert slots(store(table, 1)) == [1], "the chunk is stored anew, in another slot"
    table.unpin(places, counts)
    assert table.granules()["pinned"] == 16
    table.unpin(places, counts)
    assert table.granules()["retired"] == 16
    assert table.pins == 0
    assert slots(store(table, 2)) == [0]
    assert table.lookup(keys(1)) == 1


def test_what_is_retired_for_good_does_not_wait_to_be_revived_either() -> None:
    table = make(2)
    store(table, 1, 2)
    assert table.retire(keys(1)) == 1
    assert table.retire(keys(1, 2), revivable=False) == 1
    assert table.lookup(keys(1)) == table.lookup(keys(2)) == 0
    assert table.granules()["retired"] == 32


def test_unpinning_a_prefix_ages_it_from_its_tail() -> None:
    table = make(3, retired_share=0.0)
    store(table, 1)
    store(table, 2, 3)
    table.pin(keys(1, 2, 3))
    places, counts, _ = table.places(keys(1, 2, 3))
    table.unpin(places, counts)
    store(table, 4)
    assert readable(table) == {1, 2, 4}


# ---------------------------------------------------------------- epochs


def test_a_new_epoch_forgets_all_and_counts_from_one() -> None:
    table = make(4, retired_share=0.0)
    store(table, 1, 2)
    held = table.reserve(keys(3), 0.0)
    stuck = table.reserve(keys(4), 0.0)
    table.abort(*stuck, limbo=True)
    table.take_changes()
    table.begin_epoch()
    assert table.lookup(keys(1, 2)) == 0
    assert table.contains(keys(1, 3)) == bytes([0, 0])
    [(announced, who, _, _)] = table.take_changes()
    assert not announced and sorted(numbers(who)) == [1, 2]
    assert table.admit(*held) == 0
    assert table.granules() == {
        "free": 0, "reserved": 16, "readable": 0, "pinned": 0, "retired": 32, "limbo": 16,
    }  # fmt: skip
    got = table.reserve(keys(1, 3), 0.0)
    assert got[1] == counters(1, 2)
    assert set(slots(got[0])) == {0, 1}
    table.abort(*held)
    table.end_limbo(*stuck)
    assert table.granules()["free"] == 32


def test_a_pin_outlives_its_epoch() -> None:
    table = make(1)
    store(table, 1)
    table.pin(keys(1))
    places, counts, _ = table.places(keys(1))
    table.begin_epoch()
    assert table.lookup(keys(1)) == 0
    assert table.granules()["pinned"] == 16
    assert table.reserve(keys(2), 0.0) is None
    table.unpin(places, counts)
    assert table.pins == 0
    assert slots(store(table, 2)) == [0]


# ---------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((0, 1), "capacity: 0"),
        ((2**28 + 1, 1), "capacity: 268435457"),
        ((1, 0), "segment_slots: 0"),
        ((1, 1, 0.6), "retired_share: 0.6"),
        ((1, 1, 0.1, -1.0), "reuse_age: -1"),
    ],
)
def test_a_bad_size_is_named(arguments: tuple[float, ...], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        SlotTable(*arguments)


def test_torn_arrays_are_refused() -> None:
    table = make(1)
    with pytest.raises(ValueError, match="keys: 15 bytes"):
        table.lookup(bytes(15))
    with pytest.raises(ValueError, match="places: 7 bytes"):
        table.admit(bytes(7), b"")
    with pytest.raises(ValueError, match="counters: 2 for 1 places"):
        table.unpin(bytes(8), bytes(8))
    with pytest.raises(ValueError, match="now: nan"):
        table.reserve(keys(1), float("nan"))


def test_threads_share_a_table() -> None:
    """Each thread stores and retires its own keys; in the end all granules are accounted for."""
    table = make(64)

    def work(base: int) -> None:
        for i in range(200):
            got = table.reserve(keys(base + i), float(i))
            assert got is not None and table.admit(*got) == 1
            table.lookup(keys(base + i))

    threads = [threading.Thread(target=work, args=(1000 * t,)) for t in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sum(table.granules().values()) == 64 * 16
    assert table.granules()["reserved"] == 0


def test_ages_of_what_was_retired_for_room() -> None:
    table = SlotTable(2, 2, 0.0)
    table.grow(2)
    for number, now in ((1, 10.0), (2, 12.0)):
        table.admit(*table.reserve(keys(number), now))
    assert table.take_ages() == []
    assert table.retire(keys(1)) == 1  # by name: not for room
    assert table.take_ages() == []
    table.admit(*table.reserve(keys(3), 15.0))  # in its place
    assert table.take_ages() == []
    table.admit(*table.reserve(keys(4), 17.5))
    assert table.take_ages() == [5.5]  # key 2's
    assert table.take_ages() == []


def test_places_are_of_the_pools_tier():
    table = SlotTable(8, 8, tier=1)
    table.grow(8)
    places, counters = table.reserve(bytes(16), 0.0)
    assert places[5] == 1
    host = places[:5] + b"\0" + places[6:]
    assert table.admit(host, counters) == 0  # another place
    assert table.admit(places, counters) == 1
    with pytest.raises(ValueError, match="tier: 2 is not 0"):
        SlotTable(8, 8, tier=2)
