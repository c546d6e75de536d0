"""`_native.pyi` is the extension's manual: it names what is there, with its parameters."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from lmkv import _native

STUB = Path(__file__).resolve().parents[2] / "python" / "lmkv" / "_native.pyi"
TREE = ast.parse(STUB.read_text())
CLASSES = {node.name: node for node in TREE.body if isinstance(node, ast.ClassDef)}
FUNCTIONS = {node.name: node for node in TREE.body if isinstance(node, ast.FunctionDef)}
CONSTANTS = {node.target.id for node in TREE.body if isinstance(node, ast.AnnAssign)}


def members(node: ast.ClassDef) -> dict[str, ast.stmt]:
    found: dict[str, ast.stmt] = {}
    for item in node.body:
        if isinstance(item, ast.FunctionDef):
            found[item.name] = item
        elif isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            found[item.target.id] = item
    return found


def parameters(node: ast.FunctionDef) -> list[tuple[str, bool]]:
    """(name, has a default) in order, without self."""
    plain = [*node.args.posonlyargs, *node.args.args]
    defaults = [False] * (len(plain) - len(node.args.defaults)) + [True] * len(node.args.defaults)
    both = list(zip((a.arg for a in plain), defaults))
    both += [(a.arg, d is not None) for a, d in zip(node.args.kwonlyargs, node.args.kw_defaults)]
    return [pair for pair in both if pair[0] != "self"]


def built_parameters(function: object) -> list[list[tuple[str, bool]]]:
    """The same for each overload of a nanobind function, from its own signature."""
    overloads = []
    for text, *_ in function.__nb_signature__:
        # Defaults are written as \\0, \\1; types may hold commas, which ast understands.
        source = re.sub(r"\\\d+", "None", text) + ": ..."
        overloads.append(parameters(ast.parse(source).body[0]))
    return overloads


def test_the_same_names_on_both_sides() -> None:
    there = {name for name in vars(_native) if not name.startswith("_")}
    stub = {name for name in CONSTANTS if not name.startswith("_")} | set(CLASSES) | set(FUNCTIONS)
    assert sorted(there - stub) == [], "not in the stub"
    assert sorted(stub - there) == [], "not in the module"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_has_the_stub_s_parameters(name: str) -> None:
    assert parameters(FUNCTIONS[name]) in built_parameters(getattr(_native, name))


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_has_the_stub_s_members(name: str) -> None:
    built = getattr(_native, name)
    stub = members(CLASSES[name])
    there = {m for m in vars(built) if not m.startswith("_")}
    assert sorted(there - set(stub)) == [], "not in the stub"
    for member, node in stub.items():
        found = getattr(built, member, None)
        assert found is not None, f"{name}.{member} is not in the module"
        is_property = isinstance(node, ast.AnnAssign) or node.decorator_list
        if is_property:
            assert not callable(found), f"{name}.{member} is a method"
        elif hasattr(found, "__nb_signature__"):
            assert parameters(node) in built_parameters(found), f"{name}.{member}"
        else:
            assert member in ("__init__", "__len__"), f"{name}.{member} has no signature"
