"""All controllers of a cluster: each tells of itself, and the addresses of the others.

roll = Roll(address, its answer); while roll.unasked(): answered(address, answer or None) for each;
`roll.controllers` are then those that answered, once each however many addresses they have, and the
addresses of those that did not. `controllers(address)` does it for a program that may wait.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

from lmkv.core.client import Client, Unreachable
from lmkv.core.keyfiles import ClientKeys
from lmkv.core.messages import AnyMessage, Controllers, ControllersInfo, ControllerState
from lmkv.core.wire import WireError

UNREACHABLE = "unreachable"
DEADLINE = 0.5  # seconds for each of the others
MOST = 32  # that are asked; a controller names as many at most


class Roll:
    def __init__(self, address: str, first: ControllersInfo) -> None:
        self._found: dict[int, ControllerState] = {}  # by epoch
        self._silent: list[str] = []
        self._asked = {address}
        self._named: list[str] = []
        self._take(address, first)

    def unasked(self) -> list[str]:
        """Whom to ask next; they count as asked. It ends: each is asked once."""
        room = max(0, MOST - len(self._asked))
        next_ones = [each for each in dict.fromkeys(self._named) if each not in self._asked][:room]
        self._asked.update(next_ones)
        return next_ones

    def answered(self, address: str, answer: AnyMessage | None) -> None:
        """None: in time it did not. Whatever else is no answer to this either."""
        if isinstance(answer, ControllersInfo) and answer.controllers:
            self._take(address, answer)
        else:
            self._silent.append(address)

    def _take(self, address: str, answer: ControllersInfo) -> None:
        for state in answer.controllers[:1]:
            if state.epoch not in self._found:
                state.address = address
                self._found[state.epoch] = state
        self._named += answer.others[:MOST]

    @property
    def controllers(self) -> list[ControllerState]:
        """The one that was asked first, then by name."""
        first, *others = self._found.values()
        silent = [ControllerState(each, 0, UNREACHABLE, address=each) for each in self._silent]
        return [first, *sorted([*others, *silent], key=lambda each: each.controller)]


def controllers(client: Client) -> list[ControllerState]:
    """Raises Unreachable, WireError for the first one; the others have `DEADLINE` seconds, all at
    once."""
    answer, _ = client.ask(Controllers(1))
    if not isinstance(answer, ControllersInfo) or not answer.controllers:
        raise Unreachable(f"{client.address} answered {type(answer).__name__}")
    roll = Roll(client.address, answer)
    ask = partial(_ask, keys=client.keys)
    while addresses := roll.unasked():
        with ThreadPoolExecutor(len(addresses)) as pool:
            for address, found in zip(addresses, pool.map(ask, addresses), strict=True):
                roll.answered(address, found)
    return roll.controllers


def _ask(address: str, keys: ClientKeys | None) -> AnyMessage | None:
    with suppress(Unreachable, WireError, ValueError), Client(address, DEADLINE, keys) as client:
        return client.ask(Controllers(1))[0]
    return None
