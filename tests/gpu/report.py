"""What `make gpu-check` says of rates: one table, and gpu-report.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from bench.harness import Figure

TARGET = 0.9  # of a device copy, and of the link
TARGET_RUN = 8 << 10  # from runs of so many bytes on
DEFAULT_MULTIPROCESSORS = 8  # config.gpu_multiprocessors


@dataclass(frozen=True)
class Rate:
    """A figure beside the limit that was measured in the same rounds. `slots`: where they are, and
    how they get across. `target`: the least ratio; None: there is none."""

    copy: str  # gather, scatter
    slots: str  # "on the card", "direct", "staged"
    run: int  # bytes
    multiprocessors: int
    unit: str
    lmkv: Figure
    limit: Figure
    target: float | None = None

    @property
    def ratio(self) -> float:
        return self.lmkv.median / self.limit.median

    @property
    def met(self) -> bool | None:
        return None if self.target is None else self.ratio >= self.target

    def report(self) -> dict[str, object]:
        return asdict(self) | {"ratio_to_limit": self.ratio, "met": self.met}


COLUMNS = ("slots", "run", "SMs", "copy", "unit", "lmkv", "limit", "ratio", "target")


def table(rates: Sequence[Rate]) -> str:
    """Median [min..max]; a target that was missed is said."""
    rows = [COLUMNS, *map(_row, rates)]
    widths = [max(len(row[n]) for row in rows) for n in range(len(COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def _row(rate: Rate) -> tuple[str, ...]:
    return (
        rate.slots,
        f"{rate.run >> 10} KiB",
        str(rate.multiprocessors),
        rate.copy,
        rate.unit,
        str(rate.lmkv),
        str(rate.limit),
        f"{rate.ratio:.3f}",
        "" if rate.target is None else f"{'met' if rate.met else 'missed'}: {rate.target:g}",
    )


def told(rates: Sequence[Rate]) -> list[str]:
    """Of each copy, the least ratio at runs of TARGET_RUN and more: within the card, and across the
    link by whichever path is the faster one for that run, with the multiprocessors that a worker
    takes by default."""
    lines = []
    for copy in ("gather", "scatter"):
        some = [rate for rate in rates if rate.copy == copy and rate.run >= TARGET_RUN]
        within = [rate.ratio for rate in some if rate.slots == "on the card"]
        across: dict[int, float] = {}
        for rate in some:
            if rate.slots in ("direct", "staged") and _by_default(rate):
                across[rate.run] = max(rate.ratio, across.get(rate.run, 0.0))
        for ratios, limit in ((within, "a device copy"), (list(across.values()), "the link")):
            if ratios:
                least = min(ratios)
                met = "met" if least >= TARGET else "MISSED"
                lines.append(f"{copy}: at least {least:.3f} of {limit} (target {TARGET:g}: {met})")
    return lines


def _by_default(rate: Rate) -> bool:
    return rate.multiprocessors == DEFAULT_MULTIPROCESSORS
