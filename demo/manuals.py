"""Long real text that every CPython has: the language's manual, by topic (`pydoc_data.topics`).

A manual is whole lines of consecutive topics, at most `tokens` long; no two share any text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

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

    made: list[Manual] = []
    names = iter(sorted(topics, key=lambda name: -len(topics[name])))
    while len(made) < count:
        title = next(names)
        lines: list[str] = []
        total = 0
        text = topics[title].splitlines()
        while True:
            for line in text:
                cost = measure(line + "\n")
                if total + cost > tokens:
                    break
                lines.append(line)
                total += cost
            else:
                text = next((topics[name].splitlines() for name in islice(names, 1)), [])
                if text:
                    continue
            break
        made.append(Manual(title, "\n".join(lines)))
    return made
