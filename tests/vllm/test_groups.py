"""Real engines with several cache groups: Gemma-2 and Gemma-3 with vLLM's hybrid manager.

A prompt of 1,500 tokens has five whole chunks and several windows (512 tokens; 300, which begin in
the middle of a chunk). `a` has no prefix cache of vLLM's; `b` has one, so that a request has blocks
of its own beside those that are loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from lmkv.core.client import Client
from lmkv.core.messages import Status, StatusInfo

from tests.vllm.cluster import MAPPED, NIXL, Cluster, hits, misses
from tests.vllm.engine import Engine, Zygote
from tests.vllm.gemma import GEMMA_2, GEMMA_3, make_gemma
from tests.vllm.models import prompt

WHOLE, REST = 1280, 220
LONG = WHOLE + REST


@dataclass
class Pair:
    cluster: Cluster
    a: Engine
    b: Engine
    windows: list[int]

    def cold(self, text: list[int]) -> list[int]:
        """Tokens that `a` computes, and a plain engine too."""
        tokens = self.a.generate(text).tokens
        self.cluster.settle(self.a)
        self.wait_until_told()
        assert tokens == self.cluster.reference(text)
        return tokens

    def wait_until_told(self) -> None:
        """The controller knows of `a` what there is, and no more."""
        with Client(self.cluster.address) as client:

            def told() -> bool:
                info, _ = client.ask(Status(1))
                assert isinstance(info, StatusInfo)
                (keys,) = (each.keys for each in info.instances if each.instance == "a")
                return keys == self.a.call("tests.vllm.inside:state")["granules"]["readable"] // 16

            self.cluster.wait(told)

    def at_rest(self) -> bool:
        self.cluster.settle(self.a, self.b)
        states = [each.call("tests.vllm.inside:state") for each in (self.a, self.b)]
        return not any(n for state in states for n in state["pending"].values())


@pytest.fixture(scope="module", params=[GEMMA_3, GEMMA_2], ids=["gemma-3", "gemma-2"])
def pair(
    request: pytest.FixtureRequest, zygote: Zygote, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("groups")
    model = make_gemma(folder / "model", request.param)
    with Cluster(zygote, model, folder) as cluster:
        a, b = cluster.start("a"), cluster.start("b", enable_prefix_caching=True)
        cluster.wait_ready(a, b)
        yield Pair(cluster, a, b, a.call("tests.vllm.inside:windows"))


def test_the_groups_are_those_of_vllms_hybrid_manager(pair: Pair) -> None:
    assert sorted(pair.windows) in ([0, 512], [0, 300, 300])


@pytest.mark.parametrize(("wish", "cause"), [(MAPPED, "hit_mapped"), (NIXL, "hit_peer")])
def test_a_peer_hit(pair: Pair, wish: dict[str, Any], cause: str) -> None:
    text = prompt(300 if wish is MAPPED else 301, LONG)
    cold = pair.cold(text)
    warm = pair.b.generate(text, kv_transfer_params=wish)
    assert hits(warm) == {cause: WHOLE}
    assert misses(warm) == {"too_short": REST}
    assert warm.tokens == cold
    pair.b.reset_prefix_cache()
    again = pair.b.generate(text)
    assert hits(again) == {"hit_pool" if wish is NIXL else cause: WHOLE}
    assert again.tokens == cold
    assert pair.at_rest()


def test_of_a_window_only_its_tail_is_pulled(pair: Pair) -> None:
    text = prompt(310, LONG)
    pair.cold(text)
    before = pair.b.call("tests.vllm.inside:state")["granules"]["readable"]
    wish = {"lmkv": {"transfer": "nixl", "skip_store": True}}
    assert hits(pair.b.generate(text, kv_transfer_params=wish)) == {"hit_peer": WHOLE}
    pair.cluster.settle(pair.b)
    after = pair.b.call("tests.vllm.inside:state")["granules"]["readable"]
    assert after - before == 16 * sum(2 if window else 5 for window in pair.windows)


def test_beside_what_vllm_has_itself(pair: Pair) -> None:
    """Its own blocks reach into the window of what is loaded behind them."""
    text = prompt(320, LONG)
    cold = pair.cold(text)
    own = {"lmkv": {"skip_load": True, "skip_store": True}}
    pair.b.generate(text[:1030], kv_transfer_params=own)  # 16 blocks
    warm = pair.b.generate(text)
    assert hits(warm) == {"hit_vllm": 1024, "hit_mapped": WHOLE - 1024}
    assert warm.tokens == cold
    assert pair.at_rest()


def test_what_was_loaded_is_in_vllms_own_cache(pair: Pair) -> None:
    text = prompt(325, LONG)
    cold = pair.cold(text)
    pair.b.generate(text, max_tokens=1)
    again = pair.b.generate(text)
    assert hits(again)["hit_vllm"] >= WHOLE
    assert again.tokens == cold


def test_the_second_turn_of_a_chat_hits_the_generated_tokens(pair: Pair) -> None:
    first = prompt(330, 650)
    answer = pair.a.generate(first, max_tokens=150).tokens
    pair.cluster.settle(pair.a)
    second = first + answer + prompt(331, 30)
    warm = pair.b.generate(second)
    assert hits(warm) == {"hit_mapped": 768}
    assert warm.tokens == pair.cluster.reference(second)


def test_a_window_chunk_that_is_retired_at_the_holder_shortens_the_hit(pair: Pair) -> None:
    text = prompt(340, LONG)
    cold = pair.cold(text)
    group = next(g for g, window in enumerate(pair.windows) if window)
    assert pair.a.call("tests.vllm.inside:retire", text, group, 4, 5) == 1
    pair.wait_until_told()
    warm = pair.b.generate(text)
    assert hits(warm) == {"hit_mapped": WHOLE - 256}
    assert misses(warm) == {"cold": 256, "too_short": REST}
    assert warm.tokens == cold
    assert pair.at_rest()


def test_window_chunks_that_no_window_reaches_are_not_missed(pair: Pair) -> None:
    text = prompt(345, LONG)
    cold = pair.cold(text)
    for group, window in enumerate(pair.windows):
        assert not window or pair.a.call("tests.vllm.inside:retire", text, group, 0, 3) == 3
    pair.wait_until_told()
    warm = pair.b.generate(text)
    assert hits(warm) == {"hit_mapped": WHOLE}
    assert warm.tokens == cold


def test_a_load_that_fails_is_computed_once_and_not_claimed_again(pair: Pair) -> None:
    """vLLM would ask again without end, and bad block ids of several groups would kill it."""
    text = prompt(350, LONG)
    cold = pair.cold(text)
    assert pair.a.call("tests.vllm.inside:flip_all") > 0
    warm = pair.b.generate(text, kv_transfer_params=MAPPED)
    pair.a.call("tests.vllm.inside:flip_all")  # as it was
    assert warm.tokens == cold
    assert hits(warm) == {}
    assert misses(warm) == {"digest": WHOLE, "too_short": REST}
    assert pair.at_rest()
    assert pair.b.alive()
    pair.b.reset_prefix_cache()
    assert hits(pair.b.generate(text)) == {"hit_pool": WHOLE}, "what it computed it has stored"
