"""Commands to real engines: text and messages looked up, a sync, slots digested again, and why."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from lmkv.core.client import Client
from lmkv.core.messages import (
    Command,
    Done,
    Lookup,
    LookupInfo,
    Refused,
    Route,
    Routed,
    SyncResult,
    VerifyResult,
    WhyResult,
)

from tests.vllm.cluster import Cluster
from tests.vllm.engine import Engine
from tests.vllm.models import prompt
from tests.vllm.speaking import make_speaking_llama

TEXT = "Whoever asks twice is answered from the pool. " * 15  # 690 bytes, and <s>
CHAT = [
    {"role": "system", "content": "Answer in one word. " * 20},
    {"role": "user", "content": "Why is the second answer faster than the first? " * 5},
]


@pytest.fixture(scope="module")
def speaker(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """It has a tokenizer; the module's other engines (`pair`) have none."""
    model = make_speaking_llama(tmp_path_factory.mktemp("models") / "speaking")
    engine = cluster.start("speaker", model=model, skip_tokenizer_init=False)
    cluster.wait_ready(engine)
    return engine


@pytest.fixture
def client(cluster: Cluster) -> Client:
    with Client(cluster.address, 60.0) as client:
        yield client


def result(client: Client, operation: str, kind: Any, **arguments: str) -> Any:
    """What the speaker answers."""
    named = f"{operation} {arguments}"
    answer, _ = client.ask(Command(named, operation, "speaker", arguments=arguments, request=1))
    assert isinstance(answer, Done), answer
    return msgspec.msgpack.decode(answer.result, type=kind)


def looked_up(client: Client, **prompt: Any) -> LookupInfo:
    found, _ = client.ask(Lookup(1, like="speaker", **prompt))
    assert isinstance(found, LookupInfo), found
    return found


def test_text_and_messages_are_looked_up(cluster: Cluster, speaker: Engine, client: Client) -> None:
    text = speaker.call("tests.vllm.speaking:text_tokens", TEXT)
    chat = speaker.call("tests.vllm.speaking:chat_tokens", CHAT)
    assert (text[0], len(text)) == (1, len(TEXT) + 1)
    assert chat[0] != 1
    assert looked_up(client, text=TEXT).matched == {}
    for tokens, named in ((text, {"text": TEXT}), (chat, {"messages": CHAT})):
        speaker.generate(tokens, max_tokens=1)
        cluster.settle(speaker)
        found = looked_up(client, **named)
        assert found.tokens == len(tokens)
        assert found.keys == looked_up(client, tokens=tokens).keys
        assert found.matched == {"speaker": len(tokens) // 256 * 256}
        routed, _ = client.ask(Route(2, model=str(model_of(client)), **named))
        assert isinstance(routed, Routed), routed
        assert routed.candidates[0].tokens == len(tokens) // 256 * 256
    salted = speaker.generate(text, max_tokens=1, salt="tenant")
    assert salted.num_cached_tokens == 0
    cluster.settle(speaker)
    assert looked_up(client, text=TEXT, salt="tenant").matched == {"speaker": 512}
    assert looked_up(client, text=TEXT, salt="other").matched == {}


def model_of(client: Client) -> str:
    from lmkv.core.messages import Instances

    found, _ = client.ask(Instances(1, instance="speaker"))
    return found.instances[0].model


def test_text_that_cannot_be_tokenised(
    cluster: Cluster, pair: tuple[Engine, Engine], speaker: Engine, client: Client
) -> None:
    long, _ = client.ask(Lookup(1, like="speaker", text="x" * 4000))
    assert isinstance(long, Refused)
    assert long.field == "text"
    assert "2048" in long.message, long
    dumb, _ = client.ask(Lookup(2, like="a", text=TEXT))
    assert isinstance(dumb, Refused)
    assert "no tokenizer (skip_tokenizer_init)" in dumb.message


def test_sync_verify_and_why(cluster: Cluster, speaker: Engine, client: Client) -> None:
    asked = prompt(77, 700)
    speaker.generate(asked)
    cluster.settle(speaker)
    speaker.generate(asked)
    cluster.settle(speaker)
    synced = result(client, "sync", SyncResult)
    assert synced.keys_before == synced.keys_after > 0
    assert (synced.missing, synced.moved, synced.gone) == (0, 0, 0)
    good = result(client, "verify", VerifyResult, sample="1000")
    assert good.keys == good.slots == good.sampled == synced.keys_after
    assert (good.wrong, good.differing) == (0, [])
    newest, before = result(client, "why", WhyResult, last="2").requests
    assert (newest.tokens, newest.matched) == (700, 512)
    assert newest.hit_tokens == {"hit_pool": 512}
    assert newest.miss_tokens == {"too_short": 188}
    assert before.miss_tokens == {"cold": 512, "too_short": 188}
    flipped = speaker.call("tests.vllm.inside:flip_all")
    bad = result(client, "verify", VerifyResult, sample="1001")
    assert flipped == bad.wrong == good.slots
    assert {each.how for each in bad.differing} == {"digest"}
