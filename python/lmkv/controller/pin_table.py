"""Pins as the instances tell of them: hold() in, pages out. A pin is the instance's, and ends with
it: tick() forgets those of instances that are gone."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from heapq import merge
from itertools import islice
from operator import itemgetter

from msgspec.structs import replace

from lmkv.controller.instance import Instance
from lmkv.core.clock import Clock
from lmkv.core.messages import Pins, PinsHeld, PinsInfo, PinState

PAGE = 250
PINS = 256  # of an instance
MOST = (1 << 32) - 1  # of a total that is told
KEY = 64  # characters of one in hex, at most


@dataclass
class _Held:
    epoch: int
    at: float
    total: int
    pins: dict[str, PinState]  # by place
    order: list[str]  # places

    def after(self, place: str) -> Iterator[tuple[str, _Held]]:
        for at in range(bisect_right(self.order, place), len(self.order)):
            yield self.order[at], self

    def left(self, place: str, now: float) -> PinState:
        """One whose time is over ends as soon as its instance says so."""
        pin = self.pins[place]
        return replace(pin, left=max(0.001, pin.left - (now - self.at))) if pin.left else pin


class PinTable:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._held: dict[str, _Held] = {}  # by instance

    @property
    def total(self) -> int:
        return sum(held.total for held in self._held.values())

    def hold(self, instance: Instance, message: PinsHeld) -> None:
        """All pins of an instance. Raises ValueError for those of another one."""
        if any(pin.instance != instance.name for pin in message.pins):
            raise ValueError(f"pins: {instance.name!r} tells of those of another instance")
        pins = message.pins[:PINS]
        if any(len(pin.first) > KEY for pin in pins):
            raise ValueError("first: allowed is a key in hex")
        total = max(message.total, len(message.pins))
        places = {f"{pin.instance} {pin.id}": pin for pin in pins}
        self._held[instance.name] = _Held(
            instance.epoch, self._clock(), total, places, sorted(places)
        )

    def tick(self, instances: Mapping[str, Instance]) -> None:
        for name, held in list(self._held.items()):
            instance = instances.get(name)
            if instance is None or instance.state == "dead" or instance.epoch != held.epoch:
                del self._held[name]

    def page(self, question: Pins) -> PinsInfo:
        now, mine = self._clock(), question.instance
        held = [each for name, each in self._held.items() if mine in ("", name)]
        limit = min(max(1, question.limit), PAGE)
        # No more than a page is looked at: there may be many thousands.
        following = merge(*(each.after(question.after) for each in held), key=itemgetter(0))
        page = list(islice(following, limit + 1))
        pins = [each.left(place, now) for place, each in page[:limit]]
        last = page[limit - 1][0] if len(page) > limit else ""
        total = min(sum(each.total for each in held), MOST)
        return PinsInfo(question.request, pins, last, total)
