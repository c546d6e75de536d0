"""The tables of docs/metrics.md, between marks in the page; the words around them are people's."""

from __future__ import annotations

import re
from collections.abc import Iterable

from lmkv.core.metrics import CONTROLLER, INSTANCE, Metric

from .model import Rule


def text(page: str, rules: Iterable[Rule]) -> str:
    """The page with its tables written anew."""
    page = between(page, "controller", _metrics(CONTROLLER))
    page = between(page, "instance", _metrics(INSTANCE))
    return between(page, "rules", _rules(rules))


def between(page: str, name: str, table: str) -> str:
    """The page with the table of that name written anew."""
    begin, end = f"<!-- table: {name} -->\n", "<!-- end -->"
    found, count = re.subn(
        f"{re.escape(begin)}.*?{end}", lambda _: begin + table + end, page, flags=re.DOTALL
    )
    if count != 1:
        raise ValueError(f"{count} places for the table {name!r}, must be one")
    return found


def _metrics(metrics: Iterable[Metric]) -> str:
    rows = ["| metric | kind | labels | what |", "|---|---|---|---|"]
    for metric in metrics:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        rows.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.text} |")
    return "\n".join(rows) + "\n"


def _rules(rules: Iterable[Rule]) -> str:
    rows = ["| alert | after | severity | what to do | more |", "|---|---|---|---|---|"]
    for rule in rules:
        action = re.sub(r"\{\{.*?\}\}", "...", rule.action)
        more = f"[{rule.page.removesuffix('.md')}]({rule.page})"
        rows.append(f"| `{rule.name}` | {rule.lasts} | {rule.severity} | {action} | {more} |")
    return "\n".join(rows) + "\n"
