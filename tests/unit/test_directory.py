"""The directory, told in small numbers: holders, stamps, sums, whom locate() names (DESIGN 6)."""

from __future__ import annotations

import struct
import time
from array import array
from random import Random

import pytest
from lmkv._native import Directory, SlotTable
from lmkv.core.clock import Deadline


def keys(*numbers: int) -> bytes:
    return b"".join(n.to_bytes(16, "little") for n in numbers)


def places(*slots: int) -> bytes:
    return b"".join(struct.pack("<IBBH", 16 * slot, 16, 0, 0) for slot in slots)


def counters(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


def hold(directory: Directory, instance: int, *numbers: int) -> int:
    """The instance announces these keys, key k at slot k with counter k."""
    return directory.announce(instance, keys(*numbers), places(*numbers), counters(*numbers))


def ask(directory: Directory, asker: int, *numbers: int, **options: object):
    """Runs and alternates of a locate without the offsets, which are checked against the arrays."""
    runs, alternates, where, when, found, _ = directory.locate(keys(*numbers), asker, **options)
    for first, n, _, offset in runs + alternates:
        part = numbers[first : first + n]
        assert where[8 * offset : 8 * (offset + n)] == places(*part)
        assert when[4 * offset : 4 * (offset + n)] == counters(*part)
    assert found == sum(run[1] for run in runs)
    return [run[:3] for run in runs], [run[:3] for run in alternates]


def make(*hosts: int, group: int = 0) -> tuple[Directory, list[int]]:
    directory = Directory()
    return directory, [directory.add(group, host) for host in hosts]


# ---------------------------------------------------------------- announce, retract


def test_a_key_has_the_holders_that_announced_it() -> None:
    directory, (a, b) = make(0, 1)
    assert hold(directory, a, 1, 2) == 2
    assert hold(directory, b, 2) == 1
    assert hold(directory, b, 2) == 0
    assert [directory.holders(keys(k)) for k in (1, 2, 3)] == [[a], [a, b], []]
    assert len(directory) == 2
    assert directory.sums(a)[0] == 2


def test_a_key_announced_again_moves() -> None:
    directory, (a,) = make(0)
    hold(directory, a, 1)
    assert directory.announce(a, keys(1), places(7), counters(9)) == 0
    assert directory.retract(a, keys(1), places(1), counters(1)) == 0  # late: it is not there now
    assert directory.locate(keys(1), -1)[2:4] == (places(7), counters(9))
    assert directory.retract(a, keys(1), places(7), counters(9)) == 1
    assert (len(directory), directory.sums(a)) == (0, (0, 0, 0))


def test_a_retraction_takes_only_what_it_names() -> None:
    directory, (a, b) = make(0, 1)
    hold(directory, a, 1)
    hold(directory, b, 1)
    assert directory.retract(a, keys(1), places(1), counters(2)) == 0
    assert directory.retract(a, keys(1), places(2), counters(1)) == 0
    assert directory.retract(a, keys(2), places(2), counters(2)) == 0
    assert directory.retract(a, keys(1), places(1), counters(1)) == 1
    assert directory.holders(keys(1)) == [b]
    assert directory.retract(b, keys(1), places(1), counters(1)) == 1
    assert directory.holders(keys(1)) == []


def test_a_key_of_many_holders() -> None:
    directory, instances = make(*range(40))
    for i in reversed(instances):
        hold(directory, i, 1, 2)
    assert directory.holders(keys(1)) == instances
    for i in instances[1:]:
        assert directory.retract(i, keys(1), places(1), counters(1)) == 1
    assert directory.holders(keys(1)) == instances[:1]
    assert directory.holders(keys(2)) == instances


def test_sums_are_the_slot_tables() -> None:
    """A directory fed from a slot table's changes has its sums; one dropped change shows."""
    table = SlotTable(64, 64)
    table.grow(64)
    directory, (a, b) = make(0, 1)
    for round_ in range(20):
        got = table.reserve(keys(*range(10 * round_, 10 * round_ + 10)), float(round_))
        table.admit(*got)
        for n, (announced, *arrays) in enumerate(table.take_changes()):
            apply = directory.announce if announced else directory.retract
            apply(a, *arrays)
            if (round_, n) != (19, 0):
                apply = directory.announce if announced else directory.retract
                apply(b, *arrays)
    assert directory.sums(a) == table.sums()
    assert directory.sums(b) != table.sums()


# ---------------------------------------------------------------- drop, sweep


def test_a_dropped_instance_is_gone_at_once_and_swept_later() -> None:
    directory, (a, b) = make(0, 1)
    hold(directory, a, *range(100))
    hold(directory, b, *range(50, 60))
    directory.drop(a)
    assert len(directory) == 10
    assert directory.holders(keys(1)) == []
    assert directory.holders(keys(55)) == [b]
    with pytest.raises(ValueError, match=f"instance: {a} is not"):
        directory.sums(a)
    c = directory.add(0, 0)
    assert c not in (a, b)  # entries of a are still there
    assert not directory.sweep(1)
    for _ in range(1000):
        if directory.sweep(1):
            break
    assert directory.sweep(1)
    assert len(directory) == 10
    assert directory.add(0, 0) == a
    assert directory.holders(keys(1)) == []


def test_an_announcement_replaces_a_hidden_holder() -> None:
    directory, (a, b) = make(0, 1)
    hold(directory, a, 1)
    directory.drop(a)
    assert hold(directory, b, 1) == 1
    assert directory.holders(keys(1)) == [b]
    assert directory.sweep(0)  # nothing of a is left
    assert directory.add(0, 0) == a


def test_memory_stays_below_forty_bytes_a_key_and_is_used_again() -> None:
    directory, (a,) = make(0)
    n = 4096
    arrays = places(*range(n)), counters(*range(n))
    high = [b"".join((i << 64 | k).to_bytes(16, "little") for k in range(n)) for i in range(100)]
    for part in high:
        directory.announce(a, part, *arrays)
    grown = directory.bytes
    # 512 sub-tables of whole pages of 496 entries, and slabs of 2 MiB, blur it at this size.
    assert grown <= 40 * len(directory) + 512 * 16384 + (4 << 20)
    for part in high:
        assert directory.retract(a, part, *arrays) == n
    assert len(directory) == 0
    for part in high:
        directory.announce(a, part, *arrays)
    assert directory.bytes <= grown + (4 << 20)  # one slab more, and one that is made ready


def many(slices: int) -> list[bytes]:
    """Keys in slices of 4,096."""
    chance = Random(1)
    return [chance.randbytes(16 * 4096) for _ in range(slices)]


def synced(directory: Directory, instance: int, slices: list[bytes]) -> None:
    n, end = 4096, 16 * 4096
    directory.begin_sync(instance)
    for part in slices:
        directory.sync_slice(instance, 0, end, part, places(*range(n)), counters(*range(n)))
    directory.end_sync(instance)


def test_a_table_grows_at_once_for_what_is_expected() -> None:
    slices = many(250)
    moved = []
    for expected in (0, 250 * 4096):
        directory, (a,) = make(0)
        directory.expect(a, expected)
        synced(directory, a, slices)
        assert len(directory) == 250 * 4096
        assert directory.holders(slices[50][:16]) == [a]
        moved.append(directory.moved)
    assert moved[0] > 2 * 250 * 4096  # by steps each key moves more than twice
    assert moved[1] <= 250 * 4096 / 2


def test_no_slice_waits_for_the_growth_of_the_whole_table() -> None:
    n, slices = 4096, many(500)
    directory, (a,) = make(0)
    directory.expect(a, 1200 * n)
    directory.begin_sync(a)
    most = before = 0
    for part in slices:
        directory.sync_slice(a, 0, 16 * n, part, places(*range(n)), counters(*range(n)))
        most, before = max(most, directory.moved - before), directory.moved
    assert 0 < most < 8 * n
    assert directory.moved > 10 * most


def test_memory_is_made_ready_for_what_is_expected() -> None:
    directory, (a,) = make(0)
    assert not directory.lacking
    directory.expect(a, 1 << 24)
    until = Deadline(60.0)
    while directory.lacking:
        assert not until.over
        time.sleep(0.001)
    assert directory.bytes >= 64 << 21  # what a first slice takes
    directory.expect(a, 0)
    assert not directory.lacking


@pytest.mark.parametrize("late", [False, True], ids=["never", "dropped"])
def test_what_was_expected_and_does_not_come_costs_nothing_in_the_end(late: bool) -> None:
    slices = many(40)
    plain, (a,) = make(0)
    synced(plain, a, slices)
    directory, (a, b) = make(0, 1)
    directory.expect(a, 40 * 4096)
    directory.expect(b, 1 << 63)  # whatever is said, little is believed
    synced(directory, a, slices)
    assert 2 * plain.bytes < directory.bytes < 8 * plain.bytes + (128 << 21)
    if late:
        directory.drop(b)
    else:
        directory.begin_sync(b)
        assert directory.end_sync(b) == 0
    steps = 0
    while not directory.sweep(0):
        steps += 1
    assert 0 < steps <= 512  # a sub-table each
    assert directory.bytes <= plain.bytes + (4 << 20)
    assert len(directory) == 40 * 4096
    assert directory.holders(slices[39][-16:]) == [a]


# ---------------------------------------------------------------- full sync


def test_a_sync_states_what_there_is() -> None:
    directory, (a, b) = make(0, 1)
    hold(directory, a, 1, 2, 3, 4)
    hold(directory, b, 3)
    directory.begin_sync(a)
    directory.sync_slice(a, 0, 32, keys(1), places(1), counters(1))
    hold(directory, a, 9)  # interleaved
    assert directory.holders(keys(2)) == [a]  # visible until the end
    assert directory.sums(a)[0] == 5
    directory.sync_slice(a, 32, 64, keys(3), places(3), counters(8))
    assert directory.end_sync(a) == 2
    assert [directory.holders(keys(k)) for k in (1, 2, 3, 4, 9)] == [[a], [], [a, b], [], [a]]
    assert directory.retract(a, keys(2), places(2), counters(2)) == 0
    other, (c,) = make(0)
    other.announce(c, keys(1, 3, 9), places(1, 3, 9), counters(1, 8, 9))
    assert directory.sums(a) == other.sums(c)
    assert hold(directory, a, 2) == 1


def test_a_slice_says_what_was_missing_and_what_had_moved() -> None:
    directory, (a,) = make(0)
    hold(directory, a, 1, 2)
    directory.begin_sync(a)
    numbers = range(1, 1001)
    arrays = keys(*numbers), places(2, *numbers[1:]), counters(*numbers)
    found = directory.sync_slice(a, 0, 16 * 1001, *arrays)
    assert found == (998, 1, keys(*range(3, 3 + 256)), keys(1))  # the first 256 are named
    assert directory.sync_slice(a, 0, 16 * 1001, *arrays) == (0, 0, b"", b"")


def test_a_retraction_during_a_sync_counts() -> None:
    directory, (a,) = make(0)
    hold(directory, a, 1, 2)
    directory.begin_sync(a)
    directory.sync_slice(a, 0, 64, keys(1, 2), places(1, 2), counters(1, 2))
    assert directory.retract(a, keys(1), places(1), counters(1)) == 1
    assert directory.end_sync(a) == 0
    assert directory.sums(a)[0] == 1


def test_a_sync_that_begins_again_forgets_what_the_first_one_stated() -> None:
    directory, (a,) = make(0)
    directory.begin_sync(a)
    directory.sync_slice(a, 0, 32, keys(1), places(1), counters(1))
    directory.begin_sync(a)
    assert directory.holders(keys(1)) == [a]
    assert directory.end_sync(a) == 1
    assert directory.holders(keys(1)) == []


def test_stamps_begin_again_when_they_run_out() -> None:
    directory, (a,) = make(0)
    hold(directory, a, 1, 2)
    directory.begin_sync(a)
    directory.sync_slice(a, 0, 64, keys(2), places(2), counters(2))
    directory.end_sync(a)  # key 1 is hidden and is not swept
    for _ in range(65533):
        directory.begin_sync(a)
    hold(directory, a, 3)
    directory.begin_sync(a)
    directory.begin_sync(a)  # beyond the last stamp
    assert [directory.holders(keys(k)) for k in (1, 2, 3)] == [[], [a], [a]]
    directory.sync_slice(a, 0, 64, keys(3), places(3), counters(3))
    assert directory.end_sync(a) == 1
    assert [directory.holders(keys(k)) for k in (1, 2, 3)] == [[], [], [a]]


def test_a_slice_is_checked() -> None:
    directory, (a,) = make(0)
    with pytest.raises(ValueError, match="has begun no sync"):
        directory.sync_slice(a, 0, 16, b"", b"", b"")
    with pytest.raises(ValueError, match="has begun no sync"):
        directory.end_sync(a)
    directory.begin_sync(a)
    with pytest.raises(ValueError, match=r"first granule 32 lies outside \[0, 32\)"):
        directory.sync_slice(a, 0, 32, keys(1, 2), places(1, 2), counters(1, 2))
    assert directory.holders(keys(1)) == []
    with pytest.raises(ValueError, match="33 lies after last, 32"):
        directory.sync_slice(a, 33, 32, b"", b"", b"")


# ---------------------------------------------------------------- locate


def test_sparse_is_every_key_that_somebody_has() -> None:
    directory, (a, b, asker) = make(0, 1, 2)
    hold(directory, a, 1, 2, 5)
    hold(directory, b, 4, 5)
    runs, alternates = ask(directory, asker, 0, 1, 2, 3, 4, 5, sparse=True)
    assert (runs, alternates) == ([(1, 2, a), (4, 2, b)], [(5, 1, a)])
    assert ask(directory, asker, 0, 3, sparse=True) == ([], [])
    assert ask(directory, asker, 0, 1, 2) == ([], []), "a prefix has no gap"


def test_a_prefix_at_one_holder_is_one_run() -> None:
    directory, (asker, a) = make(0, 1)
    hold(directory, a, 1, 2, 3, 5)
    assert ask(directory, asker, 1, 2, 3, 4, 5) == ([(0, 3, a)], [])
    assert ask(directory, asker, 4, 5) == ([], [])
    assert directory.locate(b"", asker) == ([], [], b"", b"", 0, -1)


def test_the_asker_is_never_a_holder() -> None:
    directory, (asker, a) = make(0, 0)
    hold(directory, asker, 1, 2)
    hold(directory, a, 1)
    assert ask(directory, asker, 1, 2) == ([(0, 1, a)], [])
    assert ask(directory, -1, 1, 2) == ([(0, 2, asker)], [(0, 1, a)])


def test_a_break_takes_the_longest_stretch() -> None:
    directory, (asker, a, b, c) = make(0, 1, 2, 3)
    hold(directory, a, 1, 2)
    hold(directory, b, 2, 3, 4)
    hold(directory, c, 3)
    assert ask(directory, asker, 1, 2, 3, 4) == ([(0, 2, a), (2, 2, b)], [(1, 1, b), (2, 1, c)])


def test_the_askers_host_is_preferred() -> None:
    directory, (asker, far, near) = make(0, 1, 0)
    hold(directory, far, 1, 2, 3)
    hold(directory, near, 1, 2, 3)
    assert ask(directory, asker, 1, 2, 3) == ([(0, 3, near)], [(0, 3, far)])
    assert ask(directory, -1, 1, 2, 3) == ([(0, 3, far)], [(0, 3, near)])


def test_a_loaded_holder_is_spared() -> None:
    directory, (asker, a, b) = make(0, 1, 2)
    hold(directory, a, 1, 2)
    hold(directory, b, 1, 2)
    assert ask(directory, asker, 1, 2)[0] == [(0, 2, a)]
    for loads in ([0.0, 1.0, 0.5], array("d", [0.0, 1.0, 0.5]), (0, 1)):
        assert ask(directory, asker, 1, 2, loads=loads) == ([(0, 2, b)], [(0, 2, a)])


def test_a_holder_that_is_named_already_is_preferred() -> None:
    directory, (asker, a, b, c) = make(0, 1, 2, 3)
    hold(directory, a, 2, 4)
    hold(directory, b, 1, 2, 4)
    hold(directory, c, 3)
    assert [run[2] for run in ask(directory, asker, 1, 2, 3, 4)[0]] == [b, c, b]


def test_many_holders_do_not_hide_the_one_that_reaches_the_end() -> None:
    directory, (asker, *others) = make(*range(30))
    for i in others:
        hold(directory, i, 1, 2)
    hold(directory, others[20], 3, 4)
    runs, alternates = ask(directory, asker, 1, 2, 3, 4)
    assert runs == [(0, 4, others[20])]
    assert alternates == [(0, 2, others[0])]


def test_a_holder_to_avoid_is_not_named() -> None:
    directory, (asker, a, b) = make(0, 1, 2)
    hold(directory, a, 1, 2)
    hold(directory, b, 1)
    assert ask(directory, asker, 1, 2, avoid=[a, 999]) == ([(0, 1, b)], [])
    assert ask(directory, asker, 1, 2) == ([(0, 2, a)], [(0, 1, b)])


def test_an_incompatible_holder_is_named_as_such() -> None:
    directory, (asker, a) = make(0, 1)
    other = directory.add(1, 0)
    hold(directory, a, 1)
    hold(directory, other, 1, 2, 3)
    *_, found, incompatible = directory.locate(keys(1, 2, 3), asker)
    assert (found, incompatible) == (1, other)
    assert ask(directory, asker, 1, 2, 3) == ([(0, 1, a)], [])
    assert directory.locate(keys(1, 7), asker)[4:] == (1, -1)
    assert ask(directory, -1, 1, 2, 3)[0] == [(0, 3, other)]


# ---------------------------------------------------------------- misuse


def test_bad_arguments_are_named() -> None:
    directory, (a,) = make(0)
    for call in (
        lambda: directory.drop(7),
        lambda: directory.announce(7, b"", b"", b""),
        lambda: directory.retract(-1, b"", b"", b""),
        lambda: directory.begin_sync(7),
        lambda: directory.locate(b"", 7),
    ):
        with pytest.raises(ValueError, match="is not in the directory"):
            call()
    with pytest.raises(ValueError, match="places: 1 for 2 keys"):
        directory.announce(a, keys(1, 2), places(1), counters(1, 2))
    with pytest.raises(ValueError, match="counters: 1 for 2 keys"):
        directory.retract(a, keys(1, 2), places(1, 2), counters(1))
    with pytest.raises(ValueError, match="key: 32 bytes"):
        directory.holders(keys(1, 2))
    for load in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="loads: "):
            directory.locate(keys(1), -1, [load])
