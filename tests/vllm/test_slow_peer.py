"""A peer whose bytes come slowly, for real: its mover serves READs over TCP, and sleeps in each."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.vllm.cluster import Cluster
from tests.vllm.models import prompt

ASLEEP = 3.0  # seconds; computing 512 tokens takes a small part of it


@contextmanager
def asleep(pid: int) -> Iterator[None]:
    """Stopped from now on for a while, and awake at the end."""
    waker = threading.Timer(ASLEEP, os.kill, (pid, signal.SIGCONT))
    os.kill(pid, signal.SIGSTOP)
    waker.start()
    try:
        yield
    finally:
        waker.join()


def counted(output: Any, kind: str) -> dict[str, int]:
    return {k: v for k, v in output.kv_transfer_params["lmkv"][kind].items() if v}


def test_a_slow_peer_is_left_after_two_pulls(zygote: Any, llama: Path, tmp_path: Path) -> None:
    with Cluster(zygote, llama, tmp_path) as cluster:
        tcp = {"transfer": "nixl", "nixl_tls": "tcp", "pull": "auto"}
        slow, reader = cluster.start("slow", tcp), cluster.start("reader", tcp)
        cluster.wait_ready(slow, reader)
        for seed in (200, 201):  # prefill is measured
            reader.generate(prompt(seed, 700))
        texts = [prompt(210 + i, 700) for i in range(3)]
        cold = [slow.generate(text) for text in texts]
        cluster.settle(slow)
        mover = slow.call("tests.vllm.inside:mover_pid")
        for text, expected in zip(texts[:2], cold):
            with asleep(mover):
                warm = reader.generate(text)
            assert counted(warm, "hit_tokens") == {"hit_peer": 512}
            assert warm.tokens == expected.tokens
        computed = reader.generate(texts[2])
        assert counted(computed, "hit_tokens") == {}
        assert counted(computed, "miss_tokens") == {"recompute_cheaper": 512, "too_short": 188}
        assert computed.tokens == cold[2].tokens
        state = reader.call("tests.vllm.inside:state")
        assert state["pulls"] == 2
        assert set(state["pending"].values()) == {0}
        rates = state["rates"]
        assert rates["peers"]["slow"]["queued"] == 0
        # 512 tokens of 2 layers, keys and values, 2 heads of 64, in 4 bytes: 1 MiB in each pull.
        assert rates["peers"]["slow"]["rate"] < 2 * 2**20 / ASLEEP
        assert rates["prefill"] > 512 / ASLEEP
