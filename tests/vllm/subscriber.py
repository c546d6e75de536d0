"""A router's ear: vLLM's subscriber to KV events over ZMQ, and the blocks that it believes in.

It binds and vLLM connects, as vLLM does with an endpoint that names a host.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import zmq
from vllm.distributed.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KVEventBatch

PATIENCE_S = 20.0
Block = tuple[int, int | bytes]  # cache group, hash


class Subscriber:
    def __init__(self, topic: str) -> None:
        self._socket = zmq.Context.instance().socket(zmq.SUB)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt_string(zmq.SUBSCRIBE, topic)
        port = self._socket.bind_to_random_port("tcp://127.0.0.1")
        self._decoder = msgspec.msgpack.Decoder(type=KVEventBatch)
        self._next = 0
        self.config = {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": f"tcp://127.0.0.1:{port}",
            "topic": topic,
        }
        self.stored: list[BlockStored] = []
        self.removed: list[BlockRemoved] = []
        self.cleared = 0
        self.blocks: dict[str, set[Block]] = defaultdict(set)  # by medium

    def attach(self) -> None:
        """vLLM has connected: ZMQ sends it the subscription when this side looks."""
        self._socket.poll(500)

    def hear(self, until: Callable[[], bool]) -> None:
        """Take what comes until that is so."""
        end = time.monotonic() + PATIENCE_S
        while not until():
            assert time.monotonic() < end, "not told in time"
            if self._socket.poll(50):
                self._take()

    def _take(self) -> None:
        topic, number, payload = self._socket.recv_multipart()
        assert topic.decode() == self.config["topic"]
        assert int.from_bytes(number, "big") == self._next, "a batch is missing"
        self._next += 1
        batch = self._decoder.decode(payload)
        assert batch.data_parallel_rank == 0
        for event in batch.events:
            self._apply(event)

    def _apply(self, event: Any) -> None:
        if isinstance(event, AllBlocksCleared):
            self.cleared += 1
            self.blocks["GPU"].clear()  # the medium of those that vLLM has cleared
            return
        blocks = {(event.group_idx, block) for block in event.block_hashes}
        held = self.blocks[event.medium]
        if isinstance(event, BlockStored):
            assert event.medium != "CPU" or not blocks & held, "told twice"
            held |= blocks
            self.stored.append(event)
        else:
            assert blocks <= held, "removed, and was not there"
            held -= blocks
            self.removed.append(event)

    def told(self, medium: str) -> dict[Block, tuple[Any, ...]]:
        """What is said of each block: the hash of the one before, tokens, size, keys, kind."""
        found = {}
        for event in self.stored:
            if event.medium == medium:
                for block, *said in _blocks(event):
                    found[event.group_idx, block] = (
                        *said,
                        event.block_size,
                        event.kv_cache_spec_kind,
                    )
        return found

    def close(self) -> None:
        self._socket.close(linger=0)


def _blocks(event: BlockStored) -> Iterator[tuple[Any, ...]]:
    """(hash, parent, tokens, extra keys)"""
    size, parent = event.block_size, event.parent_block_hash
    assert len(event.token_ids) == size * len(event.block_hashes)
    for i, block in enumerate(event.block_hashes):
        keys = event.extra_keys[i] if event.extra_keys else None
        yield block, parent, tuple(event.token_ids[i * size : (i + 1) * size]), keys
        parent = block
