"""Hot prefixes: counted by their last key, in bounded room."""

from __future__ import annotations

from lmkv.controller import hot
from lmkv.controller.hot import HotPrefixes
from lmkv.core.clock import ManualClock


def key(number: int) -> bytes:
    return number.to_bytes(16, "little")


def ranked(prefixes: HotPrefixes) -> list[tuple[int, float]]:
    return [(int.from_bytes(key, "little"), each.hits) for key, each in prefixes.ranked()]


def test_the_most_located_come_first() -> None:
    prefixes = HotPrefixes(ManualClock())
    for number in (1, 2, 2, 3, 2, 3):
        prefixes.note(key(number), "m", 16 * number)
    assert ranked(prefixes) == [(2, 3), (3, 2), (1, 1)]
    assert (prefixes.ranked()[0][1].model, prefixes.ranked()[0][1].tokens) == ("m", 32)


def test_a_hit_counts_half_ten_minutes_later() -> None:
    clock = ManualClock()
    prefixes = HotPrefixes(clock)
    for number in (1, 1, 1):
        prefixes.note(key(number), "m", 16)
    clock.advance(hot.HALF_LIFE)
    prefixes.tick()
    prefixes.tick()
    for number in (2, 2):
        prefixes.note(key(number), "m", 16)
    assert ranked(prefixes) == [(2, 2), (1, 1.5)]


def test_a_flood_of_new_prefixes_neither_grows_it_nor_drives_out_a_hot_one() -> None:
    prefixes = HotPrefixes(ManualClock())
    for _ in range(2):
        prefixes.note(key(0), "m", 16)
    for number in range(1, 3 * hot.MOST):
        prefixes.note(key(number), "m", 16)
    assert len(prefixes.ranked()) == hot.MOST
    prefixes.tick()
    assert len(prefixes.ranked()) == hot.KEPT
    assert ranked(prefixes)[0] == (0, 2)
    prefixes.note(key(1 << 100), "m", 16)  # there is room again
    assert ((1 << 100), 1) in ranked(prefixes)
