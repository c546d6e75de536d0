"""Which other controllers there are, by what instances say they use, and by the setting `peers`.

use(instance, addresses) at each registration -> drop(instance) when it is gone; `addresses` may
name this controller itself, under the address that instances have for it. They are hints for people
and for whoever asks all controllers: nothing here connects to them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from lmkv.core.config import split_address

TOLD = 32  # addresses, the ones that most instances use


class Peers:
    def __init__(self, configured: Sequence[str]) -> None:
        self._configured = list(configured)
        self._used: dict[str, tuple[str, ...]] = {}  # by instance
        self._users: Counter[str] = Counter()

    def use(self, instance: str, addresses: Sequence[str]) -> None:
        self.drop(instance)
        good = tuple(dict.fromkeys(address for address in addresses if _is_address(address)))
        if good:
            self._used[instance] = good
            self._users.update(good)

    def drop(self, instance: str) -> None:
        for address in self._used.pop(instance, ()):
            self._users[address] -= 1
            if not self._users[address]:
                del self._users[address]

    @property
    def addresses(self) -> list[str]:
        """The configured ones, then those that most instances use."""
        used = (address for address, _ in self._users.most_common(TOLD))
        return list(dict.fromkeys([*self._configured, *used]))[:TOLD]


def _is_address(text: str) -> bool:
    try:
        split_address(text)
    except ValueError:
        return False
    return text.isprintable()
