"""How long an announcement takes: a sample of chunks is looked up until they are there."""

from __future__ import annotations

from collections import deque
from functools import partial

from lmkv.core.messages import Lookup, LookupInfo
from lmkv.sim.hub import Hub, HubLink

EVERY = 0.1  # seconds between two samples
AGAIN = 0.001  # seconds after which it is asked again
LONGEST = 5.0  # then it is given up, and counted


class Sampler:
    """`take(instance, key)` for every chunk that has just been stored."""

    def __init__(self, addresses: list[str], hub: Hub) -> None:
        self.seconds: deque[float] = deque(maxlen=1 << 16)
        self.never = 0
        self._hub = hub
        self._next = 0.0
        self._looks = [_Look(address, hub, self) for address in addresses]

    def take(self, instance: str, key: bytes) -> None:
        now = self._hub.clock()
        if now >= self._next:
            self._next = now + EVERY
            for look in self._looks:
                look.begin(instance, key)

    def close(self) -> None:
        for look in self._looks:
            look.close()


class _Look:
    """At one controller, one sample at a time."""

    def __init__(self, address: str, hub: Hub, sampler: Sampler) -> None:
        self._hub = hub
        self._sampler = sampler
        self._link = HubLink(address, hub, self._heard, urgent=True)
        self._number = 0
        self._sample: tuple[str, bytes, float] | None = None

    def begin(self, instance: str, key: bytes) -> None:
        if self._sample is None:
            self._sample = instance, key, self._hub.clock()
            self._ask()

    def _ask(self) -> None:
        if self._sample is None:
            return
        instance, key, began = self._sample
        if self._hub.clock() - began > LONGEST:
            self._sampler.never += 1
            self._sample = None
            return
        self._number += 1
        self._link.send(Lookup(self._number, like=instance), key)
        self._hub.after(LONGEST, partial(self._lost, self._number))
        self._link.look_again()

    def _lost(self, number: int) -> None:
        if number == self._number:
            self._ask()

    def _heard(self) -> None:
        for message, _ in self._link.receive():
            if self._sample is None or getattr(message, "request", 0) != self._number:
                continue
            instance, _, began = self._sample
            if isinstance(message, LookupInfo) and instance in message.holders[0]:
                self._sampler.seconds.append(self._hub.clock() - began)
                self._sample = None
            else:
                self._hub.after(AGAIN, self._ask)
        self._link.look_again()

    def close(self) -> None:
        self._link.close()
