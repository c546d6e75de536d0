"""Pins as the instances tell of them: hold() in, pages out. A pin is the instance's, and ends with
it: tick() forgets those of instances that are gone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from heapq import nsmallest

from msgspec.structs import replace

from lmkv.controller.instance import Instance
from lmkv.core.clock import Clock
from lmkv.core.messages import Pins, PinsHeld, PinsInfo, PinState

PAGE = 250
PINS = 256  # of an instance
KEY = 64  # characters of one in hex, at most


@dataclass
class _Held:
    epoch: int
    at: float
    total: int
    pins: list[PinState]


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
        self._held[instance.name] = _Held(instance.epoch, self._clock(), total, pins)

    def tick(self, instances: Mapping[str, Instance]) -> None:
        for name, held in list(self._held.items()):
            instance = instances.get(name)
            if instance is None or instance.state == "dead" or instance.epoch != held.epoch:
                del self._held[name]

    def page(self, question: Pins) -> PinsInfo:
        now = self._clock()
        mine = question.instance
        held = [each for name, each in self._held.items() if mine in ("", name)]
        found = {_place(pin): _left(pin, now - each.at) for each in held for pin in each.pins}
        limit = min(max(1, question.limit), PAGE)
        page = nsmallest(limit + 1, (name for name in found if name > question.after))
        following = page[limit - 1] if len(page) > limit else ""
        total = sum(each.total for each in held)
        return PinsInfo(question.request, [found[n] for n in page[:limit]], following, total)


def _place(pin: PinState) -> str:
    return f"{pin.instance} {pin.id}"


def _left(pin: PinState, age: float) -> PinState:
    """One whose time is over ends as soon as its instance says so."""
    return replace(pin, left=max(0.001, pin.left - age)) if pin.left else pin
