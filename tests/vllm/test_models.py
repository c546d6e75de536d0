"""Real engines of every kind of model with one cache group: what one computed, the other loads.

A case is three engines: `a` computes, `b` loads what a stored, mapped and pulled, `plain` has no
lmkv but vLLM's prefix cache. A prompt is two chunks and 8 tokens, so that b computes exactly what
plain computes behind its own cache: their log-probabilities are equal to the last bit.

docs/models.md has the table. `ALL_MODELS=1` runs the wider sweep (no LMKV_ before it: lmkv refuses
settings that it does not know).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.vllm.cluster import MAPPED, NIXL, Cluster
from tests.vllm.engine import Engine, EngineError, Zygote
from tests.vllm.models import make_llama, prompt
from tests.vllm.more_models import (
    PICTURE_TOKENS,
    make_adapter,
    make_blip,
    make_deepseek,
    make_llama_int8,
)

SWEEP = pytest.mark.skipif(
    os.environ.get("ALL_MODELS") != "1", reason="of the wider sweep: ALL_MODELS=1"
)
CPU = Path("/proc/cpuinfo").read_text()
FP8 = pytest.mark.skipif(
    "avx512f" not in CPU and "amx_tile" not in CPU,
    reason="vLLM's CPU backend has no FP8 cache without AVX-512 or AMX",
)
BF16 = {"dtype": "bfloat16"}
TAIL = 8


@dataclass
class Case:
    make: Callable[[Path], Path]
    arguments: dict[str, Any] = field(default_factory=dict)
    chunk: int = 256
    continues: bool = True  # vLLM has a prefix cache for this model itself


def llama(head_size: int, block: int, chunk: int = 256, **arguments: Any) -> Case:
    make = partial(make_llama, head_dim=head_size)
    return Case(make, {"block_size": block, **arguments}, chunk)


CASES = {
    "head80-block32-bf16": llama(80, 32, **BF16),
    "head96-block256-fp32": llama(96, 256),
    "head256-block128-bf16": llama(256, 128, **BF16),
    "int8-head128-static-fp8": Case(partial(make_llama_int8, head_dim=128), BF16),
    "mla-fp32": Case(make_deepseek, continues=False),
}
WIDER = {
    **{f"head{n}-block64-fp32": llama(n, 64) for n in (32, 160, 192, 224, 512)},
    "head112-block96-fp32": llama(112, 96, 288),  # 256 is not a multiple of the block
    "head128-block128-fp8": llama(128, 128, kv_cache_dtype="fp8", **BF16),
    "head64-block128-bf16": llama(64, 128, **BF16),
    "head128-block32-fp16": llama(128, 32, dtype="float16"),
    "head96-block32-fp8": llama(96, 32, kv_cache_dtype="fp8_e5m2"),
    "head80-block384-fp32": llama(80, 384, 384),
    "kv-heads1": Case(partial(make_llama, num_key_value_heads=1)),
    "kv-heads4-layers5": Case(partial(make_llama, num_key_value_heads=4, num_hidden_layers=5)),
    "mla-bf16": Case(make_deepseek, BF16, continues=False),
}
REFUSED_BY_VLLM = {
    "head40": (llama(40, 64), "Unsupported CPU attention configuration: head_dim=40"),
    "head72": (llama(72, 64), "Unsupported CPU attention configuration: head_dim=72"),
    "mla-fp8": (Case(make_deepseek, {"kv_cache_dtype": "fp8"}), "found Float8_e4m3fn"),
}
OPTED_OUT = {
    "fp8-dynamic": (
        Case(partial(make_llama_int8, dynamic_kv=True), BF16),
        "opted_out: the checkpoint's kv_cache_scheme has dynamic scales",
    ),
}


def needs(name: str) -> list[Any]:
    return [FP8] if "fp8" in name else []


def both(cases: dict[str, Any], wider: dict[str, Any]) -> list[Any]:
    return [
        *(pytest.param(case, id=name, marks=needs(name)) for name, case in cases.items()),
        *(pytest.param(case, id=name, marks=[SWEEP, *needs(name)]) for name, case in wider.items()),
    ]


def ask(engine: Engine, tokens: list[int], wish: Any = None, **more: Any) -> dict[str, Any]:
    answer: dict[str, Any] = engine.call("tests.vllm.asks:ask", tokens, wish, **more)
    return answer


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one[name] == other[name] for name in ("tokens", "logprobs"))


@contextmanager
def running(*engines: Engine) -> Iterator[None]:
    try:
        yield
    finally:
        for engine in engines:
            engine.stop()


@pytest.mark.parametrize("case", both(CASES, WIDER))
def test_a_peer_hit(cluster: Cluster, zygote: Zygote, tmp_path: Path, case: Case) -> None:
    model = case.make(tmp_path / "model")
    a, b = (cluster.start(name, model=model, **case.arguments) for name in ("a", "b"))
    plain = zygote.engine("plain", model, enable_prefix_caching=True, **case.arguments)
    with running(a, b, plain):
        cluster.wait_ready(a, b)
        whole = 2 * case.chunk
        for seed, wish, cause in ((1, MAPPED, "hit_mapped"), (2, NIXL, "hit_peer")):
            text = prompt(seed, whole + TAIL)
            cold = ask(a, text)
            assert cold["misses"] == {"cold": whole, "too_short": TAIL}
            cluster.settle(a)
            warm = ask(b, text, wish)
            assert warm["hits"] == {cause: whole}
            assert warm["cached"] == whole
            own = [ask(plain, text) for _ in "12"]
            assert same(cold, own[0])
            if case.continues:
                assert own[1]["cached"] == whole
                assert same(warm, own[1])
            assert warm["tokens"] == own[0]["tokens"]
            other = [text[0] + 1, *text[1:]]
            assert ask(b, other)["hits"] == {}, "a token before all others is in every key"


@SWEEP
def test_mla_on_two_ranks(cluster: Cluster, tmp_path: Path) -> None:
    """Every rank has the whole latent, stores it, and loads it."""
    model = make_deepseek(tmp_path / "model")
    a, b = (cluster.start(name, model=model, tensor_parallel_size=2) for name in ("a", "b"))
    with running(a, b):
        cluster.wait_ready(a, b)
        for seed, wish, cause in ((1, MAPPED, "hit_mapped"), (2, NIXL, "hit_peer")):
            cold = ask(a, prompt(seed, 520))
            cluster.settle(a)
            warm = ask(b, prompt(seed, 520), wish)
            assert warm["hits"] == {cause: 512}
            assert warm["tokens"] == cold["tokens"]


@pytest.mark.parametrize(("case", "text"), [
    pytest.param(*pair, id=name, marks=SWEEP) for name, pair in REFUSED_BY_VLLM.items()
])  # fmt: skip
def test_what_vllm_refuses(zygote: Zygote, tmp_path: Path, case: Case, text: str) -> None:
    """Without lmkv, as it starts or at the first request: when this goes red, vLLM has learnt it,
    and the case belongs above."""
    plain = zygote.engine("plain", case.make(tmp_path / "model"), **case.arguments)
    with running(plain), pytest.raises(EngineError) as refused:
        ask(plain.wait_ready(), prompt(1, 100))
    assert text in str(refused.value)


@pytest.mark.parametrize(("case", "why"), [
    pytest.param(*pair, id=name, marks=needs(name)) for name, pair in OPTED_OUT.items()
])  # fmt: skip
def test_what_lmkv_opts_out_of(cluster: Cluster, tmp_path: Path, case: Case, why: str) -> None:
    a = cluster.start("a", model=case.make(tmp_path / "model"), **case.arguments)
    with running(a):
        assert a.wait_ready().call("tests.vllm.inside:state")["off"] == why
        assert len(ask(a, prompt(1, 520))["tokens"]) == 8, "vLLM serves on"


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`one`, `two`, and `copy` of one."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("one", "two")):
        make_adapter(folder / name, seed)
    shutil.copytree(folder / "one", folder / "copy")
    return folder


@pytest.fixture(scope="module")
def rich(cluster: Cluster) -> Iterator[tuple[Engine, Engine, Engine]]:
    """Two that take adapters and embeddings; the third has another connector beside lmkv."""
    features = {"enable_lora": True, "max_lora_rank": 8, "enable_prompt_embeds": True}
    store = str(cluster.folder / "store")
    beside = {
        "kv_connector": "ExampleConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"shared_storage_path": store},
    }
    a, b = (cluster.start(name, **features) for name in ("rich-a", "rich-b"))
    multi = cluster.start("multi", beside=beside)
    with running(a, b, multi):
        cluster.wait_ready(a, b, multi)
        yield a, b, multi


def test_adapters(cluster: Cluster, rich: tuple[Engine, Engine, Engine], adapters: Path) -> None:
    """By their content: base and two adapters never share, a copy of the files under another name
    does."""
    a, b, _ = rich
    text = prompt(5, 520)
    one, two = (("one", 1, str(adapters / "one")), ("two", 2, str(adapters / "two")))
    copy = ("other name", 7, str(adapters / "copy"))
    colds = []
    for chosen in ({}, {"adapter": one}, {"adapter": two}):
        colds.append(ask(a, text, **chosen))
        assert colds[-1]["hits"] == {}
        cluster.settle(a)
    assert len({tuple(cold["tokens"]) for cold in colds}) == 3
    for cold, chosen in zip(colds, ({}, {"adapter": copy}, {"adapter": two})):
        warm = ask(b, text, **chosen)
        assert warm["hits"] == {"hit_mapped": 512}
        assert warm["tokens"] == cold["tokens"]


def test_embeddings(cluster: Cluster, rich: tuple[Engine, Engine, Engine]) -> None:
    """vLLM's token ids of such a prompt are all 0: the embeddings are in the keys."""
    a, b, _ = rich
    cold = ask(a, [0] * 520, rows=1)
    cluster.settle(a)
    other = ask(b, [0] * 520, rows=2)
    zeros = ask(b, [0] * 520)
    assert other["hits"] == zeros["hits"] == {}
    warm = ask(b, [0] * 520, rows=1)
    assert warm["hits"] == {"hit_mapped": 512}
    assert warm["tokens"] == cold["tokens"] != other["tokens"]


