"""A web process without the extra `dashboard`: light, and it says how to get it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.web import Web

# Nothing of this name can be found or imported.
HIDE = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "nicegui" else find(name, *more)
sys.modules["nicegui"] = None
"""


def test_without_the_extra_a_page_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(HIDE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{':'.join(filter(None, sys.path))}")
    web = Web()
    try:
        web.up()
        page = web.ask("/")
        assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert "pip install 'lmkv[dashboard]'" in page.text
        assert "://" not in page.text and "<script" not in page.text
        for path in ("/flow", "/_nicegui_ws/socket.io/"):
            assert web.ask(path).error["code"] == "not_found"
    finally:
        assert web.end() == (0, "")


def test_nicegui_is_not_loaded_until_it_is_asked_for() -> None:
    code = "import sys, lmkv.web.main; sys.exit('nicegui' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
