"""The table of docs/operate.md, to be run against anything that has instances `a` and `b`."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[1] / "docs" / "operate.md"
MARK = "<!-- table: operations -->\n"
PROMPT = "PROMPT"


@dataclass(frozen=True)
class Row:
    operation: str
    body: dict[str, Any]
    words: list[str]  # after `lmkv`
    holders: list[str]
    pinned: list[str]

    def asking(self, prompt: str) -> dict[str, Any]:
        """The body for that prompt."""
        return {name: prompt if value == PROMPT else value for name, value in self.body.items()}

    def typed(self, prompt: str) -> list[str]:
        """The command's words for that prompt."""
        return [prompt if word == PROMPT else word for word in self.words]


def rows() -> list[Row]:
    text = PAGE.read_text().partition(MARK)[2].partition("<!-- end -->")[0]
    return [_row(line) for line in text.splitlines()[2:]]


def _row(line: str) -> Row:
    cells = [cell.strip().strip("`") for cell in line.strip("|").split("|")]
    operation, body, command, holders, pinned = cells
    assert re.match(r"lmkv ", command), command
    words = shlex.split(command)[1:]
    return Row(operation, json.loads(body), words, holders.split(), pinned.split())
