"""An instance as a controller sees it, without engine or sockets: a slot table and its stream."""

from __future__ import annotations

from collections.abc import Iterable

from lmkv import _native
from lmkv.core.messages import (
    Announce,
    Heartbeat,
    HostIdentity,
    Message,
    RankInfo,
    Register,
    Retract,
    SyncEnd,
    SyncSlice,
)

SLOTS = 64
HOST_A, HOST_B = HostIdentity("boot-a", 1, 1), HostIdentity("boot-b", 1, 1)
NAMESPACE = "dtype=float16\nweights=one\n"
LAYOUT = "head_size=64\nsegments=8\n"

Sent = tuple[Message, tuple[bytes, ...]]  # a message and its arrays


def keys(*numbers: int) -> bytes:
    return b"".join(n.to_bytes(16, "little") for n in numbers)


def rank(host: HostIdentity = HOST_A, metadata: bytes = b"nixl") -> RankInfo:
    return RankInfo(0, host, nixl_metadata=metadata)


class StubInstance:
    """`seq` is the last number of its stream; a test that raises it loses a message."""

    def __init__(
        self,
        name: str,
        epoch: int = 7,
        host: HostIdentity = HOST_A,
        layout: str = LAYOUT,
        namespace: str = NAMESPACE,
        cluster: str = "default",
        protocol: tuple[int, int] = (1, 1),
    ) -> None:
        self.name, self.epoch, self.seq = name, epoch, 0
        self.registration = Register(
            *protocol, cluster, name, epoch, namespace, [layout], 16, [rank(host)],
            model="m", group_specs=["kind=full\n"],
        )  # fmt: skip
        self.table = _native.SlotTable(SLOTS, SLOTS)
        self.table.grow(SLOTS)

    def number(self) -> int:
        self.seq += 1
        return self.seq

    def store(self, *numbers: int) -> list[Sent]:
        """Admit these keys; what must be sent."""
        reserved = self.table.reserve(keys(*numbers), 0.0)
        assert reserved is not None
        assert self.table.admit(*reserved) == len(numbers)
        return self.changes()

    def retire(self, *numbers: int) -> list[Sent]:
        assert self.table.retire(keys(*numbers)) == len(numbers)
        return self.changes()

    def changes(self) -> list[Sent]:
        return [
            ((Announce if announced else Retract)(self.epoch, self.number()), tuple(arrays))
            for announced, *arrays in self.table.take_changes()
        ]

    def heartbeat(self) -> Sent:
        return Heartbeat(self.epoch, self.number(), *self.table.sums()), ()

    def sync(self, number: int = 0) -> Iterable[Sent]:
        """The whole sync, in two slices."""
        middle, end = SLOTS * 8, SLOTS * 16
        for first, last in ((0, middle), (middle, end)):
            arrays = self.table.slice(first, last)
            yield SyncSlice(self.epoch, self.number(), number, first, last), arrays
        yield SyncEnd(self.epoch, self.number(), number), ()
