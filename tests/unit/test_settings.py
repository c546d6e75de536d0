"""What an instance tells of its settings: all, with who set them, and no secret."""

from __future__ import annotations

from typing import Any

from lmkv.agent.settings import handler
from lmkv.core.clock import Deadline
from lmkv.core.config import InstanceConfig, load, names
from lmkv.core.messages import Command, Setting


def told(inline: dict[str, Any], used: dict[str, str] | None = None) -> dict[str, Setting]:
    environ = {"LMKV_TRANSFER": "nixl"}
    config = load(InstanceConfig, inline, environ, {"log": "json"}, "lmkv.yaml")
    result, frames = handler(config, used or {})(Command("x", "config", "a"), [], Deadline(1.0))
    assert frames == []
    return {each.name: each for each in result.settings}


def test_all_of_them_with_their_origin() -> None:
    found = told({"min_tokens": 512})
    assert list(found) == names(InstanceConfig)
    assert found["min_tokens"] == Setting("min_tokens", 512, "inline")
    assert found["transfer"] == Setting("transfer", "nixl", "LMKV_TRANSFER")
    assert found["log"] == Setting("log", "json", "lmkv.yaml")
    assert found["insecure"] == Setting("insecure", False, "default")


def test_what_was_left_open_says_what_it_came_to() -> None:
    used = {"pool_gib": "2.5", "chunk_tokens": "256", "instance_id": "a"}
    found = told({"chunk_tokens": 512}, used)
    assert (found["pool_gib"].value, found["pool_gib"].used) == (None, "2.5")
    assert (found["instance_id"].value, found["instance_id"].used) == ("", "a")
    assert (found["chunk_tokens"].value, found["chunk_tokens"].used) == (512, "")


def test_a_password_in_an_address_is_not_told() -> None:
    found = told({"serving_url": "http://ann:s3cret@host:8000/v1"})
    assert found["serving_url"].value == "http://***@host:8000/v1"
    assert "s3cret" not in repr(found)
    assert told({"serving_url": "http://host/@x"})["serving_url"].value == "http://host/@x"
