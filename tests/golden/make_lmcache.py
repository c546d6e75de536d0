"""What LMCache's controller takes and gives: `python -m tests.golden.make_lmcache FOLDER` writes
lmcache.json anew from the package in FOLDER (`pip install --no-deps --target FOLDER lmcache`).

Names and types only, read from its source: its server is not started, nor its code imported.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).with_name("lmcache.json")


def fields(node: ast.ClassDef) -> dict[str, Any]:
    """Type and whether it must be given, by name."""
    return {
        each.target.id: {"type": ast.unparse(each.annotation), "required": each.value is None}
        for each in node.body
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
    }


def main(folder: str) -> None:
    package = Path(folder) / "lmcache" / "v1"
    server = ast.parse((package / "api_server" / "__main__.py").read_text())
    messages = ast.parse((package / "cache_controller" / "message.py").read_text())
    classes = {
        node.name: fields(node)
        for tree in (server, messages)
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    paths: dict[str, Any] = {}
    for node in ast.walk(server):
        if not isinstance(node, ast.AsyncFunctionDef) or not node.decorator_list:
            continue
        call = node.decorator_list[0]
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "app.post":
            path = ast.literal_eval(call.args[0])
            taken = ast.unparse(node.args.args[0].annotation)  # type: ignore[arg-type]
            given = taken.removesuffix("Request") + "Response"
            paths[path] = {"takes": classes[taken], "gives": classes[given]}
    shapes = {"paths": paths, "WorkerInfo": classes["WorkerInfo"]}
    GOLDEN.write_text(json.dumps(shapes, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
