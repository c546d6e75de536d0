"""Every file in examples/ is accepted as it stands, and says nothing that is not so."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import typer
from lmkv.cli.main import app
from lmkv.core.config import ControllerConfig, InstanceConfig, load, read, read_file

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FILES = sorted(EXAMPLES.glob("*.yaml"))


def test_the_files_that_the_readme_promises() -> None:
    names = [path.name for path in FILES]
    assert names == ["controller.yaml", "instance-a.yaml", "instance-b.yaml"]
    text = (EXAMPLES / "README.md").read_text()
    assert all(f"examples/{name}" in text for name in names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_setting_of_a_file_is_taken(path: Path) -> None:
    kind = ControllerConfig if path.name.startswith("controller") else InstanceConfig
    file = read_file(str(path))
    config = load(kind, file=file, file_name=path.name)
    assert {name for name, origin in config.origins.items() if origin == path.name} == set(file)


def test_the_instances_find_the_controller() -> None:
    controller = load(ControllerConfig, file=read_file(str(EXAMPLES / "controller.yaml")))
    instances = [
        load(InstanceConfig, file=read_file(str(EXAMPLES / f"instance-{name}.yaml")))
        for name in "ab"
    ]
    for instance in instances:
        assert instance.controllers == [f"tcp://{controller.host}:{controller.port}"]
        assert instance.cluster == controller.cluster
    assert len({instance.instance_id for instance in instances}) == 2
    assert len({instance.serving_url for instance in instances}) == 2


# ------------------------------------------------------------------ the README's commands


def commands() -> list[list[str]]:
    """The words of every command in the README's fences, environment first."""
    blocks = (EXAMPLES / "README.md").read_text().split("```sh\n")[1:]
    text = "\n".join(block.partition("```")[0] for block in blocks).replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines() if line.strip()]


def test_every_lmkv_command_names_options_that_exist() -> None:
    ours = [words[1:] for words in commands() if words[0] == "lmkv"]
    assert {words[0] for words in ours} == {"controller", "status"}
    group = typer.main.get_command(app)
    for words in ours:
        command = group.commands[words[0]]  # type: ignore[attr-defined]
        command.make_context(words[0], words[1:])  # raises UsageError where an option is not known


def test_every_server_runs_with_a_file_that_fits_its_command() -> None:
    servers = [words for words in commands() if "vllm.entrypoints.openai.api_server" in words]
    assert len(servers) == 4  # two on CPUs, two on GPUs
    for words in servers:
        environ = dict(word.split("=", 1) for word in words[: words.index("python")])
        file = EXAMPLES.parent / environ["LMKV_CONFIG_FILE"]
        config = read(InstanceConfig, {}, {"LMKV_CONFIG_FILE": str(file)})
        assert config.serving_url.endswith(":" + words[words.index("--port") + 1])
        transfer = json.loads(words[words.index("--kv-transfer-config") + 1])
        assert transfer == {"kv_connector": "LmkvConnector", "kv_role": "kv_both"}
