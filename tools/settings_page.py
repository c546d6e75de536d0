"""`python -m tools.settings_page`: write docs/settings.md's tables anew, from the settings."""

from __future__ import annotations

from pathlib import Path

from lmkv.core import config_words
from lmkv.core.config import Config, ControllerConfig, InstanceConfig, allowed, as_text, load, names

from tools.observability.page import between

PAGE = Path(__file__).resolve().parents[1] / "docs" / "settings.md"


def text(page: str) -> str:
    page = between(page, "instance", _table(InstanceConfig, config_words.INSTANCE))
    return between(page, "controller", _table(ControllerConfig, config_words.CONTROLLER))


def _table(kind: type[Config], words: dict[str, str]) -> str:
    rows = ["| setting | default | allowed | what it does |", "|---|---|---|---|"]
    default = load(kind)
    for name in names(kind):
        value = as_text(name, getattr(default, name))
        rows.append(f"| `{name}` | `{value}` | {allowed(kind, name)} | {words[name]} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(text(PAGE.read_text()))