def test_beside_another_connector(cluster: Cluster, rich: tuple[Engine, Engine, Engine]) -> None:
    a, _, multi = rich
    for seed, wish, cause in ((10, MAPPED, "hit_mapped"), (11, NIXL, "hit_peer")):
        text = prompt(seed, 520)
        cold = ask(a, text)
        cluster.settle(a)
        warm = ask(multi, text, wish)
        assert warm["hits"] == {cause: 512}
        assert warm["tokens"] == cold["tokens"] == cluster.reference(text)
    there = ask(multi, prompt(12, 520))
    cluster.settle(multi)
    back = ask(a, prompt(12, 520))
    assert back["hits"] == {"hit_mapped": 512}
    assert back["tokens"] == there["tokens"]


def test_a_load_that_fails_beside_another_connector(
    cluster: Cluster, rich: tuple[Engine, Engine, Engine]
) -> None:
    """vLLM's default is to fail the request, and it reads the outer connector's setting alone."""
    a, _, multi = rich
    text = prompt(13, 520)
    cold = ask(a, text)
    cluster.settle(a)
    assert a.call("tests.vllm.inside:flip_all") > 0
    warm = ask(multi, text, MAPPED)
    a.call("tests.vllm.inside:flip_all")
    assert warm["misses"] == {"digest": 512, "too_short": 8}
    assert warm["tokens"] == cold["tokens"]


def test_pictures(cluster: Cluster, zygote: Zygote, tmp_path: Path) -> None:
    """Their placeholders are alike in token ids, so the pictures are in the keys."""
    model = make_blip(tmp_path / "model")
    own = {"skip_tokenizer_init": False, "limit_mm_per_prompt": {"image": 1}}
    a, b = (cluster.start(name, model=model, **own) for name in ("see-a", "see-b"))
    plain = zygote.engine("plain", model, enable_prefix_caching=False, **own)
    with running(a, b, plain):
        cluster.wait_ready(a, b)
        text = prompt(20, 520 - PICTURE_TOKENS, vocab=511)
        cold = ask(a, text, picture=1)
        assert cold["misses"] == {"cold": 512, "too_short": 8}
        cluster.settle(a)
        other = ask(b, text, {"lmkv": {"skip_store": True}}, picture=2)
        assert other["hits"] == {}
        warm = ask(b, text, picture=1)
        assert warm["hits"] == {"hit_mapped": 512}
        assert warm["tokens"] == cold["tokens"] == ask(plain, text, picture=1)["tokens"]
        assert other["tokens"] == ask(plain, text, picture=2)["tokens"] != cold["tokens"]
