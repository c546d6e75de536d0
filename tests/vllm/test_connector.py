"""The connector alone: what is not shared is one line, and no exception reaches vLLM."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

vllm = pytest.importorskip("vllm", reason="vllm is not installed")

from lmkv.connector import LmkvConnector  # noqa: E402
from lmkv.connector_metadata import LmkvHandshake, LmkvWorkerMetadata  # noqa: E402
from lmkv.core.messages import PullResult  # noqa: E402
from lmkv.core.steps import LoadResult  # noqa: E402
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole  # noqa: E402
from vllm.v1.metrics.cache_hit_source import CacheHitSource  # noqa: E402


def connector(monkeypatch: pytest.MonkeyPatch, device: str = "cpu", **parallel: int) -> Any:
    monkeypatch.setattr(vllm.platforms, "current_platform", SimpleNamespace(device_type=device))
    transfer = SimpleNamespace(
        kv_connector_extra_config={}, kv_load_failure_policy="fail", engine_id="e"
    )
    config = SimpleNamespace(
        kv_transfer_config=transfer, parallel_config=SimpleNamespace(**parallel)
    )
    return LmkvConnector(config, KVConnectorRole.SCHEDULER, kv_cache_config=None)


def answers_like_an_empty_cache(connector: Any) -> bool:
    request = SimpleNamespace(request_id="r", skip_reading_prefix_cache=False, num_tokens=700)
    connector.on_new_request(request)
    return (
        connector.get_num_new_matched_tokens(request, 0) == (0, False)
        and connector.request_finished(request, []) == (False, None)
        and not connector.build_connector_meta(SimpleNamespace()).plan
    )


def test_another_device_is_told_in_one_line_and_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused on CUDA: test_cuda_connector.py."""
    off = connector(monkeypatch, "xpu")
    assert off._off == "opted_out: KV on xpu is not shared yet, only on a CPU or by CUDA"
    assert answers_like_an_empty_cache(off)


@pytest.mark.parametrize("name", ["prefill_context_parallel_size", "decode_context_parallel_size"])
def test_a_deployment_that_is_not_shared_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    off = connector(monkeypatch, **{name: 2})
    assert off._off == f"{name} = 2 is not shared yet, only 1"
    assert answers_like_an_empty_cache(off)


def test_a_rank_that_cannot_share_switches_all_off(monkeypatch: pytest.MonkeyPatch) -> None:
    one = connector(monkeypatch)
    assert not one._off
    one.set_xfer_handshake_metadata_pp_aware({(0, 0): LmkvHandshake(error="no room for a pool")})
    assert one._off == "no room for a pool"
    assert answers_like_an_empty_cache(one)


