"""`make dashboards`: write what is made of the list, where it is not so already."""

from __future__ import annotations

from pathlib import Path

from . import grafana, page, prometheus
from .fleet import FLEET
from .instance import INSTANCE
from .rules import RULES

ROOT = Path(__file__).resolve().parents[2]
DASHBOARDS = (FLEET, INSTANCE)


def files() -> dict[Path, str]:
    """What each file must hold."""
    found = {
        ROOT / "deploy" / "grafana" / f"{dashboard.uid}.json": grafana.text(dashboard)
        for dashboard in DASHBOARDS
    }
    found[ROOT / "deploy" / "prometheus" / "lmkv-rules.yaml"] = prometheus.text(RULES)
    told = ROOT / "docs" / "metrics.md"
    found[told] = page.text(told.read_text(), RULES)
    return found


def main() -> None:
    for path, text in files().items():
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
