"""A reader of as much PromQL as our panels and rules use: what they name, and whether they are one
expression. What it does not know it refuses; `promtool` knows the rest, where it is installed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

RANGED = {"rate", "increase", "max_over_time"}  # of a series and a time
PLAIN = {"absent": 1, "scalar": 1, "histogram_quantile": 2}  # and how many arguments
AGGREGATIONS = {"sum", "max", "min", "avg", "count"}
OPERATORS = {"+", "-", "*", "/", ">", "<", ">=", "<=", "==", "!=", "and", "or", "unless"}
TOKEN = re.compile(
    r"""\s*(?:(?P<string>"(?:[^"\\]|\\.)*")|(?P<time>\[\d+[smhd]\])|(?P<number>\d+(?:\.\d+)?)
    |(?P<name>[A-Za-z_:][\w:]*)|(?P<sign>=~|!~|[<>=!]=|[-+*/<>=(){},]))""",
    re.VERBOSE,
)


class Wrong(ValueError):
    """What is not as it must be, and where."""


@dataclass
class Read:
    """The series that an expression reads, each with the labels that it is chosen by; and the
    labels by which it is added up or matched."""

    series: list[tuple[str, set[str]]] = field(default_factory=list)
    by: set[str] = field(default_factory=set)


class _Reader:
    def __init__(self, text: str) -> None:
        self._text, self._at, self._tokens = text, 0, []
        end = 0
        while text[end:].strip():
            match = TOKEN.match(text, end)
            if match is None:
                raise Wrong(f"{text!r}: {text[end : end + 20]!r} is nothing that is known")
            self._tokens.append((str(match.lastgroup), str(match[str(match.lastgroup)])))
            end = match.end()
        self.read = Read()

    # ------------------------------------------------------------ tokens

    def _peek(self) -> tuple[str, str]:
        return self._tokens[self._at] if self._at < len(self._tokens) else ("end", "")

    def _take(self, *wanted: str) -> str:
        """The next token, which must be one of these, or of one of these kinds."""
        kind, word = self._peek()
        if wanted and word not in wanted and kind not in wanted:
            raise Wrong(
                f"{self._text!r}: {word or 'its end'!r} where {' or '.join(wanted)} must be"
            )
        self._at += 1
        return word

    # ------------------------------------------------------------ grammar

    def whole(self) -> Read:
        self._expression()
        if self._peek()[0] != "end":
            self._take("an operator")
        return self.read

    def _expression(self) -> None:
        self._term()
        while self._peek()[1] in OPERATORS:
            self._take()
            if self._peek()[1] in ("on", "ignoring"):
                self._take()
                self.read.by |= self._labels()
            self._term()

    def _term(self) -> None:
        kind, word = self._peek()
        if word == "(":
            self._take()
            self._expression()
            self._take(")")
        elif kind == "number":
            self._take()
        elif word in AGGREGATIONS:
            self._take()
            if self._peek()[1] == "by":
                self._take()
                self.read.by |= self._labels()
            self._arguments(1)
        elif word in RANGED:
            self._take()
            self._take("(")
            self._series()
            self._take("time")
            self._take(")")
        elif word in PLAIN:
            self._arguments(PLAIN[self._take()])
        else:
            self._series()

    def _arguments(self, count: int) -> None:
        self._take("(")
        for i in range(count):
            if i:
                self._take(",")
            self._expression()
        self._take(")")

    def _series(self) -> None:
        name, labels = self._take("name"), set()
        if self._peek()[1] == "(":
            raise Wrong(f"{self._text!r}: {name} is no function that is known")
        if self._peek()[1] == "{":
            self._take()
            while self._peek()[1] != "}":
                labels.add(self._take("name"))
                self._take("=", "!=", "=~", "!~")
                self._take("string")
                if self._peek()[1] != "}":
                    self._take(",")
            self._take("}")
        self.read.series.append((name, labels))

    def _labels(self) -> set[str]:
        self._take("(")
        found = {self._take("name")}
        while self._peek()[1] == ",":
            self._take()
            found.add(self._take("name"))
        self._take(")")
        return found


def read(text: str) -> Read:
    """Wrong for what is not one expression of known functions."""
    for variable, value in (("$__rate_interval", "5m"), ("$instance", ".*")):
        text = text.replace(variable, value)
    return _Reader(text).whole()
