"""Long real text that every CPython has: the language's manual, by topic (`pydoc_data.topics`).

A manual is whole lines of consecutive topics, at most `tokens` long; no two share any text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

QUESTIONS = (
    "What is this manual about? Answer in two short sentences.",
    "Name one rule from this manual and say what it is for.",
)


@dataclass(frozen=True)
class Manual:
    title: str
    text: str

    def messages(self, question: int) -> list[dict[str, str]]:
        """A chat's messages: the manual as the system prompt, then a question."""
        rules = f"You answer questions about this manual.\n\n{self.text}"
        return [
            {"role": "system", "content": rules},
            {"role": "user", "content": QUESTIONS[question]},
        ]


def manuals(count: int, tokens: int, measure: Callable[[str], int]) -> list[Manual]:
    """`count` manuals of nearly `tokens` tokens; `measure` counts the tokens of a text."""
    from pydoc_data.topics import topics

    names = iter(sorted(topics, key=lambda name: (-len(topics[name]), name)))

    def fill(title: str) -> Manual:
        lines: list[str] = []
        total = 0
        for name in chain([title], names):
            for line in topics[name].splitlines():
                total += measure(line + "\n")
                if total > tokens:
                    return Manual(title, "\n".join(lines))
                lines.append(line)
        raise RuntimeError("this Python's own manual is too short")

    return [fill(next(names)) for _ in range(count)]
