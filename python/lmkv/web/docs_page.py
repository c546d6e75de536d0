"""`/docs`: the OpenAPI description as one plain page, without scripts and without another host."""

from __future__ import annotations

import json
from html import escape
from typing import Any

HEAD = """<!doctype html><html lang="en"><meta charset="utf-8"><title>lmkv REST</title><style>
body{font:16px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;
color:#222;background:#fff}
code,pre{font:14px/1.4 ui-monospace,monospace}
pre{overflow:auto;padding:.7em;background:#8881}
table{border-collapse:collapse}td,th{text-align:left;padding:.15em .9em .15em 0;vertical-align:top}
h2{margin:1.6em 0 .2em}
@media (prefers-color-scheme:dark){body{color:#ddd;background:#181818}a{color:#8bf}}
</style>"""


def page(api: dict[str, Any]) -> str:
    info = api["info"]
    parts = [HEAD, f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>"]
    parts.append(f"<p>{escape(info.get('description', ''))}</p>")
    parts.append('<p>For programs: <a href="openapi.json">openapi.json</a></p>')
    for path, methods in api["paths"].items():
        for method, operation in methods.items():
            parts += _operation(method.upper(), path, operation)
    parts.append("<h1>Bodies</h1>")
    for name, schema in api["components"]["schemas"].items():
        text = escape(json.dumps(schema.get("properties", {}), indent=1))
        about = escape(schema.get("description", ""))
        parts.append(f'<h2 id="{escape(name)}">{escape(name)}</h2><p>{about}</p><pre>{text}</pre>')
    return "\n".join(parts)


def _operation(method: str, path: str, operation: dict[str, Any]) -> list[str]:
    parts = [f"<h2><code>{method} {escape(path)}</code></h2>"]
    parts.append(f"<p>{escape(operation.get('summary', ''))}</p>")
    for parameter in operation.get("parameters", ()):
        rule = escape(json.dumps(parameter.get("schema", {})))
        parts.append(f"<p><code>{escape(parameter['name'])}</code> {rule}</p>")
    rows = []
    sent = operation.get("requestBody", {}).get("content", {})
    rows += [("body", _reference(kind)) for kind in sent.values()]
    for status, answer in operation["responses"].items():
        kinds = [_reference(kind) for kind in answer.get("content", {}).values()]
        about = escape(answer.get("description", ""))
        rows.append((escape(status), f"{about} {' '.join(kinds)}"))
    cells = "".join(f"<tr><th>{name}<td>{text}" for name, text in rows)
    return [*parts, f"<table>{cells}</table>"]


def _reference(content: dict[str, Any]) -> str:
    name = escape(content.get("schema", {}).get("$ref", "").rpartition("/")[2])
    return f'<a href="#{name}">{name}</a>' if name else ""
