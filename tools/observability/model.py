"""What a dashboard, a panel and an alert rule are, before they are anybody's format."""

from __future__ import annotations

from dataclasses import dataclass

COLUMNS = 24  # Grafana's grid


@dataclass(frozen=True)
class Query:
    """An expression in PromQL, and the legend of each of its series."""

    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """`unit` is one of Grafana's ids. `red` and `amber` are where a stat's colour changes;
    `bad_below` where small is bad. `names`: a stat that shows its legends."""

    title: str
    description: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: str = "timeseries"  # or stat
    width: int = 8
    stacked: bool = False
    amber: float | None = None
    red: float | None = None
    bad_below: float | None = None
    names: bool = False

    @property
    def height(self) -> int:
        return 4 if self.kind == "stat" else 8


@dataclass(frozen=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Choice:
    """A variable of a dashboard: one, several or all of a label's values."""

    name: str
    metric: str
    label: str

    @property
    def query(self) -> str:
        return f"label_values({self.metric}, {self.label})"


@dataclass(frozen=True)
class Dashboard:
    uid: str
    title: str
    description: str
    rows: tuple[Row, ...]
    choices: tuple[Choice, ...] = ()

    @property
    def panels(self) -> list[Panel]:
        return [panel for row in self.rows for panel in row.panels]


@dataclass(frozen=True)
class Rule:
    """`action` is what to do, `page` of docs/ where more stands. `lasts`: for how long it must be
    so before anybody is told."""

    name: str
    expr: str
    lasts: str
    severity: str  # critical: nothing is shared; warning: somebody should look
    summary: str
    action: str
    page: str
