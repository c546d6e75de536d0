"""Lookups of text, messages and adapters: a real controller, its web process, and real agents whose
tokenizer is a small one. vLLM's own are in tests/vllm/test_commands_vllm.py."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from lmkv.agent.texts import Texts
from lmkv.core.client import Client
from lmkv.core.extras import LORA, SALT, pack
from lmkv.core.messages import Lookup, LookupInfo, Refused

from tests.contract.test_command_lines import lmkv
from tests.contract.test_controller import DEADLINE, until
from tests.contract.test_controllers import CHUNK, Instance
from tests.web import Web

TEXT = "twelve chars"  # three chunks
CHAT = [{"role": "user", "content": "hello"}]  # `user: hello`, eleven tokens
LORA_HASH = bytes(range(32))
SLOW = "slow"  # a text that takes until it is let go


class Tokeniser:
    """A token for each character; messages are lines."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def __call__(self, text: str, messages: Sequence[dict[str, str]]) -> list[int]:
        if text == SLOW:
            assert self.go.wait(DEADLINE)
        if messages:
            text = "\n".join(f"{each['role']}: {each['content']}" for each in messages)
        if "\0" in text:
            raise ValueError("text: the character 0 is none")
        return [ord(character) for character in text]


class Reader(Instance):
    """An instance with a tokenizer that knows the adapter `law`."""

    def __init__(self, name: str, web: Web, tokeniser: Tokeniser | None) -> None:
        self.tokeniser = tokeniser
        texts = Texts(tokeniser, {"law": LORA_HASH}.get)
        super().__init__(name, [web.state], texts=texts)

    def keep(self, text: str, salt: str = "", lora: bytes = b"") -> None:
        items = [(SALT, salt.encode()), (LORA, lora)]
        chain = self.agent._hasher.chain(pack(item for item in items if item[1]))
        chain.extend([ord(character) for character in text], 0, {})
        room = self.agent.table.reserve(chain.keys(0, 0, len(chain)), 0.0)
        assert room is not None
        self.agent.table.admit(*room)
        self.agent.background.wake()


@pytest.fixture
def us(web: Web) -> Iterator[Reader]:
    yield from running(web, Tokeniser())


@pytest.fixture
def mute(web: Web) -> Iterator[Reader]:
    """One that tokenises nothing."""
    yield from running(web, None)


def running(web: Web, tokeniser: Tokeniser | None) -> Iterator[Reader]:
    us = Reader("us", web, tokeniser)
    path = "/v1/instances/us"
    until(lambda: web.ask(path).status == 200 and web.ask(path).json["state"] == "live")
    yield us
    if us.tokeniser is not None:
        us.tokeniser.go.set()
    us.agent.close()


def holds(web: Web, keys: int) -> None:
    until(lambda: web.ask("/v1/instances/us").json["keys"] == keys)


def test_text_messages_salt_and_lora(web: Web, us: Reader) -> None:
    us.keep(TEXT)
    us.keep("user: hello")
    us.keep(TEXT[:8], salt="tenant")
    us.keep(TEXT[:4], lora=LORA_HASH)
    us.keep(TEXT[:4], salt="tenant", lora=LORA_HASH)
    holds(web, 3 + 2 + 2 + 1 + 1)
    for body, tokens, matched in (
        ({"text": TEXT}, 12, 12),
        ({"text": TEXT + "!"}, 13, 12),
        ({"text": TEXT, "model": ""}, 12, 12),
        ({"text": TEXT, "like": "us"}, 12, 12),
        ({"messages": CHAT}, 11, 8),
        ({"text": TEXT, "salt": "tenant"}, 12, 8),
        ({"text": TEXT, "salt": "other"}, 12, 0),
        ({"text": TEXT, "lora": "law"}, 12, 4),
        ({"text": TEXT, "lora": "law", "salt": "tenant"}, 12, 4),
        ({"tokens": list(map(ord, TEXT)), "lora": "law"}, 12, 4),
    ):
        found = web.ask("/v1/lookup", body)
        assert found.status == 200, (body, found)
        assert found.json["tokens"] == tokens, body
        assert found.json["matched"].get("us", 0) == matched, body
        assert len(found.json["keys"]) == tokens // CHUNK
        located = web.ask("/v1/locate", {k: v for k, v in body.items() if k != "like"})
        assert located.status == 200, (body, located)
        assert located.json["candidates"][0]["tokens"] == matched, body


def test_a_batch_of_prompts(web: Web, us: Reader) -> None:
    us.keep(TEXT)
    us.keep("user: hello")
    holds(web, 5)
    prompts: list[dict[str, Any]] = [
        {"text": TEXT}, {"messages": CHAT}, {"tokens": [1, 2, 3, 4]}, {"text": TEXT[:9]},
    ]  # fmt: skip
    answer = web.ask("/v1/locate", {"prompts": prompts})
    assert answer.status == 200, answer
    found = [each["candidates"][0]["tokens"] for each in answer.json["prompts"]]
    assert found == [12, 8, 0, 8]
    many = web.ask("/v1/locate", {"prompts": [{"text": TEXT}] * 64})
    assert [each["candidates"][0]["tokens"] for each in many.json["prompts"]] == [12] * 64


