"""Pulls between the agent's messages and the engine: one `Pulled` for each `Pull`, always.

handle(identity, pull, frames) starts one; events() turns what the engine reports into answers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from lmkv import _native
from lmkv.core import wire
from lmkv.core.messages import Alarm, LimboEnded, Message, Pull, Pulled, PullResult
from lmkv.mover.peers import Peers, Refusal

Answer = tuple[bytes, list[bytes]]  # routing id, frames
VOID = 4096  # jobs that are remembered to have ended


@dataclass
class _Asked:
    identity: bytes
    job: int


class Pulls:
    """`engine` None: NIXL is missing, and every chunk is MOVER_DOWN."""

    def __init__(self, rank: int, engine: _native.PullEngine | None, peers: Peers) -> None:
        self._rank = rank
        self._engine = engine
        self._peers = peers
        self._asked: dict[int, _Asked] = {}
        self._next = 1  # two agents in a row may use the same job number
        self._void: OrderedDict[tuple[bytes, int], None] = OrderedDict()  # said to have ended

    def handle(self, identity: bytes, pull: Pull, frames: list[bytes], epoch: int) -> list[Answer]:
        """`epoch` is our own. Raises WireError for torn frames."""
        place, counter = wire.PLACE_BYTES, wire.COUNTER_BYTES
        n = wire.counts(frames, wire.KEY_BYTES, place, counter, place, counter)
        if self._engine is None:
            return [self._all(identity, pull, n, PullResult.MOVER_DOWN)]
        if n == 0:
            return [self._all(identity, pull, 0, PullResult.GOOD)]
        if (identity, pull.job) in self._void:  # its slots may hold something else by now
            return [self._all(identity, pull, n, PullResult.MOVER_DOWN)]
        judged = self._peers.judge(pull)
        if isinstance(judged, Refusal):
            answer = self._all(identity, pull, n, judged.result, judged.stale)
            if not judged.lie:
                return [answer]
            alarm = Alarm(self._rank, "peer", f"{pull.peer.instance}: {judged.why}")
            return [(identity, wire.encode(alarm)), answer]
        try:
            self._begin(self._engine, pull, judged, frames, epoch)
        except ValueError as error:  # the agent's mistake, or a segment that has not arrived yet
            alarm = Alarm(self._rank, "pull", str(error))
            return [
                (identity, wire.encode(alarm)),
                self._all(identity, pull, n, PullResult.MOVER_DOWN),
            ]
        self._asked[self._next] = _Asked(identity, pull.job)
        self._next += 1
        return []

    def _begin(
        self,
        engine: _native.PullEngine,
        pull: Pull,
        parts: list[_native.SlotPart],
        frames: list[bytes],
        epoch: int,
    ) -> None:
        keys, remote, theirs, own, ours = frames
        layout = self._peers.layout(pull)
        peers = [self._peers.native(peer) for peer in (pull.peer, *pull.others)]
        if parts:
            engine.pull_parts(
                self._next, peers, parts, layout, pull.peer.epoch, epoch,
                keys, remote, theirs, own, ours, pull.deadline,
            )  # fmt: skip
        else:
            engine.pull(
                self._next, peers[0], layout, pull.peer.epoch, epoch,
                keys, remote, theirs, own, ours, pull.deadline,
            )  # fmt: skip

    def limbo(self, identity: bytes, job: int) -> list[Answer]:
        """Nothing while the job is under way: its end will be told."""
        if _Asked(identity, job) in self._asked.values():
            return []
        self._void[identity, job] = None
        while len(self._void) > VOID:
            self._void.popitem(last=False)
        return [(identity, wire.encode(LimboEnded(self._rank, job)))]

    def events(self) -> Iterator[Answer]:
        if self._engine is None:
            return
        for event in self._engine.take():
            asked = self._asked[event.job]
            answer: Message
            if event.limbo_ended:
                answer, arrays = LimboEnded(self._rank, asked.job), []
            else:
                answer = Pulled(self._rank, asked.job, event.seconds, event.bytes, event.stale)
                arrays = [event.results]
            if event.limbo_ended or PullResult.TIMEOUT not in event.results:
                del self._asked[event.job]
            yield asked.identity, wire.encode(answer, *arrays)

    def _all(self, identity: bytes, pull: Pull, n: int, result: int, stale: bool = False) -> Answer:
        answer = Pulled(self._rank, pull.job, stale=stale)
        return identity, wire.encode(answer, bytes([result]) * n)
