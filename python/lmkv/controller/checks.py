"""What the controller does for a command, alone or before the instance does its part.

begin() -> poll() a few times a heartbeat -> end(), once, whatever came. `Sync`: a full sync, and
what it mended. `Verify`: the directory against the slot table, which a heartbeat's sums say
exactly, and where they differ by which keys, as the sync that follows finds them; then the
instance digests slots again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Union

import msgspec

from lmkv.controller.instance import Instance
from lmkv.controller.registry import Out, Registry
from lmkv.core import wire
from lmkv.core.messages import (
    Command,
    Differing,
    Done,
    Refused,
    SlotsResult,
    SyncResult,
    Unsupported,
    VerifyResult,
)

Answer = Union[Done, Refused, Unsupported]  # to a command

SWEEP = 2.0  # seconds that a list of what is gone may take


class Work:
    def __init__(self, registry: Registry, instance: Instance, command: Command) -> None:
        self._registry = registry
        self._instance = instance
        self._command = command
        self._began = registry.clock()
        self._before = instance.drift.number  # syncs that had begun

    def begin(self) -> list[Out]:
        return []

    def poll(self) -> Answer | Command | None:
        """None: not yet. A command is the instance's part; its answer is given to `end`."""
        raise NotImplementedError

    def end(self, answer: Answer) -> Answer:
        """What whoever asked hears; also of a refusal."""
        return answer

    def _done(self, result: msgspec.Struct) -> Done:
        return Done(0, self._command.id, msgspec.msgpack.encode(result))


class Sync(Work):
    def begin(self) -> list[Out]:
        return self._registry.sync(self._instance)

    def poll(self) -> Answer | None:
        instance = self._instance
        drift = instance.ended
        if drift.number <= self._before:
            return None
        result = SyncResult(
            instance.name,
            drift.keys_before,
            drift.keys_after,
            drift.missing,
            drift.moved,
            drift.gone,
            self._registry.clock() - self._began,
        )
        return self._done(result)


class Verify(Work):
    def begin(self) -> list[Out]:
        instance = self._instance
        self._directory = self._registry.placement.directory
        self._directory.watch(instance.number, True)
        self._judged, self._drifts = instance.judged, instance.drifts
        self._compared: VerifyResult | None = None
        self._mended = float("inf")  # when the sync of a drift had ended
        return []

    def poll(self) -> Answer | Command | None:
        if self._compared is not None:
            return None  # the instance has its part
        instance = self._instance
        if instance.judged > self._judged and instance.drifts == self._drifts:
            assert instance.heartbeat is not None
            same = instance.heartbeat.count
            self._compared = VerifyResult(instance.name, same, same)
        elif instance.mended.number > self._before and self._swept():
            self._compared = self._listed()
        return None if self._compared is None else self._command

    def _swept(self) -> bool:
        """Whether the keys that are gone have been found, or were looked for long enough."""
        now = self._registry.clock()
        self._mended = min(self._mended, now)
        return self._directory.sweep(0) or now - self._mended >= SWEEP

    def _listed(self) -> VerifyResult:
        drift = self._instance.mended
        gone = self._directory.gone(self._instance.number)
        kinds = ("missing", drift.missing_keys), ("moved", drift.moved_keys), ("gone", gone)
        return VerifyResult(
            self._instance.name,
            drift.keys_before,
            drift.keys_before + drift.missing - drift.gone,
            drift.missing,
            drift.moved,
            drift.gone,
            differing=[Differing(key.hex(), how) for how, keys in kinds for key in _split(keys)],
        )

    def end(self, answer: Answer) -> Answer:
        if self._instance.number >= 0:
            self._directory.watch(self._instance.number, False)
        if not isinstance(answer, Done) or self._compared is None:
            return answer
        result = self._compared
        try:
            found = msgspec.msgpack.decode(answer.result, type=SlotsResult)
        except msgspec.MsgspecError as error:
            text = f"instance {self._instance.name!r} answered verify with no result: {error}"
            return Refused("failed", text)
        result.sampled, result.wrong = found.sampled, len(found.wrong)
        result.differing += found.wrong
        return self._done(result)


def _split(keys: bytes) -> Iterable[bytes]:
    return (keys[i : i + wire.KEY_BYTES] for i in range(0, len(keys), wire.KEY_BYTES))
