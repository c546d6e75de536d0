"""Real engines share: cold, pool, mapped and pulled hits with equal outputs.

A prompt of 700 tokens has two whole chunks of 256. vLLM's own prefix cache is off, unless a test is
about it, so that every hit is lmkv's.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from lmkv.core.metrics import INSTANCE

from tests.scrape import families, scraped
from tests.vllm.cluster import MAPPED, NIXL, Cluster, hits, misses
from tests.vllm.engine import Engine
from tests.vllm.models import prompt


def test_cold_then_the_own_pool(cluster: Cluster, pair: tuple[Engine, Engine]) -> None:
    a, _ = pair
    cold = a.generate(prompt(10, 700))
    assert misses(cold) == {"cold": 512, "too_short": 188}
    cluster.settle(a)
    before = a.call("tests.vllm.inside:state")
    again = a.generate(prompt(10, 700))
    assert hits(again) == {"hit_pool": 512}
    assert again.tokens == cold.tokens
    assert again.num_cached_tokens == 512
    state = a.call("tests.vllm.inside:state")
    assert state["locates"] == before["locates"], "a local chunk causes no locate"
    assert set(state["pending"].values()) == {0}


def test_a_local_chunk_is_not_pulled(cluster: Cluster, pair: tuple[Engine, Engine]) -> None:
    """Also where a peer has it too, and the chunk behind it comes from there."""
    a, b = pair
    text = prompt(15, 700)
    cold = a.generate(text)
    b.generate(text[:300], kv_transfer_params={"lmkv": {"skip_load": True}})
    cluster.settle(a, b)
    before = b.call("tests.vllm.inside:state")
    warm = b.generate(text, kv_transfer_params=NIXL)
    assert hits(warm) == {"hit_pool": 256, "hit_peer": 256}
    assert warm.tokens == cold.tokens
    after = b.call("tests.vllm.inside:state")
    assert [after[name] - before[name] for name in ("locates", "pulls")] == [1, 1]


@pytest.mark.parametrize(
    ("wish", "cause"), [(NIXL, "hit_peer"), (MAPPED, "hit_mapped"), (None, "hit_mapped")]
)
def test_a_peer_hit(cluster: Cluster, pair: tuple[Engine, Engine], wish: Any, cause: str) -> None:
    a, b = pair
    text = prompt({"hit_peer": 20, "hit_mapped": 21}[cause] + (10 if wish is None else 0), 700)
    cold = a.generate(text)
    cluster.settle(a)
    warm = b.generate(text, kv_transfer_params=wish)
    assert hits(warm) == {cause: 512}
    assert warm.tokens == cold.tokens
    cluster.settle(b)
    assert set(b.call("tests.vllm.inside:state")["pending"].values()) == {0}


def test_a_pulled_chunk_stays_and_a_mapped_one_does_not(
    cluster: Cluster, pair: tuple[Engine, Engine]
) -> None:
    a, b = pair
    for seed, wish, then in ((40, NIXL, {"hit_pool": 512}), (41, MAPPED, {"hit_mapped": 512})):
        a.generate(prompt(seed, 700))
        cluster.settle(a)
        b.generate(prompt(seed, 700), kv_transfer_params=wish)
        cluster.settle(b)
        assert hits(b.generate(prompt(seed, 700))) == then


def test_the_second_turn_of_a_chat_hits_the_generated_tokens(
    cluster: Cluster, pair: tuple[Engine, Engine]
) -> None:
    a, b = pair
    first = prompt(50, 250)
    answer = a.generate(first, max_tokens=300).tokens
    cluster.settle(a)
    second = first + answer + prompt(51, 30)
    warm = b.generate(second)
    assert hits(warm) == {"hit_mapped": 512}
    assert warm.tokens == cluster.reference(second)


def test_salt_isolates(cluster: Cluster, pair: tuple[Engine, Engine]) -> None:
    a, b = pair
    a.generate(prompt(60, 700), salt="one")
    cluster.settle(a)
    assert hits(b.generate(prompt(60, 700), salt="two")) == {}
    assert hits(b.generate(prompt(60, 700), salt="one")) == {"hit_mapped": 512}


def test_a_request_may_opt_out(cluster: Cluster, pair: tuple[Engine, Engine]) -> None:
    a, b = pair
    a.generate(prompt(70, 700), kv_transfer_params={"lmkv": {"skip_store": True}})
    cluster.settle(a)
    assert hits(b.generate(prompt(70, 700))) == {}
    a.generate(prompt(71, 700))
    cluster.settle(a)
    out = b.generate(prompt(71, 700), kv_transfer_params={"lmkv": {"skip_load": True}})
    assert hits(out) == {}
    assert misses(out)["opted_out"] > 0


def test_causes_are_in_vllms_metrics(cluster: Cluster, pair: tuple[Engine, Engine]) -> None:
    a, b = pair
    before = b.tokens_by_cause().get("hit_mapped", 0)
    a.generate(prompt(80, 700))
    cluster.settle(a)
    b.generate(prompt(80, 700))
    assert b.tokens_by_cause()["hit_mapped"] == before + 512
    page = b.call("tests.vllm.inside:scrape")
    listed = {metric.name: metric.kind for metric in INSTANCE}
    assert {n: kind for n, (kind, _) in families(page).items() if ":lmkv_" in n} == listed
    labels = scraped(page)
    for metric in INSTANCE:
        for name in metric.series:
            if name in labels:  # those of peers are there once they count
                le = {"le"} if name.endswith("_bucket") else set()
                assert labels[name] == {"model_name", "engine", *metric.labels} | le, name
    [name] = {each["peer"] for n, each, _ in a.metrics() if n == "vllm:lmkv_instance_info"}
    told = {
        (n, each.get("peer"), each.get("cause") or each.get("source") or each.get("kind")): value
        for n, each, value in b.metrics()
    }
    assert told["vllm:lmkv_peer_hit_tokens_total", name, "hit_mapped"] >= 512
    assert told["vllm:prompt_tokens_cached_by_source_total", None, "p2p"] >= 512
    assert told["vllm:lmkv_copied_bytes_total", None, "load"] > 0


def test_vllm_counts_what_came_from_the_own_pool_as_the_hosts(
    cluster: Cluster, pair: tuple[Engine, Engine]
) -> None:
    a, _ = pair

    def hosts() -> float:
        found = ((n, labels.get("source"), value) for n, labels, value in a.metrics())
        name = "vllm:prompt_tokens_cached_by_source_total"
        return sum(value for n, source, value in found if (n, source) == (name, "host"))

    a.generate(prompt(81, 700))
    cluster.settle(a)
    before = hosts()
    assert hits(a.generate(prompt(81, 700))) == {"hit_pool": 512}
    assert hosts() == before + 512


def test_vllm_never_loads_nixl_or_ucx(pair: tuple[Engine, Engine]) -> None:
    for engine in pair:
        assert engine.call("tests.vllm.inside:libraries") == []


def test_without_vllms_kv_events_nothing_is_kept_for_them(pair: tuple[Engine, Engine]) -> None:
    for engine in pair:
        assert engine.call("tests.vllm.inside:told") is None
        assert engine.call("tests.vllm.inside:idle") <= 1, "the one that is vLLM's own"


def test_a_third_instance_joins_and_hits_and_leaves(
    cluster: Cluster, pair: tuple[Engine, Engine]
) -> None:
    a, b = pair
    cold = a.generate(prompt(100, 700))
    cluster.settle(a)
    c = cluster.start("c")
    cluster.wait_ready(c)
    assert hits(c.generate(prompt(100, 700))) == {"hit_mapped": 512}
    mine = c.generate(prompt(101, 700))
    cluster.settle(c)
    c.call("tests.vllm.inside:close_agent")
    time.sleep(0.2)
    late = b.generate(prompt(101, 700))
    assert hits(late) == {}, "one that left is handed out no more"
    assert late.tokens == mine.tokens
    assert cold.tokens == b.generate(prompt(100, 700)).tokens
    c.stop()


def test_reset_begins_a_new_epoch(cluster: Cluster, pair: tuple[Engine, Engine]) -> None:
    """Of weights that may have changed, nothing is shared any more."""
    a, b = pair
    text = prompt(130, 700)
    a.generate(text)
    cluster.settle(a)
    assert a.call("tests.vllm.inside:reset_cache")
    assert "sharing starts afresh, apart from other instances" in a.log.read_text()
    cluster.wait_ready(a)  # until then b may still be told what was right when it was stored
    assert hits(b.generate(text)) == {}
    assert hits(a.generate(text)) == {}


@pytest.mark.parametrize("file", ["instance-a.yaml", "instance-b.yaml"])
def test_an_instance_starts_with_each_example(cluster: Cluster, file: str) -> None:
    """The files' own settings; only what would meet other instances of this host is overruled."""
    path = Path(__file__).parents[2] / "examples" / file
    own = {"config": str(path), "pool_gib": 0.3, "instance_id": f"example-{file[9]}"}
    a = cluster.start("example", only=own)
    cluster.wait_ready(a)
    assert a.call("tests.vllm.inside:state")["off"] == ""
    a.stop()
