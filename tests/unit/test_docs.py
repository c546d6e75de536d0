"""What the pages point at is there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer
from lmkv.cli.main import app
from lmkv.core.config import InstanceConfig, load

from tools import settings_page

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if "://" not in link:
            assert (page.parent / link).exists(), link
    folders = "bench|csrc|demo|docs|examples|kernels|python|tests|tools"
    for path in re.findall(rf"`((?:{folders})/[A-Za-z0-9_./-]*)`", text):
        assert (ROOT / path).exists(), path


def test_the_index_has_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    pages = [page for page in PAGES if page.parent.name == "docs" and page.name != "README.md"]
    assert len(pages) >= 3
    assert [page.name for page in pages if f"({page.name})" not in index] == []


def test_the_settings_of_the_readme_have_these_defaults() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    default = load(InstanceConfig)
    told = {name: text.strip("`") for name, text in rows}
    assert told == {
        "controllers": f"[{default.controllers[0]}]",
        "cluster": default.cluster,
        "keys": default.keys or "none",
        "control_interface": default.control_interface or "none",
        "data_interface": default.data_interface,
        "data_ports": default.data_ports,
        "pool_gib": "a quarter of free memory",  # None: the worker looks
        "transfer": default.transfer,
        "pull": default.pull,
        "min_tokens": str(default.min_tokens),
        "pin_share": str(default.pin_share),
        "job_bytes_per_second": f"{default.job_bytes_per_second:.0f}",
        "gpu_path": default.gpu_path,
        "pool_device": default.pool_device,
        "gpu_pool_gib": "none",
        "gpu_pulls": default.gpu_pulls,
        "gpu_multiprocessors": str(default.gpu_multiprocessors),
        "gpu_staging_mib": str(default.gpu_staging_mib),
    }


def test_the_page_of_settings_is_as_it_is_written() -> None:
    page = settings_page.PAGE.read_text()
    assert settings_page.text(page) == page


def commands(command: Any, words: tuple[str, ...] = ("lmkv",)) -> dict[str, set[str]]:
    """The short options of each command, or the long ones where there is no short one."""
    if hasattr(command, "commands"):
        each = [commands(inner, (*words, name)) for name, inner in command.commands.items()]
        return {name: options for one in each for name, options in one.items()}
    options = {
        min(param.opts, key=len) for param in command.params if param.opts[0].startswith("-")
    }
    return {" ".join(words): options - {"--help"}}


def test_the_page_of_commands_has_each_with_its_options() -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    rows = re.findall(r"^\| `(lmkv [a-z ]+)` \| .+ \| (.*)\|$", page, re.MULTILINE)
    told = {name: set(re.findall(r"`(-[a-z-]+)`", options)) for name, options in rows}
    assert told == commands(typer.main.get_command(app))
