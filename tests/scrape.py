"""What Prometheus would see of a page: names, kinds, and the labels of each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lmkv.core.metrics import COUNTER, GAUGE, INSTANCE, OTHER
from prometheus_client.parser import text_string_to_metric_families


def families(text: str) -> dict[str, tuple[str, str]]:
    """(kind, help) by name, also of those that have no sample yet."""
    found = {}
    for family in text_string_to_metric_families(text):
        if not family.name.endswith("_created"):
            name = f"{family.name}_total" if family.type == COUNTER else family.name
            found[name] = family.type, family.documentation
    return found


def scraped(*pages: str) -> dict[str, set[str]]:
    """The labels of the samples, by their name."""
    found: dict[str, set[str]] = {}
    for text in pages:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found.setdefault(sample.name, set()).update(sample.labels)
    return found


def every_stat() -> dict[str, Any]:
    """An instance's stats with every metric once, as its agent would tell them."""
    return {metric.key: _one(metric.labels, metric.values, metric.kind) for metric in INSTANCE}


def _one(labels: Iterable[str], values: tuple[str, ...], kind: str) -> Any:
    value: Any = 1.0 if kind in (COUNTER, GAUGE) else [1.0]
    for at, _ in enumerate(reversed(list(labels))):
        value = {values[0] if values and at == 0 else OTHER: value}
    return value
