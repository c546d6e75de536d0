"""Settings: what wins, where it came from, and the sentence for what cannot be accepted."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_type_hints

import msgspec
import pytest
from lmkv.core.config import (
    ConfigError,
    ControllerConfig,
    InstanceConfig,
    as_text,
    load,
    names,
    read,
    split_address,
)

KINDS = [InstanceConfig, ControllerConfig]


def refusal(kind: Any = InstanceConfig, **sources: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(kind, **sources)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


# ------------------------------------------------------------------ which value, and whence


def test_inline_wins_over_environment_over_file_over_default() -> None:
    inline = {"min_tokens": 1}
    environ = {"LMKV_MIN_TOKENS": "2", "LMKV_AUDIT_EVERY": "20"}
    file = {"min_tokens": 3, "audit_every": 30, "limbo_seconds": 300}
    config = load(InstanceConfig, inline, environ, file, "a.yaml")
    found = {n: (getattr(config, n), config.origins[n]) for n in [*file, "load_deadline"]}
    assert found == {
        "min_tokens": (1, "inline"),
        "audit_every": (20, "LMKV_AUDIT_EVERY"),
        "limbo_seconds": (300.0, "a.yaml"),
        "load_deadline": (10.0, "default"),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_has_the_same_name_everywhere(kind: Any) -> None:
    default = load(kind)
    for name in names(kind):
        value = getattr(default, name)
        text = ",".join(value) if isinstance(value, list) else value
        text = as_text(name, None) if value is None else text
        for sources in (
            {"inline": {name: value}},
            {"file": {name: value}},
            {"environ": {"LMKV_" + name.upper(): str(text)}},
        ):
            if value is None and "inline" in sources:
                sources = {"inline": {name: text}}
            config = load(kind, **sources)
            assert getattr(config, name) == value, (name, sources)
            assert config.origins[name] != "default"


def test_an_empty_inline_configuration_is_the_default() -> None:
    config = load(InstanceConfig, {})
    assert config.controllers == ["tcp://127.0.0.1:7550"]
    assert set(config.origins.values()) == {"default"}


def test_a_wrong_value_is_refused_also_where_another_source_wins() -> None:
    assert "LMKV_MIN_TOKENS" in refusal(
        inline={"min_tokens": 1}, environ={"LMKV_MIN_TOKENS": "many"}
    )


def test_one_environment_serves_both_kinds() -> None:
    environ = {"LMKV_PORT": "7000", "LMKV_TRANSFER": "nixl", "LMKV_ISA": "scalar", "HOME": "/"}
    assert load(InstanceConfig, environ=environ).transfer == "nixl"
    assert load(ControllerConfig, environ=environ).port == 7000


def test_text_of_the_environment_becomes_numbers_and_lists() -> None:
    config = load(
        InstanceConfig,
        environ={"LMKV_POOL_GIB": "0.5", "LMKV_CONTROLLERS": "tcp://a:1, tcp://[::1]:2"},
    )
    assert config.pool_gib == 0.5
    assert config.controllers == ["tcp://a:1", "tcp://[::1]:2"]


@pytest.mark.parametrize("value", [None, "auto"])
def test_auto_is_no_value(value: str | None) -> None:
    config = load(InstanceConfig, {"pool_gib": value, "chunk_tokens": value})
    assert (config.pool_gib, config.chunk_tokens) == (None, None)


def test_ports_as_numbers() -> None:
    assert load(InstanceConfig, {"data_ports": "20000-20063"}).data_port_range() == (20000, 20063)


# ------------------------------------------------------------------ unknown names


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        ({"inline": {"tranfer": "nixl"}}, ["'tranfer'", "inline", "'transfer'"]),
        ({"file": {"pool_gb": 1}, "file_name": "a.yaml"}, ["'pool_gb'", "a.yaml", "'pool_gib'"]),
        ({"environ": {"LMKV_POOL_GB": "1"}}, ["LMKV_POOL_GB", "'LMKV_POOL_GIB'"]),
        ({"environ": {"LMKV_pool_gib": "1"}}, ["LMKV_pool_gib", "environment"]),
        ({"inline": {"origins": {}}}, ["'origins'", "inline"]),
        ({"file": {3: 4}}, ["3", "the file"]),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(sources: Any, words: list[str]) -> None:
    sentence = refusal(**sources)
    assert all(word in sentence for word in words), sentence


def test_a_setting_of_the_other_kind_is_named_as_such() -> None:
    assert "setting of the controller" in refusal(file={"port": 7550})
    assert "setting of the instance" in refusal(ControllerConfig, inline={"pool_gib": 1})


# ------------------------------------------------------------------ bad values


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("transfer", "rdma", "auto, mapped or nixl"),
        ("transfer", "", "auto, mapped or nixl"),
        ("pull", True, "auto, always or never"),
        ("pool_gib", 0, "GiB above 0"),
        ("pool_gib", -1.5, "GiB above 0"),
        ("pool_gib", "inf", "GiB above 0"),
        ("pool_gib", float("nan"), "GiB above 0"),
        ("chunk_tokens", 0, "1 to 65536"),
        ("chunk_tokens", 256.5, "1 to 65536"),
        ("min_tokens", 10**30, "0 to 10000000"),
        ("min_tokens", True, "0 to 10000000"),
        ("min_tokens", 256.0, "0 to 10000000"),
        ("min_tokens", [256], "0 to 10000000"),
        ("limbo_share", 0.9, "at most 0.5"),
        ("pin_share", 1.5, "a share from 0 to 1"),
        ("job_bytes_per_second", -1, "0 (any), or bytes per second"),
        ("locate_deadline", 0, "seconds above 0"),
        ("locate_deadline", "1e400", "seconds above 0"),
        ("cluster", "", "1 to 200 letters"),
        ("cluster", "two words", "1 to 200 letters"),
        ("cluster", None, "1 to 200 letters"),
        ("serving_url", "host:8000", "http://"),
        ("data_ports", "20000-20062", "at least 64 ports"),
        ("data_ports", "80-1000", "from 1024"),
        ("data_ports", "65000-70000", "65535"),
        ("data_ports", "20000", "FIRST-LAST"),
        ("nixl_tls", "rc", "tcp or cma"),
        ("controllers", [], "1 to 16 addresses"),
        ("controllers", 7550, "1 to 16 addresses"),
        ("controllers", "http://127.0.0.1:7552", "is not tcp://HOST:PORT"),
        ("controllers", ["tcp://127.0.0.1"], "tcp://HOST:PORT"),
        ("controllers", ["tcp://127.0.0.1:99999"], "no port from 1 to 65535"),
        ("controllers", ["dns+tcp://name"], "is not tcp://HOST:PORT"),
        ("controllers", ["dns+udp://name:7550"], "dns+tcp://NAME:PORT"),
    ],
)
def test_a_bad_value_names_setting_value_source_and_what_is_allowed(
    name: str, value: Any, allowed: str
) -> None:
    sentence = refusal(inline={name: value})
    assert sentence.startswith(f"{name} = {value!r} (inline): allowed is ")
    assert allowed in sentence


WRONG: list[Any] = [
    [], {}, [[]], object(), None, -1, 1.5, True, 10**400, float("nan"), b"x", "-", "999999999999",
    "\x00", "a\nb", "\x7f", "x" * 5000, "\ud800",
]  # fmt: skip


def is_refused(kind: Any, name: str, value: Any) -> bool:
    """With the setting's name; and what is taken is of the setting's type."""
    try:
        config = load(kind, {name: value})
    except ConfigError as error:
        sentence = str(error)
    else:
        msgspec.convert(getattr(config, name), get_type_hints(kind)[name], strict=True)
        return False
    assert name in sentence and sentence.isprintable(), (name, value)
    return True


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_refuses_or_takes_any_value(kind: Any) -> None:
    for name in names(kind):
        assert sum(is_refused(kind, name, value) for value in WRONG) > 8, name


def test_values_that_are_right_only_together() -> None:
    sentence = refusal(inline={"pull_deadline_min": 9})
    assert "pull_deadline_min = 9.0 (inline)" in sentence
    assert "pull_deadline_max = 5.0 (default)" in sentence
    assert "less than" in refusal(ControllerConfig, inline={"suspect_after_beats": 5})
    assert "warming_least" in refusal(ControllerConfig, inline={"warming_most": 1})
    assert "another port" in refusal(ControllerConfig, inline={"port": 7000, "query_port": 7000})
    assert "next one" in refusal(ControllerConfig, inline={"port": 65535})
    assert load(ControllerConfig, {"port": 0, "query_port": 0}).port == 0


@pytest.mark.parametrize(
    "address",
    ["", "tcp://", "tcp://:1", "tcp://a:", "tcp://*:1", "a:1", "tcp://a@b:1", "tcp://é:1"],
)
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ValueError, match=r"tcp://HOST:PORT|no port"):
        split_address(address)


def test_an_address_of_version_6() -> None:
    assert split_address("tcp://[::1]:7550") == ("[::1]", 7550)


# ------------------------------------------------------------------ the file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lmkv.yaml"


def test_the_file_is_named_inline_or_in_the_environment(path: Path, tmp_path: Path) -> None:
    path.write_text("transfer: nixl\n")
    other = tmp_path / "other.yaml"
    other.write_text("transfer: mapped\n")
    environ = {"LMKV_CONFIG_FILE": str(path)}
    assert read(InstanceConfig, {}, environ).transfer == "nixl"
    config = read(InstanceConfig, {"config": str(other)}, environ)
    assert (config.transfer, config.origins["transfer"]) == ("mapped", str(other))
    assert read(InstanceConfig, {}, {}).transfer == "auto"


def test_an_empty_file_has_no_settings(path: Path) -> None:
    path.write_text("# nothing\n")
    assert set(read(InstanceConfig, {"config": str(path)}, {}).origins.values()) == {"default"}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"transfer: [", "is not YAML"),
        (b"\xff\xfe\x00", "is not YAML"),
        (b"a: !!python/object/apply:os.getcwd []\n", "is not YAML"),
        (b"[" * 5000, "is not YAML"),
        (b"- transfer\n", "holds a list"),
        (b"nixl\n", "holds a str"),
    ],
)
def test_a_file_that_holds_no_settings(path: Path, body: bytes, words: str) -> None:
    path.write_bytes(body)
    with pytest.raises(ConfigError) as caught:
        read(InstanceConfig, {"config": str(path)}, {})
    assert words in str(caught.value) and str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read(InstanceConfig, {"config": str(path)}, {})


def test_a_path_that_is_no_path() -> None:
    with pytest.raises(ConfigError, match="allowed is the path"):
        read(InstanceConfig, {"config": 3}, {})


# ------------------------------------------------------------------ pools in a GPU's memory


def test_a_pool_on_a_gpu_has_a_size():
    for device in ("cuda", "cuda+host"):
        config = load(InstanceConfig, {"pool_device": device, "gpu_pool_gib": 2})
        assert (config.pool_device, config.gpu_pool_gib) == (device, 2)
    load(InstanceConfig, {"pool_device": "cuda+host", "gpu_pool_gib": 2, "pool_gib": 3})


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (
            {"pool_device": "cuda"},
            "gpu_pool_gib = none (default): allowed is a size in GiB with pool_device = cuda",
        ),
        ({"gpu_pool_gib": 2}, "gpu_pool_gib = 2.0 (inline): allowed is none with pool_device"),
        (
            {"pool_device": "cuda", "gpu_pool_gib": 2, "pool_gib": 3},
            "pool_gib = 3.0 (inline): allowed is auto with pool_device = cuda (inline), whose size",
        ),
        ({"pool_device": "rocm"}, "allowed is host, cuda or cuda+host"),
        ({"pool_device": "cuda", "gpu_pool_gib": 0}, "allowed is none, or GiB above 0"),
    ],
)
def test_a_pool_on_a_gpu_that_cannot_be(settings, why):
    with pytest.raises(ConfigError) as error:
        load(InstanceConfig, settings)
    assert why in str(error.value)


def test_peers_of_a_controller() -> None:
    config = load(ControllerConfig, {"peers": "tcp://a:1, tcp://b:2"})
    assert config.peers == ["tcp://a:1", "tcp://b:2"]
    assert load(ControllerConfig).peers == []
    for wrong in ("udp://a:1", "dns+tcp://a:1", "tcp://a", ["tcp://a:1"] * 17):
        with pytest.raises(
            ConfigError, match=r"peers = .*allowed is up to 16 addresses tcp://HOST"
        ):
            load(ControllerConfig, {"peers": wrong})
