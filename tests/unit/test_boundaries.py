"""Imports go one way (DESIGN 9), and light processes stay light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "python" / "lmkv"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# Beside `core` and `_native`, which every folder may import, and itself.
MAY_IMPORT = {
    "core": set(),
    "agent": set(),
    "worker": set(),
    "mover": set(),
    "controller": set(),
    "web": set(),
    "sim": {"agent"},  # many of them
    "cli": {"controller", "web", "mover", "sim"},  # what it starts
    "connector": {
        "agent",
        "worker",
        "connector_agent",
        "connector_deployment",
        "connector_events",
        "connector_metadata",
        "connector_metrics",
        "connector_text",
    },
    "connector_agent": {"agent", "connector_deployment"},
    "connector_deployment": set(),
    "connector_events": {"agent"},
    "connector_metadata": set(),
    "connector_text": set(),
    "connector_metrics": set(),  # the connector's half that vLLM's API server needs
    "plugin": {"worker"},
    "__init__": set(),
}


def part(path: Path) -> str:
    """`agent` for agent/locator.py, `connector` for connector.py."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports, anywhere in it."""
    package = ("lmkv", *path.relative_to(PACKAGE).parent.parts)
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [base])])
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


def parts_imported(path: Path) -> set[str]:
    names = {n.split(".")[1] for n in imports(path) if n.startswith("lmkv.")}
    return {n for n in names if (PACKAGE / n).is_dir() or (PACKAGE / f"{n}.py").is_file()}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_folder_imports_core_and_never_another(path: Path) -> None:
    here = part(path)
    assert here in MAY_IMPORT, f"say in this test what {here} may import"
    allowed = {"core", here} | MAY_IMPORT[here] if here != "core" else {"core"}
    assert parts_imported(path) <= allowed


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_the_connector_knows_vllm_and_only_the_worker_torch(path: Path) -> None:
    tops = {name.split(".")[0] for name in imports(path)}
    assert not tops & {"nixl", "nixl_cu12", "nixl_cu13"}
    if not part(path).startswith("connector") and part(path) != "plugin":
        assert "vllm" not in tops
    if part(path) not in ("connector", "worker"):
        assert "torch" not in tops


LIGHT = [
    "lmkv",
    "lmkv._native",
    "lmkv.core",
    "lmkv.controller",
    "lmkv.web",
    "lmkv.mover",
    "lmkv.sim",
    "lmkv.cli",
]


@pytest.mark.parametrize("name", LIGHT)
def test_a_light_process_loads_neither_torch_nor_vllm(name: str) -> None:
    """Every module of a folder, imported in a fresh process."""
    folder = PACKAGE.joinpath(*name.split(".")[1:])
    if name == "lmkv.web" and not folder.exists():
        pytest.skip("lmkv.web is not there yet")
    files = sorted(folder.rglob("*.py")) if folder.is_dir() and name != "lmkv" else []
    modules = [".".join(["lmkv", *f.relative_to(PACKAGE).with_suffix("").parts]) for f in files]
    modules = [m.removesuffix(".__init__") for m in modules if not m.endswith("__main__")]
    code = f"""
import importlib, sys
for module in {[name, *modules]!r}:
    importlib.import_module(module)
loaded = {{m.split(".")[0] for m in sys.modules}}
heavy = loaded & {{"torch", "vllm", "nixl", "numpy", "transformers"}}
sys.exit(f"{name} loads {{sorted(heavy)}}" if heavy else 0)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_no_torch_header_in_cpp() -> None:
    files = [
        f
        for top in ("csrc", "kernels")
        for f in (ROOT / top).rglob("*")
        if f.suffix in (".h", ".cpp", ".cu")
    ]
    assert files
    bad = re.compile(r'#include\s*([<"](torch|ATen|c10)/|<(nixl|cuda|ucp))')
    assert not [str(f.relative_to(ROOT)) for f in files if bad.search(f.read_text())]


def test_cpp_goes_one_way_too() -> None:
    """bindings -> csrc -> kernels."""
    for file in (ROOT / "kernels").glob("*.h"):
        for name in re.findall(r'#include "([^"]+)"', file.read_text()):
            assert (ROOT / "kernels" / name).exists(), f"{file.name} includes {name}"
    for file in (ROOT / "csrc").rglob("*"):
        if file.is_file() and "bindings" not in file.parts:
            assert "nanobind" not in file.read_text(), file.name