def test_an_exception_switches_off_and_is_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    one = connector(monkeypatch)
    one._agent = SimpleNamespace(match=lambda *_: 1 // 0)
    request = SimpleNamespace(request_id="r", skip_reading_prefix_cache=False, num_tokens=700)
    assert one.get_num_new_matched_tokens(request, 0) == (0, False)
    assert "internal error" in one._off


def test_failed_loads_are_recomputed_whatever_vllms_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = connector(monkeypatch)
    assert one._vllm_config.kv_transfer_config.kv_load_failure_policy == "recompute"


class Outer:
    """As vLLM's MultiConnector: its children get configurations of their own."""

    def __init__(self, childs_config: Any) -> None:
        self.sub_connectors: list[Any] = []
        transfer = SimpleNamespace(kv_load_failure_policy="fail")
        self._vllm_config = SimpleNamespace(kv_transfer_config=transfer)
        LmkvConnector(childs_config, KVConnectorRole.SCHEDULER, kv_cache_config=None)


def test_also_inside_a_multi_connector(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM reads the outer setting alone, once the outer connector is made."""
    outer = Outer(connector(monkeypatch)._vllm_config)
    assert outer._vllm_config.kv_transfer_config.kv_load_failure_policy == "recompute"


def test_the_handshake_of_another_connector_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    one = connector(monkeypatch)
    one.set_xfer_handshake_metadata_pp_aware({(0, 0): SimpleNamespace()})
    assert "name LmkvConnector first" in one._off
    assert answers_like_an_empty_cache(one)


def test_vllm_is_told_which_tokens_came_from_here_and_which_from_peers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, request = connector(monkeypatch), SimpleNamespace(request_id="r")
    host, p2p = CacheHitSource.HOST, CacheHitSource.P2P

    def split(**hits: int) -> dict[Any, int]:
        one._agent = SimpleNamespace(hit_tokens=lambda request: hits)
        return one.get_external_cache_hit_sources(request, sum(hits.values()))

    assert split(hit_pool=256, hit_mapped=512, hit_peer=256) == {host: 256, p2p: 768}
    assert split(hit_pool=256) == {host: 256}
    assert split(hit_peer=1) == {p2p: 1}
    one._agent = SimpleNamespace(hit_tokens=lambda request: 1 // 0)
    assert one.get_external_cache_hit_sources(request, 7) == {}  # vLLM counts it as unspecified


def test_a_load_counts_as_far_as_every_rank_got() -> None:
    good, bad = LoadResult(2, bytes=10), LoadResult(1, PullResult.DIGEST, bytes=5)
    both = LmkvWorkerMetadata({"r": (1, good)}).aggregate(LmkvWorkerMetadata({"r": (1, bad)}))
    count, result = both.loads["r"]
    assert (count, result.good, result.result, result.bytes) == (2, 1, PullResult.DIGEST, 15)


class Planning:
    """An agent that notes what it is asked to plan."""

    def __init__(self, prompt_tokens: int) -> None:
        self.prompt_tokens, self.confirmed, self.opted_out = prompt_tokens, 0, ""

    def has_grown(self, request: str, prompt_tokens: int) -> bool:
        return prompt_tokens != self.prompt_tokens

    def continued(self, request: str, tokens: list[int], *extras: Any) -> None:
        self.opted_out = extras[-1]

    def plan(self, request: str, tokens: list[int], confirmed: int) -> tuple[int, int]:
        self.confirmed = confirmed
        return 0, 0


def planned(one: Any, computed: int, scheduled: int, known: int, prompt: int) -> Planning:
    """A step of a request whose prompt had 500 tokens when it began."""
    agent = Planning(500)
    one._requests["r"] = SimpleNamespace(
        request_id="r",
        num_computed_tokens=computed,
        num_tokens=known,
        num_prompt_tokens=prompt,
        _all_token_ids=[7] * known,
    )
    one._extras = lambda request, why: (b"", {}, why)
    one._stores(agent, SimpleNamespace(num_scheduled_tokens={"r": scheduled}))
    return agent


@pytest.mark.parametrize(
    ("method", "held_back"),
    [("eagle", 64), ("eagle3", 64), ("mtp", 64), ("ngram", 0), ("draft_model", 0), ("", 0)],
)
def test_what_a_draft_head_may_come_back_to_is_held_back(
    monkeypatch: pytest.MonkeyPatch, method: str, held_back: int
) -> None:
    from vllm.config import SpeculativeConfig

    draft = SimpleNamespace(method=method)
    draft.use_eagle = lambda: SpeculativeConfig.use_eagle(draft)
    one = connector(monkeypatch)
    one._expect_drafts(draft if method else None, 64)
    assert planned(one, 0, 256, known=500, prompt=500).confirmed == 256
    assert planned(one, 700, 5, known=701, prompt=500).confirmed == 701 - held_back


@pytest.mark.parametrize("drafts", [False, True])
def test_a_session_goes_on_being_stored_unless_it_has_drafts(
    monkeypatch: pytest.MonkeyPatch, drafts: bool
) -> None:
    one = connector(monkeypatch)
    one._drafts = drafts
    assert bool(planned(one, 600, 20, known=620, prompt=620).opted_out) == drafts
