"""The harness itself, without lmkv: engines answer, agree, share nothing, and die when told."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.vllm.engine import BLOCK, Engine, EngineError
from tests.vllm.models import prompt

Start = Callable[..., Engine]


def name_of(llm: object, word: str) -> str:
    """A hook that runs in the engine: see test_a_hook_runs_inside."""
    return f"{word} {type(llm).__name__}"


def test_a_prefix_hit_gives_the_tokens_of_the_cold_run(start_engine: Start) -> None:
    a = start_engine("a")
    cold = a.generate(prompt(1, 300))
    again = a.generate(prompt(1, 300))
    assert cold.num_cached_tokens == 0
    assert again.num_cached_tokens == 300 // BLOCK * BLOCK
    assert again.tokens == cold.tokens
    a.reset_prefix_cache()
    assert a.generate(prompt(1, 300)).num_cached_tokens == 0


def test_tokens_depend_on_every_block_so_that_wrong_kv_would_show(start_engine: Start) -> None:
    """Another content of any one block gives other tokens."""
    a = start_engine("a")
    base, other = prompt(1, 300), prompt(2, 300)
    answers = {tuple(a.generate(base, max_tokens=16).tokens)}
    for block in range(300 // BLOCK):
        first, last = block * BLOCK, (block + 1) * BLOCK
        changed = base[:first] + other[first:last] + base[last:]
        answers.add(tuple(a.generate(changed, max_tokens=16).tokens))
    assert len(answers) == 1 + 300 // BLOCK


def test_two_engines_agree_and_share_nothing(start_engine: Start) -> None:
    a, b = start_engine("a"), start_engine("b")
    first, second = a.generate(prompt(2, 300)), b.generate(prompt(2, 300))
    assert first.tokens == second.tokens
    assert second.num_cached_tokens == 0


def test_two_ranks_give_the_tokens_of_one(start_engine: Start) -> None:
    one, two = start_engine("one"), start_engine("two", tensor_parallel_size=2)
    assert one.generate(prompt(3, 300)).tokens == two.generate(prompt(3, 300)).tokens
    assert two.generate(prompt(3, 300)).num_cached_tokens == 300 // BLOCK * BLOCK


def test_a_hook_runs_inside(start_engine: Start) -> None:
    assert start_engine("a").call("tests.vllm.test_harness:name_of", "an") == "an LLM"


def test_a_killed_engine_says_so_and_its_log_is_shown(start_engine: Start) -> None:
    a = start_engine("a").wait_ready()
    a.kill()
    assert not a.alive()
    with pytest.raises((EngineError, OSError)):
        a.generate(prompt(1, 10))


def test_an_engine_that_cannot_start_names_the_reason(start_engine: Start) -> None:
    bad = start_engine("bad", max_model_len=1_000_000)
    with pytest.raises(EngineError, match="max_model_len"):
        bad.wait_ready()
