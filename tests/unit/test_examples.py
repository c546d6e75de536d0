"""Every file in examples/ is accepted as it stands, and says nothing that is not so."""

from __future__ import annotations

from pathlib import Path

import pytest
from lmkv.core.config import ControllerConfig, InstanceConfig, load, read_file

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
