"""Operations on real engines: what is copied, moved or pinned hits where it is, with equal output;
what is cleared does not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
from lmkv.core.client import Client
from lmkv.core.messages import AskJob, JobInfo, JobState, Submit

from tests.vllm.cluster import Cluster, hits, misses
from tests.vllm.engine import Engine
from tests.vllm.models import prompt

DEADLINE = 60.0
numbers = count(1)


@pytest.fixture
def client(cluster: Cluster) -> Iterator[Client]:
    with Client(cluster.address, DEADLINE) as client:
        yield client


def done(client: Client, operation: str, tokens: list[int], **more: Any) -> JobState:
    """The job, submitted as people do, once it has ended well."""
    submit = Submit(next(numbers), operation, tokens=tokens, like="a", **more)
    answer, _ = client.ask(submit)
    end = time.monotonic() + DEADLINE
    while isinstance(answer, JobInfo) and answer.job.state in ("queued", "running"):
        assert time.monotonic() < end, answer
        time.sleep(0.05)
        answer, _ = client.ask(AskJob(next(numbers), answer.job.id))
    assert isinstance(answer, JobInfo), answer
    assert answer.job.state == "done", answer
    return answer.job


def pins(engine: Engine) -> int:
    return int(engine.call("tests.vllm.inside:state")["pending"]["pins"])


def test_a_copied_prompt_hits_at_its_new_place(
    cluster: Cluster, pair: tuple[Engine, Engine], client: Client
) -> None:
    a, b = pair
    text = prompt(80, 700)
    cold = a.generate(text)
    cluster.settle(a)
    job = done(client, "copy", text, instance="b")
    assert (job.chunks, job.skipped) == (2, {})
    cluster.settle(b)
    for engine in (a, b):
        warm = engine.generate(text)
        assert hits(warm) == {"hit_pool": 512}
        assert warm.tokens == cold.tokens


def test_a_moved_prompt_hits_at_its_new_place_alone(
    cluster: Cluster, pair: tuple[Engine, Engine], client: Client
) -> None:
    a, b = pair
    text = prompt(81, 700)
    cold = a.generate(text)
    cluster.settle(a)
    assert done(client, "move", text, instance="b", source="a").chunks == 2
    cluster.settle(a, b)
    warm = b.generate(text)
    assert hits(warm) == {"hit_pool": 512}
    again = a.generate(text)
    assert hits(again) == {"hit_mapped": 512}
    assert warm.tokens == again.tokens == cold.tokens


def test_a_pinned_prompt_survives_pressure_and_a_cleared_one_is_gone(
    cluster: Cluster, pair: tuple[Engine, Engine], client: Client
) -> None:
    a, b = pair
    by_job, by_request, neither = prompt(82, 700), prompt(83, 700), prompt(84, 700)
    wish = {"lmkv": {"pin_ttl_s": 600}}
    cold = [a.generate(by_job), a.generate(by_request, kv_transfer_params=wish)]
    a.generate(neither, kv_transfer_params={"lmkv": {"pin_ttl_s": "long"}})  # a bad value costs it
    cluster.settle(a)
    assert done(client, "pin", by_job, instance="a", owner="team").chunks == 2
    cluster.wait(lambda: pins(a) == 4)
    a.call("tests.vllm.inside:press")
    cluster.settle(a)
    for text, before in zip((by_job, by_request), cold):
        warm = a.generate(text)
        assert hits(warm) == {"hit_pool": 512}
        assert warm.tokens == before.tokens
    assert misses(a.generate(neither))["cold"] == 512
    assert done(client, "clear", by_job).skipped == {"pinned": 2}
    assert done(client, "unpin", by_job, instance="a", owner="team").chunks == 2
    done(client, "clear", by_job)
    cluster.settle(a, b)
    assert misses(a.generate(by_job, kv_transfer_params={"lmkv": {"skip_store": True}})) == {
        "cold": 512,
        "too_short": 188,
    }
    done(client, "unpin", by_request, instance="a")
    assert pins(a) == 0
    for engine in pair:
        assert set(engine.call("tests.vllm.inside:state")["pending"].values()) == {0}
