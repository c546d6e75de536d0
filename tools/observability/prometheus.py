"""The rules as Prometheus reads them; a PrometheusRule's `spec` has the same `groups`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import yaml

from .model import Rule

HEAD = (
    "# Written by `make dashboards` from tools/observability/rules.py; docs/metrics.md says more.\n"
)


def text(rules: Iterable[Rule]) -> str:
    groups = {"groups": [{"name": "lmkv", "rules": [_rule(rule) for rule in rules]}]}
    return HEAD + yaml.safe_dump(groups, sort_keys=False, width=100, allow_unicode=True)


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "alert": rule.name,
        "expr": rule.expr,
        "for": rule.lasts,
        "labels": {"severity": rule.severity},
        "annotations": {
            "summary": rule.summary,
            "description": rule.action,
            "runbook": f"docs/{rule.page}",
        },
    }
