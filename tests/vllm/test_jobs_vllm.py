"""Operations on real engines: what is copied, moved or pinned hits where it is, with equal output;
what is cleared does not. The table of docs/operate.md is run as it stands there."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from typing import Any

import pytest
from lmkv.core.client import Client
from lmkv.core.messages import AskJob, JobInfo, JobState, Submit

from tests import http_client
from tests.contract.test_command_lines import lmkv
from tests.contract.test_controller import until
from tests.operations_table import Row, rows
from tests.vllm.cluster import Cluster, hits, misses
from tests.vllm.engine import Engine, Zygote
from tests.vllm.models import prompt
from tests.vllm.speaking import make_speaking_llama

DEADLINE = 60.0
POOL_GIB = 0.25  # the least: 512 chunks
READ_ONLY = {"lmkv": {"skip_store": True}}
numbers, seeds = count(1), count(300)


@pytest.fixture(scope="module")
def cluster(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    model = make_speaking_llama(tmp_path_factory.mktemp("models") / "speaking")
    with Cluster(zygote, model, tmp_path_factory.mktemp("cluster"), web=True) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def pair(cluster: Cluster) -> tuple[Engine, Engine]:
    """They have a tokenizer, and small pools."""
    extra = {"pool_gib": POOL_GIB}
    a, b = (cluster.start(name, extra, skip_tokenizer_init=False) for name in "ab")
    cluster.wait_ready(a, b)
    return a, b


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


def test_jobs_go_on_while_their_engines_are_busy(
    cluster: Cluster, pair: tuple[Engine, Engine], client: Client
) -> None:
    a, b = pair
    text = prompt(85, 700)
    cold = a.generate(text)
    cluster.settle(a)
    over = threading.Event()

    def ask(engine: Engine) -> int:
        asked = 0
        while not over.is_set():
            engine.generate(prompt(next(seeds), 600), max_tokens=8, kv_transfer_params=READ_ONLY)
            asked += 1
        return asked

    with ThreadPoolExecutor(2) as others:
        busy = [others.submit(ask, engine) for engine in pair]
        try:
            assert done(client, "pin", text, instance="a", owner="team").chunks == 2
            assert done(client, "copy", text, instance="b").chunks == 2
            assert done(client, "compress", text, instance="b").chunks == 2
            assert done(client, "decompress", text, instance="b").chunks == 2
            assert done(client, "unpin", text, instance="a").chunks == 2
            assert done(client, "move", text, instance="b", source="a").skipped == {"present": 2}
        finally:
            over.set()
        assert all(each.result(DEADLINE) for each in busy)
    cluster.settle(a, b)
    warm = b.generate(text)
    assert hits(warm) == {"hit_pool": 512}
    assert warm.tokens == cold.tokens
    for engine in pair:
        assert set(engine.call("tests.vllm.inside:state")["pending"].values()) == {0}


# ------------------------------------------------------------ the table of docs/operate.md


def posted(cluster: Cluster, row: Row, text: str) -> dict[str, Any]:
    """The row's body, as REST's job that has ended."""
    answer = http_client.ask(cluster.http, "/v1/jobs", row.asking(text))
    assert answer.status == 202, answer
    path = answer.headers["location"] + "/events"
    with http_client.Stream(cluster.http, path=path) as stream:
        *_, last = stream  # it ends with the job
    return last.data


def typed(cluster: Cluster, row: Row, text: str) -> dict[str, Any]:
    """The row's command, as the job that it waited for."""
    out, _ = lmkv(*row.typed(text), "--controller", cluster.address, "-o", "json")
    found: dict[str, Any] = json.loads(out)
    return found


def holders(cluster: Cluster, text: str) -> list[list[str]]:
    """By chunk, as lookups of text say."""
    answer = http_client.ask(cluster.http, "/v1/lookup", {"text": text})
    assert answer.status == 200, answer
    found: list[list[str]] = answer.json["holders"]
    return found


def pinned(cluster: Cluster) -> list[tuple[str, int]]:
    """Instances with pins, and of how many chunks each is."""
    answer = http_client.ask(cluster.http, "/v1/pins")
    assert answer.status == 200, answer
    return [(pin["instance"], pin["chunks"]) for pin in answer.json["pins"]]


def stands(cluster: Cluster, row: Row, text: str) -> bool:
    """What the row's last two columns say."""
    held, kept = holders(cluster, text), pinned(cluster)
    return held == [row.holders] * 2 and kept == [(name, 2) for name in row.pinned]


def fill(engine: Engine) -> None:
    """Other prompts, of more chunks than the pool has."""
    long = [{"prompt": prompt(next(seeds), 1800), "max_tokens": 1} for _ in range(80)]
    engine.generate_all(long)


@pytest.mark.parametrize("run", [posted, typed], ids=["rest", "command"])
def test_the_table_of_operations(
    cluster: Cluster,
    pair: tuple[Engine, Engine],
    run: Callable[[Cluster, Row, str], dict[str, Any]],
) -> None:
    text, other = (f"{word} {run.__name__} is a prompt's text. " * 20 for word in ("One", "Other"))
    a, b = pair
    asked = a.call("tests.vllm.speaking:text_tokens", text)
    assert 512 < len(asked) < 768
    cold = a.generate(asked)
    assert hits(cold) == {}
    a.generate(a.call("tests.vllm.speaking:text_tokens", other))
    cluster.settle(a)
    until(lambda: holders(cluster, text) == holders(cluster, other) == [["a"]] * 2)
    for row in rows():
        job = run(cluster, row, text)
        assert (job["operation"], job["state"], job["chunks"]) == (row.operation, "done", 2), job
        assert job["skipped"] == ({"present": 2} if row.operation == "move" else {}), job
        if row.operation == "pin":
            fill(a)
            until(lambda: holders(cluster, other) == [[], []])
        until(partial(stands, cluster, row, text))
        for engine in pair:
            seen = engine.generate(asked, kv_transfer_params=READ_ONLY)
            assert seen.tokens == cold.tokens
            cause = "hit_pool" if engine.name in row.holders else "hit_mapped"
            assert hits(seen) == ({cause: 512} if row.holders else {}), (row, engine.name)
    cluster.settle(a, b)
    for engine in pair:
        state = engine.call("tests.vllm.inside:state")
        assert set(state["pending"].values()) == {0}
        assert {state["granules"][each] for each in ("pinned", "reserved", "limbo")} == {0}
