"""Corruption x path: tries, what was accepted, refused by which cause, and what was wrong."""

from __future__ import annotations

from collections import Counter, defaultdict

from rich.table import Table

CAUSES = ("good", "gone", "digest", "incompatible", "timeout", "peer_dead")  # messages.PullResult
GOOD, GONE, DIGEST, INCOMPATIBLE, TIMEOUT, PEER_DEAD = range(len(CAUSES))
EXAMPLES = 8

Row = tuple[str, str]  # corruption, path


class Tally:
    def __init__(self) -> None:
        self.results: dict[Row, Counter[int]] = defaultdict(Counter)
        self.wrong_bytes: Counter[Row] = Counter()
        self.wrong_cause: Counter[Row] = Counter()
        self.examples: list[str] = []
        self.cuts: dict[str, set[int]] = defaultdict(set)  # torn at, by shape

    def count(self, row: Row, result: int, right: bool, expected: frozenset[int]) -> None:
        """`right`: accepted bytes are the chunk's; of what was refused, nothing is readable."""
        self.results[row][result] += 1
        if right and result in expected:
            return
        (self.wrong_bytes if not right else self.wrong_cause)[row] += 1
        if len(self.examples) < EXAMPLES:
            wanted = " or ".join(CAUSES[e] for e in sorted(expected))
            what = "wrong bytes, " if not right else ""
            self.examples.append(f"{row[1]}, {row[0]}: {what}{CAUSES[result]}, not {wanted}")

    def add(self, other: Tally) -> None:
        for row, counts in other.results.items():
            self.results[row] += counts
        self.wrong_bytes += other.wrong_bytes
        self.wrong_cause += other.wrong_cause
        self.examples = (self.examples + other.examples)[:EXAMPLES]
        for shape, cuts in other.cuts.items():
            self.cuts[shape] |= cuts

    @property
    def tries(self) -> int:
        return sum(counts.total() for counts in self.results.values())

    @property
    def wrong(self) -> int:
        return self.wrong_bytes.total() + self.wrong_cause.total()

    def table(self, title: str) -> Table:
        out = Table(title=title)
        columns = (*CAUSES[1:], "wrong bytes", "wrong cause")
        for name in ("corruption", "path", "tries", "accepted", *columns):
            out.add_column(name, justify="left" if name in ("corruption", "path") else "right")
        paths = list(dict.fromkeys(path for _, path in self.results))
        for row in sorted(self.results, key=lambda row: (paths.index(row[1]), row[0])):
            counts = self.results[row]
            wrong = self.wrong_bytes[row], self.wrong_cause[row]
            numbers = [counts.total(), *(counts[cause] for cause in range(len(CAUSES))), *wrong]
            out.add_row(*row, *(f"{n:,}" for n in numbers), style="red" if any(wrong) else "")
        return out
