"""What routers read of a real engine: vLLM's own event stream, with lmkv's pool in it.

A prompt of 1,100 tokens has four whole chunks of 256; vLLM's blocks have 64. The model is wide, so
that the smallest pool has room for some thirty chunks. In-process engines make no step by
themselves, so `idle` makes those that vLLM's busy loop would.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

pytest.importorskip("vllm", reason="vllm is not installed")

from lmkv.core.client import Client

from tests.vllm.cluster import NIXL, Cluster, hits
from tests.vllm.engine import BLOCK, Engine, Zygote
from tests.vllm.models import make_llama, prompt
from tests.vllm.subscriber import Subscriber
from tests.vllm.test_jobs_vllm import done

LONG, CHUNKS = 1100, 4
BLOCKS = CHUNKS * 256 // BLOCK
WIDE = {
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 128,
}


@dataclass
class Routed:
    cluster: Cluster
    engines: dict[str, Engine]
    ears: dict[str, Subscriber]

    def ask(self, name: str, text: list[int], **more: object) -> None:
        """One token, so that all stores end behind the last step but one."""
        self.engines[name].generate(text, max_tokens=1, **more)  # type: ignore[arg-type]
        self.idle(name)

    def idle(self, name: str) -> None:
        self.engines[name].call("tests.vllm.inside:idle")
        self.cluster.settle(self.engines[name])

    def readable(self, name: str) -> int:
        """vLLM's blocks in the chunks that this engine's pool holds."""
        state = self.engines[name].call("tests.vllm.inside:state")
        return int(state["readable"]) * 256 // BLOCK


@pytest.fixture(scope="module")
def routed(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Routed]:
    folder = tmp_path_factory.mktemp("routed")
    ears = {name: Subscriber(f"kv@{name}@llama") for name in "ab"}
    with Cluster(zygote, make_llama(folder / "wide", **WIDE), folder) as cluster:
        engines = {
            name: cluster.start(
                name,
                extra={"pool_gib": 0.25},
                enable_prefix_caching=True,
                kv_events_config=ears[name].config,
            )
            for name in "ab"
        }
        cluster.wait_ready(*engines.values())
        for ear in ears.values():
            ear.attach()
        yield Routed(cluster, engines, ears)
    for ear in ears.values():
        ear.close()


def test_the_pool_is_told_as_vllm_tells_its_own_blocks(routed: Routed) -> None:
    """And at once, although the engine has nothing more to do."""
    ear, text = routed.ears["a"], prompt(500, LONG)
    routed.ask("a", text)
    ear.hear(lambda: len(ear.blocks["CPU"]) == BLOCKS)
    mine, vllms = ear.told("CPU"), ear.told("GPU")
    assert mine.keys() == ear.blocks["CPU"] == {block for block in vllms if block in mine}
    assert all(mine[block] == vllms[block] for block in mine)
    assert [t for said in mine.values() for t in said[1]] == text[: CHUNKS * 256]
    events = [event for event in ear.stored if event.medium == "CPU"]
    assert [len(event.block_hashes) for event in events] == [256 // BLOCK] * CHUNKS
    assert {event.locality for event in events} == {"LOCAL"}


def test_a_pulled_chunk_is_told_by_the_one_that_pulled_it(routed: Routed) -> None:
    a, ear, text = routed.ears["a"], routed.ears["b"], prompt(500, LONG)
    warm = routed.engines["b"].generate(text, kv_transfer_params=NIXL)
    assert hits(warm) == {"hit_peer": CHUNKS * 256}
    routed.idle("b")
    ear.hear(lambda: len(ear.blocks["CPU"]) == BLOCKS)
    assert ear.told("CPU") == {b: said for b, said in a.told("CPU").items() if b in ear.told("CPU")}


def test_what_a_job_has_brought_is_told_when_a_request_has_loaded_it(routed: Routed) -> None:
    ear, text = routed.ears["b"], prompt(501, LONG)
    routed.ask("a", text)
    with Client(routed.cluster.address, 60.0) as client:
        assert done(client, "copy", text, instance="b").chunks == CHUNKS
    routed.idle("b")
    known = set(ear.blocks["CPU"])
    assert len(known) == BLOCKS  # those of the test before
    assert hits(routed.engines["b"].generate(text, max_tokens=1)) == {"hit_pool": CHUNKS * 256}
    routed.idle("b")
    ear.hear(lambda: len(ear.blocks["CPU"]) == 2 * BLOCKS)
    told = [said for block, said in ear.told("CPU").items() if block not in known]
    assert [token for said in told for token in said[1]] == text[: CHUNKS * 256]


def test_what_makes_room_is_removed(routed: Routed) -> None:
    ear, a = routed.ears["a"], routed.engines["a"]
    for seed in range(510, 519):
        a.generate(prompt(seed, LONG), max_tokens=1)
    routed.idle("a")
    ear.hear(lambda: any(event.medium == "CPU" for event in ear.removed))
    ear.hear(lambda: len(ear.blocks["CPU"]) == routed.readable("a"))
    assert ear.blocks["CPU"] < ear.told("CPU").keys()


def test_a_reset_removes_each_and_clears_nothing(routed: Routed) -> None:
    ear, a = routed.ears["a"], routed.engines["a"]
    assert a.call("tests.vllm.inside:reset_cache")
    routed.idle("a")
    ear.hear(lambda: not ear.blocks["CPU"])
    assert ear.cleared == 0
    assert ear.blocks["GPU"], "vLLM's own cache has all it had"
    routed.cluster.wait_ready(a)
    a.reset_prefix_cache()
    routed.ask("a", prompt(500, LONG))
    ear.hear(lambda: len(ear.blocks["CPU"]) == BLOCKS)
    assert ear.cleared == 1
    alarms = [value for name, _, value in a.metrics() if name == "vllm:lmkv_alarms_total"]
    assert alarms and not any(alarms)
