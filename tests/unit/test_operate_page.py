"""The operations of docs/operate.md: each is there, and its two forms ask for the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from lmkv import agent
from lmkv.cli import operations
from lmkv.cli.main import app
from lmkv.core.messages import OPERATIONS, JobInfo, JobState, Submit
from lmkv.web import job_models
from typer.testing import CliRunner

from tests.operations_table import PAGE, Row, rows

ROWS = rows()


def test_every_operation_is_in_the_table() -> None:
    assert sorted(row.operation for row in ROWS) == sorted(OPERATIONS)
    text = PAGE.read_text()
    assert all(f"**{operation}**" in text for operation in OPERATIONS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.operation)
def test_both_forms_ask_for_the_same(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Submit] = []

    def ask(controller: str, message: Submit, *_: Any, **__: Any) -> JobInfo:
        asked.append(message)
        return JobInfo(1, JobState("j1", row.operation, "done"))

    monkeypatch.setattr(operations, "ask", ask)
    ran = CliRunner().invoke(app, row.typed("once upon a time"))
    assert ran.exit_code == 0, ran.output
    [message] = asked
    body = job_models.Submit.model_validate(row.asking("once upon a time"))
    assert body.operation == row.operation == message.operation
    for name in ("instance", "source", "text", "whole", "owner"):
        assert getattr(body, name) == getattr(message, name), name
    assert (body.ttl_s, body.text) == (message.ttl, "once upon a time")


def test_every_way_to_fail_is_in_its_table() -> None:
    """What jobs of an instance end with; a `field` that is wrong is refused before."""
    modules = ("operations/*", "fetches", "relay", "rewrites")
    files = [path for each in modules for path in Path(agent.__path__[0]).glob(f"{each}.py")]
    raised = {
        code for path in files for code in re.findall(r'Failed\(\s*"(\w+)"', path.read_text())
    }
    assert {"no_room", "mover_down", "unavailable"} < raised
    told = PAGE.read_text().partition("| failed later |")[2].partition("\n\n")[0]
    ended = {"reset", "left", "instance_gone", "peer_dead", "pull_timeout", "timeout"}
    assert raised - {"field"} | ended <= set(re.findall(r"`(\w+)`", told))


def test_what_is_held_follows_from_the_row_before() -> None:
    """Nothing is pinned, or moved away, where nothing was."""
    held = {"a"}
    for row in ROWS:
        named = {row.body.get("source"), row.body["instance"]} - {None}
        if row.operation not in ("copy", "move"):
            assert named <= held, row
        held = set(row.holders)
        assert set(row.pinned) <= held
