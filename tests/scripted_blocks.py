"""vLLM's block pool, as tests/scripted_vllm.py has it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from tests.fake_links import BLOCK


class Blocks:
    """vLLM's block pool: freed blocks stay findable until they are given out again."""

    def __init__(self, n: int) -> None:
        self.free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, n))
        self.uses = [0] * n
        self.found: dict[tuple[int, ...], int] = {}
        self.named: dict[int, tuple[int, ...]] = {}

    def take(self, n: int) -> list[int]:
        taken = [self.free.popitem(last=False)[0] for _ in range(n)]
        for block in taken:
            self.uses[block] = 1
            if (name := self.named.pop(block, None)) is not None:
                del self.found[name]
        return taken

    def share(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            self.uses[block] += 1
            self.free.pop(block, None)

    def give(self, blocks: list[int]) -> None:
        for block in reversed(blocks):
            self.uses[block] -= 1
            if self.uses[block] == 0:
                self.free[block] = None

    def name(self, tokens: list[int], blocks: list[int]) -> None:
        for i in range(len(tokens) // BLOCK):
            name = tuple(tokens[: (i + 1) * BLOCK])
            if name not in self.found and blocks[i] not in self.named:
                self.found[name], self.named[blocks[i]] = blocks[i], name

    def hit(self, tokens: list[int]) -> list[int]:
        found = []
        for i in range((len(tokens) - 1) // BLOCK):
            block = self.found.get(tuple(tokens[: (i + 1) * BLOCK]))
            if block is None:
                break
            found.append(block)
        return found
