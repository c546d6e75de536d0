"""Text that comes from others: what of it is shown, and token ids in it."""

from __future__ import annotations


def printable(text: str) -> str:
    """What others have named cannot move a terminal's cursor, or begin a line of its own."""
    return "".join(c if c.isprintable() else "?" for c in text)


def token_ids(text: str) -> list[int]:
    """`1,2 3`. ValueError: there are none, or the first one that is none."""
    found = []
    for word in text.replace(",", " ").split():
        # The length comes first: Python refuses to read thousands of digits.
        if not (word.isascii() and word.isdigit() and len(word) <= 10 and int(word) < 1 << 32):
            raise ValueError(f"{word[:20]!r} is not a token id, 0 to 4294967295")
        found.append(int(word))
    if not found:
        raise ValueError("there are none")
    return found
