"""Traces in Mooncake's form, made up: conversations that grow, several at a time."""

from __future__ import annotations

import json
import random
from itertools import count
from pathlib import Path

BLOCK = 512


def write(
    path: Path, requests: int, conversations: int = 8, every_ms: int = 10, seed: int = 1
) -> int:
    """A turn of one of the conversations each `every_ms`; the prompts' tokens in all."""
    chance, ids, total = random.Random(seed), count(1), 0
    talks: list[list[int]] = [[0] for _ in range(conversations)]  # all begin alike
    with path.open("w") as lines:
        for i in range(requests):
            talk = chance.choice(talks)
            talk += [next(ids) for _ in range(chance.randint(1, 3))]
            if len(talk) > 24:
                talk[:] = [0, next(ids)]
            length = BLOCK * (len(talk) - 1) + chance.randint(1, BLOCK)
            total += length
            line = {"timestamp": i * every_ms, "input_length": length, "output_length": 10}
            lines.write(json.dumps({**line, "hash_ids": talk}) + "\n")
    return total
