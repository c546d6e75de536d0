"""The files that `make dashboards` writes: as the list has them, and as Grafana and Prometheus want
them. Whether what they ask for exists is held against live scrapes in tests/contract and vllm."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from lmkv.core.metrics import CONTROLLER, COUNTER, HISTOGRAM, INSTANCE

from tests import promql
from tests.observability import expressions
from tools.observability import page
from tools.observability.__main__ import DASHBOARDS, ROOT, files
from tools.observability.rules import RULES

BOARDS = [ROOT / "deploy" / "grafana" / f"{dashboard.uid}.json" for dashboard in DASHBOARDS]
RULES_FILE = ROOT / "deploy" / "prometheus" / "lmkv-rules.yaml"
METRICS = (*CONTROLLER, *INSTANCE)


@pytest.mark.parametrize("path", list(files()), ids=lambda path: path.name)
def test_a_file_is_what_the_list_says(path: Path) -> None:
    assert path.read_text() == files()[path], "run `make dashboards`"


def test_nothing_else_is_there() -> None:
    found = {
        p for folder in ("grafana", "prometheus") for p in (ROOT / "deploy" / folder).iterdir()
    }
    assert found == set(files()) - {ROOT / "docs" / "metrics.md"}


# ------------------------------------------------------------------ the metrics


def test_names_and_texts_are_as_prometheus_wants_them() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert re.fullmatch(r"(vllm:)?lmkv_[a-z][a-z_]*[a-z]", metric.name)
        assert metric.name.startswith("vllm:") == (metric in INSTANCE)
        assert metric.text.endswith(".") and "\n" not in metric.text
        assert not {"instance", "job", "le", "engine", "request", "key"} & set(metric.labels)
        assert (metric.kind == COUNTER) == metric.name.endswith("_total")
        assert list(metric.buckets) == sorted(set(metric.buckets))
        assert bool(metric.buckets) == (metric.kind == HISTOGRAM)


def test_every_metric_is_in_a_panel_or_a_rule() -> None:
    asked = {name for _, text in expressions() for name, _ in promql.read(text).series}
    unasked = {metric.name for metric in METRICS if not asked & set(metric.series)}
    assert unasked == {
        "lmkv_controller_info",  # a lookup, for people
        "lmkv_uptime_seconds",
        "lmkv_lag_seconds",  # of all, where the panel has it by instance
        "vllm:lmkv_pull_bytes_total",  # the same, by peer
    }


# ------------------------------------------------------------------ PromQL


@pytest.mark.parametrize(("where", "text"), list(expressions()))
def test_what_is_asked_is_one_expression(where: str, text: str) -> None:
    assert promql.read(text).series


def test_what_an_expression_reads() -> None:
    found = promql.read(
        'sum by (a, b) (rate(x:y_total{c="1", d=~"2|\\"3"}[$__rate_interval])) / on (a) z > 0.05'
    )
    assert found.series == [("x:y_total", {"c", "d"}), ("z", set())]
    assert found.by == {"a", "b"}


@pytest.mark.parametrize(
    "text",
    [
        "", "sum(x", "sum(x))", "x y", "rate(x)", "rate(sum(x)[5m])", "x[5m]", "nothing(x)",
        "sum by (x)", "x{a}", "x{a=1}", 'x{a="1"', "x ~ y", "x /", "histogram_quantile(x)",
        'x{a="1}', "sum by a (x)", "absent(x, y)", "x on (a) y", "$other",
    ],
)  # fmt: skip
def test_what_is_none(text: str) -> None:
    with pytest.raises(promql.Wrong):
        promql.read(text)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheus_itself_takes_the_rules() -> None:
    done = subprocess.run(
        ["promtool", "check", "rules", RULES_FILE], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


# ------------------------------------------------------------------ rules


def test_every_rule_says_what_it_is_and_what_to_do() -> None:
    [group] = yaml.safe_load(RULES_FILE.read_text())["groups"]
    assert [rule["alert"] for rule in group["rules"]] == [rule.name for rule in RULES]
    assert len({rule.name for rule in RULES}) == len(RULES)
    for rule in group["rules"]:
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        assert re.fullmatch(r"\d+[mh]", rule["for"])
        assert rule["labels"]["severity"] in ("critical", "warning")
        notes = rule["annotations"]
        assert set(notes) == {"summary", "description", "runbook"}
        assert len(notes["summary"]) <= 100 and len(notes["description"]) >= 80
        assert (ROOT / notes["runbook"]).is_file()
        kept = promql.read(rule["expr"])
        for label in re.findall(r"\$labels\.(\w+)", notes["summary"] + notes["description"]):
            aggregated = "by (" in rule["expr"]
            assert label in (kept.by if aggregated else {"instance", "job"}), (rule["alert"], label)


# ------------------------------------------------------------------ dashboards


@pytest.fixture(params=BOARDS, ids=lambda path: path.stem)
def board(request: pytest.FixtureRequest) -> dict[str, Any]:
    return json.loads(request.param.read_text())


def test_a_dashboard_is_one_for_grafana(board: dict[str, Any]) -> None:
    assert board["schemaVersion"] >= 36
    assert re.fullmatch(r"[a-z-]{1,40}", board["uid"])
    assert "lmkv" in board["tags"]
    first, *choices = board["templating"]["list"]
    assert (first["name"], first["type"], first["query"]) == (
        "datasource",
        "datasource",
        "prometheus",
    )
    known = {"datasource", "__rate_interval", *(each["name"] for each in choices)}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(board))) - {"__all"} <= known
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_a_panel_says_what_it_shows_in_which_unit(board: dict[str, Any]) -> None:
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert len(panels) > 15
    for panel in panels:
        assert panel["type"] in ("timeseries", "stat")
        assert len(panel["description"]) > 15, panel["title"]
        unit = panel["fieldConfig"]["defaults"]["unit"]
        assert unit in ("short", "percentunit", "cps", "Bps", "bytes", "s"), panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        for target in panel["targets"]:
            legend = target["legendFormat"]
            asked = promql.read(target["expr"])
            chosen = set(re.findall(r"\{\{(\w+)\}\}", legend))
            assert chosen <= asked.by | {"instance", "peer"}, (panel["title"], legend)
            assert legend != "__auto" or panel["type"] == "stat"
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_panels_fill_the_grid_and_none_lies_on_another(board: dict[str, Any]) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


# ------------------------------------------------------------------ the page


def test_a_page_without_its_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="0 places for the table 'controller'"):
        page.text("no marks", RULES)
