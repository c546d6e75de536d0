"""`lmkv config`: settings with their origin, every problem of a file, and LMCache's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from lmkv.cli import lmcache
from lmkv.cli.main import app
from lmkv.core import config_words
from lmkv.core.config import ControllerConfig, InstanceConfig, load, names
from typer.testing import CliRunner, Result

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def lmkv(*words: str, **environ: str) -> Result:
    return CliRunner().invoke(app, ["config", *words], env=environ)


@pytest.mark.parametrize(
    ("whose", "kind"), [("instance", InstanceConfig), ("controller", ControllerConfig)]
)
def test_the_first_file_holds_every_setting_at_its_default(whose: str, kind: Any) -> None:
    text = lmkv("init", whose).stdout
    assert yaml.safe_load(text) is None
    settings = yaml.safe_load("\n".join(line.removeprefix("#") for line in _settings(text)))
    assert sorted(settings) == sorted(names(kind))
    config, default = load(kind, file=settings), load(kind)
    assert [getattr(config, n) for n in names(kind)] == [getattr(default, n) for n in names(kind)]
    words = config_words.INSTANCE if whose == "instance" else config_words.CONTROLLER
    assert list(words) == names(kind)
    told = json.loads(lmkv("init", whose, "-o", "json").stdout)
    assert {name: each["text"] for name, each in told.items()} == words
    assert all(text.count(f"\n# {line}\n#{name}: ") == 1 for name, line in words.items())


def _settings(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("#") and line[1] not in " #"]


def test_settings_say_where_they_come_from(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("pool_gib: 2\nmin_tokens: 5\n")
    shown = lmkv("show", "--config", str(path), "-o", "json", LMKV_MIN_TOKENS="7")
    body = json.loads(shown.stdout)
    assert body["pool_gib"] == {"value": 2.0, "origin": str(path)}
    assert body["min_tokens"] == {"value": 7, "origin": "LMKV_MIN_TOKENS"}
    assert body["transfer"] == {"value": "auto", "origin": "default"}
    table = lmkv("show", "--for", "controller").stdout.splitlines()
    assert [line.split() for line in table if line.startswith("port ")] == [
        ["port", "7550", "default"]
    ]
    wrong = lmkv("show", LMKV_MIN_TOKENS="many")
    assert wrong.exit_code == 1 and "LMKV_MIN_TOKENS" in wrong.stderr


def test_every_problem_of_a_file_is_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("pool_gib: -1\nport: 3\ntransfer: x\npoolgib: 3\n")
    found = lmkv("check", str(path))
    assert found.exit_code == 1
    assert [line.split(" (")[0] for line in found.stdout.splitlines()] == [
        "pool_gib = -1", "setting 'port'", "transfer = 'x'", "setting 'poolgib'",
    ]  # fmt: skip
    path.write_text("pull_deadline_min: 9\n")  # right alone, and not beside the other's default
    [line] = lmkv("check", str(path)).stdout.splitlines()
    assert line.startswith("pull_deadline_min = 9.0") and "pull_deadline_max" in line
    for name in ("controller", "instance-a", "instance-b"):
        assert lmkv("check", str(EXAMPLES / f"{name}.yaml")).exit_code == 0
    assert "No such file" in lmkv("check", str(tmp_path / "b.yaml")).stdout
    path.write_text("a: [1,\n")
    found = lmkv("check", str(path), "-o", "json")
    [problem] = json.loads(found.stdout)["problems"]
    assert found.exit_code == 1 and "is not YAML" in problem
    assert lmkv("check", str(path), "--for", "router").exit_code == 2


# ------------------------------------------------------------------ LMCache's

OURS = """\
chunk_size: 256
local_cpu: true
max_local_cpu_size: 20
local_disk: null
enable_controller: true
lmcache_instance_id: left
controller_url: 10.0.0.1:8300
lmcache_worker_ports: [8001]
enable_blending: false
pd_role: null
min_retrieve_tokens: 512
lookup_timeout_ms: 50
cache_policy: LRU
"""


def test_a_file_of_lmcaches_becomes_ours(tmp_path: Path) -> None:
    path = tmp_path / "lmcache.yaml"
    path.write_text(OURS)
    found = lmkv("import", str(path))
    assert found.exit_code == 0, found.stderr
    settings = yaml.safe_load(found.stdout)
    assert settings == {
        "chunk_tokens": 256, "pool_gib": 20.0, "instance_id": "left", "min_tokens": 512,
        "controllers": ["tcp://10.0.0.1:7550"], "locate_deadline": 0.05,
    }  # fmt: skip
    load(InstanceConfig, file=settings)
    assert len(found.stderr.splitlines()) == len(OURS.splitlines())
    assert "lmcache_worker_ports: not needed, " in found.stderr


@pytest.mark.parametrize(
    ("key", "value", "verdict", "said"),
    [
        ("remote_url", "redis://host", lmcache.REFUSED, "no remote store"),
        ("enable_blending", True, lmcache.REFUSED, "whole prefixes"),
        ("enable_pd", "true", lmcache.REFUSED, "NixlConnector"),
        ("use_layerwise", True, lmcache.REFUSED, "whole"),
        ("use_layerwise", "false", lmcache.NOT_NEEDED, "off"),
        ("local_disk", "file:///x", lmcache.REFUSED, "disk"),
        ("cache_policy", "LFU", lmcache.REFUSED, "retired first"),
        ("local_cpu", False, lmcache.REFUSED, "host memory"),
        ("save_decode_cache", False, lmcache.REFUSED, "skip_store"),
        ("max_local_cpu_size", 0, lmcache.REFUSED, "shares nothing"),
        ("max_local_cpu_size", "much", lmcache.REFUSED, "'much': allowed is a number"),
        ("max_local_cpu_size", float("nan"), lmcache.REFUSED, "allowed is a number"),
        ("max_local_cpu_size", 1e8, lmcache.REFUSED, "at most 65536"),
        ("chunk_size", True, lmcache.REFUSED, "a whole number"),
        ("chunk_size", 1 << 20, lmcache.REFUSED, "65536"),
        ("controller_pull_url", ["x"], lmcache.REFUSED, "HOST:PORT"),
        ("controller_pull_url", "::", lmcache.REFUSED, "HOST:PORT"),
        ("lmcache_instance_id", "two words", lmcache.REFUSED, "letters"),
        ("extra_config", {"a": 1}, lmcache.REFUSED, "a: of"),
        ("extra_config", [1], lmcache.REFUSED, "a mapping"),
        ("nixl_buffer_size", 1, lmcache.REFUSED, "NixlConnector"),
        ("chunk_sise", 1, lmcache.UNKNOWN, "near is chunk_size"),
        ("local_cpu", "yes", lmcache.REFUSED, "true or false"),
    ],
)
def test_what_becomes_of_a_key(key: str, value: Any, verdict: str, said: str) -> None:
    [found] = lmcache.imported({key: value})
    assert (found.key, found.verdict) == (key, verdict)
    assert said in found.text


def test_what_is_refused_fails_and_the_rest_is_printed(tmp_path: Path) -> None:
    path = tmp_path / "lmcache.yaml"
    path.write_text("chunk_size: 512\nremote_url: redis://x\n")
    found = lmkv("import", str(path))
    assert (found.exit_code, found.stdout) == (1, "chunk_tokens: 512\n")
    body = json.loads(lmkv("import", str(path), "-o", "json").stdout)
    assert body["settings"] == {"chunk_tokens": 512}
    assert [each["verdict"] for each in body["keys"]] == ["kept", "refused"]


def test_variables_of_lmcaches_win_over_its_file(tmp_path: Path) -> None:
    path = tmp_path / "lmcache.yaml"
    path.write_text("chunk_size: 512\n")
    more = {"LMCACHE_CHUNK_SIZE": "128", "LMCACHE_LOCAL_CPU": "True", "LMCACHE_LOG_LEVEL": "INFO"}
    found = lmkv("import", str(path), "--env", **more)
    assert (found.exit_code, found.stdout) == (0, "chunk_tokens: 128\n")
    assert "LOG" not in found.stderr.upper().replace("LOGS", "")
    assert lmkv("import").exit_code == 2
