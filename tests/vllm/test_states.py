"""Real engines of a Mamba hybrid: Qwen3-Next, of which three layers have a state and one attention.

vLLM keeps a state where a step ends at a block's end (`mamba_cache_mode: align`, with its prefix
cache on): of a prompt of 1,300 tokens, the one after 1,280. Its CPU backend runs this in bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.vllm.cluster import MAPPED, NIXL, Cluster, hits, misses
from tests.vllm.engine import Engine, Zygote
from tests.vllm.models import prompt

WHOLE, REST = 1280, 20
ARGUMENTS = {"dtype": "bfloat16", "block_size": None, "enable_prefix_caching": True}


def make_qwen(folder: Path) -> Path:
    import torch
    from transformers import AutoModelForCausalLM, Qwen3NextConfig

    config = Qwen3NextConfig(
        architectures=["Qwen3NextForCausalLM"],
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        vocab_size=512,
        max_position_embeddings=4096,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=128,
        shared_expert_intermediate_size=128,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=64,
        linear_value_head_dim=64,
        initializer_range=0.08,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_qwen(tmp_path_factory.mktemp("models") / "qwen")


@pytest.fixture(scope="module")
def states(
    zygote: Zygote, qwen: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Cluster, Engine, Engine]]:
    with Cluster(zygote, qwen, tmp_path_factory.mktemp("states")) as cluster:
        a, b = (cluster.start(name, **ARGUMENTS) for name in "ab")
        cluster.wait_ready(a, b)
        yield cluster, a, b


@pytest.fixture(scope="module")
def plain(zygote: Zygote, qwen: Path, states: Any) -> Engine:
    """Without lmkv, and with the same steps: bfloat16 is not equal across others."""
    return zygote.engine("plain", qwen, **ARGUMENTS)


def fresh(engine: Engine, text: list[int]) -> list[int]:
    engine.reset_prefix_cache()
    return engine.generate(text, max_tokens=16).tokens


@pytest.mark.parametrize(("wish", "cause"), [(MAPPED, "hit_mapped"), (NIXL, "hit_peer")])
def test_a_peer_hit(
    states: tuple[Cluster, Engine, Engine], plain: Engine, wish: dict[str, Any], cause: str
) -> None:
    cluster, a, b = states
    text = prompt(400 if wish is MAPPED else 401, WHOLE + REST)
    cold = fresh(a, text)
    assert cold == fresh(plain, text)
    other = prompt(402, WHOLE) + text[WHOLE:]
    assert fresh(plain, other) != cold, "what was loaded decides"
    cluster.settle(a)
    warm = b.generate(text, max_tokens=16, kv_transfer_params=wish)
    assert hits(warm) == {cause: WHOLE}
    assert misses(warm) == {"too_short": REST}
    assert warm.tokens == cold
    assert b.generate(text, max_tokens=16).tokens == cold, "from vLLM's own cache"
    cluster.settle(b)
    assert not any(b.call("tests.vllm.inside:state")["pending"].values())


def test_a_prompt_that_leaves_before_a_state_is_computed(
    states: tuple[Cluster, Engine, Engine], plain: Engine
) -> None:
    """Its first 1,024 tokens have KV at the holder, and no state."""
    cluster, a, b = states
    text = prompt(410, WHOLE + REST)
    fresh(a, text)
    cluster.settle(a)
    other = text[:1100] + prompt(411, 200)
    warm = b.generate(other, max_tokens=16)
    assert hits(warm) == {}
    assert misses(warm) == {"cold": WHOLE, "too_short": REST}
    assert warm.tokens == fresh(plain, other)


def test_the_second_turn_of_a_chat_begins_at_a_generated_boundary(
    states: tuple[Cluster, Engine, Engine], plain: Engine
) -> None:
    cluster, a, b = states
    first = prompt(420, 700)
    answer = a.generate(first, max_tokens=100).tokens
    cluster.settle(a)
    second = first + answer + prompt(421, 30)
    warm = b.generate(second, max_tokens=16)
    assert hits(warm) == {"hit_mapped": 768}
    assert warm.tokens == b.generate(second, max_tokens=16).tokens


def test_a_load_that_fails_is_computed(
    states: tuple[Cluster, Engine, Engine], plain: Engine
) -> None:
    cluster, a, b = states
    text = prompt(430, WHOLE + REST)
    cold = fresh(a, text)
    cluster.settle(a)
    assert a.call("tests.vllm.inside:flip_all") > 0
    warm = b.generate(text, max_tokens=16, kv_transfer_params=MAPPED)
    a.call("tests.vllm.inside:flip_all")  # as it was
    assert warm.tokens == cold
    assert hits(warm) == {}
    assert misses(warm) == {"digest": WHOLE, "too_short": REST}


def test_without_states_at_block_ends_it_opts_out_by_name(
    states: tuple[Cluster, Engine, Engine], plain: Engine
) -> None:
    cluster, _, _ = states
    plain.stop()
    c = cluster.start("c", **ARGUMENTS | {"enable_prefix_caching": False})
    assert len(c.generate(prompt(440, 600)).tokens) == 8
    sentence = "KV of kind MambaSpec with mamba_cache_mode = none is not shared yet"
    assert sentence in c.log.read_text()
    c.stop()
