"""Long real text that every CPython has: the language's manual, by topic (`pydoc_data.topics`).

A manual is consecutive topics, cut after the last word that fits into `tokens`; no two share any
text. All are equally long, so that every hit leaves as many tokens to compute: rows are compared.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

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
        text = topics[title]
        while measure(text) <= tokens:
            following = next(names, None)
            if following is None:
                raise RuntimeError("this Python's own manual is too short")
            text += "\n" + topics[following]
        ends = [word.end() for word in re.finditer(r"\S+", text)]
        fits = bisect_right(ends, tokens, key=lambda end: measure(text[:end]))
        return Manual(title, text[: ends[fits - 1]])

    return [fill(next(names)) for _ in range(count)]