@pytest.mark.parametrize(
    ("path", "body", "status", "field", "words"),
    [
        ("lookup", {"text": "a\0"}, 400, "text", "text: the character 0 is none"),
        ("lookup", {"text": TEXT, "lora": "cook"}, 400, "lora", "lora 'cook': no request with it"),
        ("lookup", {"text": TEXT, "model": "gone"}, 404, "model", "model 'gone'"),
        ("lookup", {"text": TEXT, "like": "gone"}, 404, "like", "'gone' is not known"),
        ("lookup", {"text": TEXT, "tokens": [1]}, 400, "text", "a prompt is given once"),
        ("lookup", {"messages": CHAT, "text": TEXT}, 400, "messages", "a prompt is given once"),
        ("lookup", {"messages": CHAT, "keys": ["0" * 32]}, 400, "keys", "a prompt is given once"),
        ("lookup", {"lora": "law", "keys": ["0" * 32]}, 400, "lora", "keys are given"),
        ("lookup", {}, 400, "tokens", "a prompt is given once"),
        ("lookup", {"text": "x" * (1 << 20) + "x"}, 400, "text", "at most 1048576"),
        ("lookup", {"messages": [{"role": "user"}]}, 400, "messages.0.content", "required"),
        ("lookup", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400,
         "messages.0.content", "string"),
        ("locate", {"text": TEXT, "prompts": [{"text": TEXT}]}, 400, "text", "exclude each other"),
        ("locate", {"prompts": [{"text": TEXT, "tokens": [1]}]}, 400, "prompts.0.text", "once"),
        ("locate", {"text": TEXT, "model": "gone"}, 404, "model", "model 'gone'"),
    ],
)  # fmt: skip
def test_what_is_refused(
    web: Web, us: Reader, path: str, body: object, status: int, field: str, words: str
) -> None:
    answer = web.ask(f"/v1/{path}", body)
    assert (answer.status, answer.error["field"]) == (status, field), answer
    assert words in answer.error["message"], answer


def test_one_without_a_tokenizer(web: Web, mute: Reader) -> None:
    answer = web.ask("/v1/lookup", {"text": TEXT})
    assert (answer.status, answer.error["field"]) == (400, "text")
    assert answer.error["message"] == "text: this instance tokenises nothing: give token ids"


def test_others_go_on_while_one_is_slow(web: Web, us: Reader) -> None:
    us.keep(TEXT)
    holds(web, 3)
    slow: list[Any] = []
    thread = threading.Thread(target=lambda: slow.append(web.ask("/v1/lookup", {"text": SLOW})))
    thread.start()
    until(lambda: bool(us.agent.commands._threads))
    assert web.ask("/v1/lookup", {"text": TEXT}).json["matched"] == {"us": 12}
    assert us.cause([1, 2, 3, 4]) == "cold"
    assert us.tokeniser is not None
    us.tokeniser.go.set()
    thread.join(DEADLINE)
    assert slow[0].status == 200


def test_over_the_controllers_own_socket(web: Web, us: Reader) -> None:
    us.keep(TEXT)
    holds(web, 3)
    with Client(web.state, DEADLINE) as client:
        found, _ = client.ask(Lookup(7, text=TEXT))
        assert isinstance(found, LookupInfo), found
        assert (found.request, found.matched, found.tokens) == (7, {"us": 12}, 12)
        both, _ = client.ask(Lookup(8, [1], text=TEXT))
        assert isinstance(both, Refused)
        assert (both.request, both.field) == (8, "text")


@pytest.mark.parametrize("socket", ["state", "http"])
def test_lmkv_lookup(web: Web, us: Reader, tmp_path: Path, socket: str) -> None:
    us.keep(TEXT)
    us.keep("user: hello")
    us.keep(TEXT[:4], lora=LORA_HASH)
    holds(web, 6)
    address = str(getattr(web, socket))
    (tmp_path / "text").write_text(TEXT)
    (tmp_path / "chat").write_text(json.dumps(CHAT))
    for words, matched in (
        ((TEXT,), 12),
        ((f"@{tmp_path / 'text'}",), 12),
        ((TEXT, "--lora", "law"), 4),
        ((TEXT, "--salt", "other"), 0),
        (("--messages", str(tmp_path / "chat")), 8),
        (("--messages", str(tmp_path / "chat"), "--like", "us"), 8),
    ):
        out, _ = lmkv("lookup", *words, "--controller", address, "-o", "json")
        assert json.loads(out)["matched"].get("us", 0) == matched, words
    _, said = lmkv("lookup", TEXT, "--lora", "cook", "--controller", address, status=1)
    assert said.startswith("lmkv: lora 'cook': no request with it")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "TEXT: give one of TEXT, --tokens, --messages"),
        (["x", "--tokens", "1"], "TEXT and --tokens: give one of"),
        (["@/nowhere/text"], "TEXT @/nowhere/text: No such file"),
        (["--messages", "/nowhere/chat"], "--messages @/nowhere/chat: No such file"),
        (["--messages", "BAD"], "allowed is a list of objects with texts"),
        (["--messages", "LESS"], "message 0 has no role, or no content"),
        (["--messages", "NONE"], "there are none"),
    ],
)
def test_what_lmkv_lookup_does_not_take(tmp_path: Path, words: list[str], said: str) -> None:
    for name, text in (("BAD", '[{"role": 1}]'), ("LESS", '[{"role": "user"}]'), ("NONE", "[]")):
        (tmp_path / name).write_text(text)
    words = [str(tmp_path / word) if word.isupper() else word for word in words]
    assert said in lmkv("lookup", *words, status=2)[1]
