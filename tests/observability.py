"""Whether panels and rules ask for what there is: each metric, and each label of it."""

from __future__ import annotations

from collections.abc import Iterator

from tests import promql
from tools.observability.__main__ import DASHBOARDS
from tools.observability.rules import RULES

TARGET = {"job", "instance"}  # Prometheus's own, of whom it scrapes


def expressions() -> Iterator[tuple[str, str]]:
    """(where, PromQL) of all that Grafana and Prometheus are told to ask."""
    for dashboard in DASHBOARDS:
        for panel in dashboard.panels:
            for query in panel.queries:
                yield f"{dashboard.uid}: {panel.title}", query.expr
        for choice in dashboard.choices:
            yield f"{dashboard.uid}: ${choice.name}", f"max by ({choice.label}) ({choice.metric})"
    for rule in RULES:
        yield rule.name, rule.expr


def lacking(live: dict[str, set[str]], prefix: str) -> list[str]:
    """What is asked of metrics with this prefix and not in a scrape (`tests.scrape.scraped`)."""
    found = []
    for where, text in expressions():
        asked = promql.read(text)
        ours = [(name, labels) for name, labels in asked.series if name.startswith(prefix)]
        for name, labels in ours:
            if name not in live:
                found.append(f"{where}: {name}")
            else:
                found += [f"{where}: {name}{{{each}}}" for each in labels - live[name] - TARGET]
        if len(ours) == len(asked.series):  # `by` is of all of them together
            there = TARGET.union(*(live.get(name, set()) for name, _ in ours))
            found += [f"{where}: by {each}" for each in asked.by - there]
    return found
