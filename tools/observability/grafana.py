"""A dashboard as Grafana reads it: JSON of schema version 39 (Grafana 10.4 and later)."""

from __future__ import annotations

import json
from typing import Any

from .model import COLUMNS, Choice, Dashboard, Panel

SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def text(dashboard: Dashboard) -> str:
    return json.dumps(_dashboard(dashboard), indent=1) + "\n"


def _dashboard(dashboard: Dashboard) -> dict[str, Any]:
    links = {
        "title": "lmkv",
        "type": "dashboards",
        "tags": ["lmkv"],
        "includeVars": False,
        "keepTime": True,
    }
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.description,
        "tags": ["lmkv", "vllm"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,  # one crosshair for all panels
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "links": [links],
        "annotations": {"list": []},
        "templating": {"list": [_datasource(), *map(_choice, dashboard.choices)]},
        "panels": _panels(dashboard),
    }


def _datasource() -> dict[str, Any]:
    return {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
        "refresh": 1,
        "current": {},
        "options": [],
        "hide": 0,
    }


def _choice(choice: Choice) -> dict[str, Any]:
    return {
        "name": choice.name,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": choice.query, "refId": choice.name},
        "definition": choice.query,
        "refresh": 2,  # with the time range
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
        "options": [],
        "hide": 0,
    }


def _panels(dashboard: Dashboard) -> list[dict[str, Any]]:
    """Rows from the top, panels from the left; the next line begins where one does not fit."""
    found: list[dict[str, Any]] = []
    y = 0
    for row in dashboard.rows:
        found.append({"type": "row", "title": row.title, "collapsed": False, "panels": []})
        found[-1] |= {"id": len(found), "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1}}
        y, x, height = y + 1, 0, 0
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                y, x, height = y + height, 0, 0
            place = {"x": x, "y": y, "w": panel.width, "h": panel.height}
            found.append({"id": len(found) + 1, "gridPos": place, **_panel(panel)})
            x, height = x + panel.width, max(height, panel.height)
        y += height
    return found


def _panel(panel: Panel) -> dict[str, Any]:
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "targets": [
            {
                "refId": chr(ord("A") + i),
                "datasource": SOURCE,
                "expr": query.expr,
                "legendFormat": query.legend or "__auto",
            }
            for i, query in enumerate(panel.queries)
        ],
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _stat_options(panel) if panel.kind == "stat" else _graph_options(),
    }


def _defaults(panel: Panel) -> dict[str, Any]:
    found: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.kind == "stat":
        return found | {
            "color": {"mode": "thresholds"},
            "thresholds": {"mode": "absolute", "steps": _steps(panel)},
        }
    return found | {
        "color": {"mode": "palette-classic"},
        "custom": {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 25 if panel.stacked else 5,
            "showPoints": "never",
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        },
    }


def _steps(panel: Panel) -> list[dict[str, Any]]:
    if panel.bad_below is not None:
        return [{"color": "red", "value": None}, {"color": "green", "value": panel.bad_below}]
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    for color, value in (("orange", panel.amber), ("red", panel.red)):
        if value is not None:
            steps.append({"color": color, "value": value})
    return steps


def _stat_options(panel: Panel) -> dict[str, Any]:
    return {
        "textMode": "name" if panel.names else "auto",
        "colorMode": "value",
        "graphMode": "area",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    }


def _graph_options() -> dict[str, Any]:
    return {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
