"""The control sockets of workers and movers, which their instance's agent connects to.

By default a unix socket in `run_dir`. Where an instance's ranks are on several hosts, TCP at
`control_interface`, any free port; with `keys` only who has the cluster's data key is let in.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import zmq

from lmkv.core.connections import BOUND
from lmkv.core.doorman import Doorman
from lmkv.core.interfaces import address_of
from lmkv.core.keyfiles import DATA, ClientKeys, Pair, as_server, read_pair

if TYPE_CHECKING:  # a mover starts fast
    from lmkv.core.config import InstanceConfig

MOST_FRAME_BYTES = 64 << 20
# As a controller's: half a handshake and a frame that is too large end the connection.
TCP_OPTIONS: dict[int, int] = {**BOUND, zmq.MAXMSGSIZE: MOST_FRAME_BYTES}


class Place(NamedTuple):
    """An address to bind at, and the key there."""

    host: str
    pair: Pair | None = None


def place(config: InstanceConfig) -> Place | None:
    """None: unix sockets. ValueError, also BadKeys, with one sentence."""
    given = config.control_interface
    if not given:
        return None
    where = f"control_interface = {given!r} ({config.origins['control_interface']})"
    try:
        host = address_of(given)
    except OSError as error:
        raise ValueError(f"{where}: has no address: {error.strerror}") from None
    pair = read_pair(Path(config.keys), DATA) if config.keys else None
    if pair is None and not config.insecure and not ipaddress.ip_address(host).is_loopback:
        raise ValueError(f"{where}: allowed is a loopback one, or name keys, or say insecure")
    return Place(host, pair)


def agent_keys(found: Place | None) -> ClientKeys | None:
    """With what an agent connects: both sides have the same pair."""
    pair = found.pair if found is not None else None
    return None if pair is None else ClientKeys(*pair, pair.public)


class RankSocket:
    """A bound ROUTER. Raises zmq.ZMQError, OSError."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        path: str,
        where: Place | None,
        options: Mapping[int, int],
    ) -> None:
        """At `path` where `where` is None."""
        self.socket = context.socket(zmq.ROUTER)
        self._doorman: Doorman | None = None
        for option, value in (options if where is None else {**TCP_OPTIONS, **options}).items():
            self.socket.setsockopt(option, value)
        try:
            if where is None:
                self.address = f"ipc://{path}"
                self.socket.bind(self.address)
                os.chmod(path, 0o600)
            else:
                self.address = self._listen(context, where)
        except BaseException:
            self.close()
            raise

    def _listen(self, context: zmq.Context[zmq.Socket[bytes]], where: Place) -> str:
        host, pair = where
        if pair is not None:
            public = pair.public
            self._doorman = Doorman(context, lambda key: "instance" if key == public else None)
        as_server(self.socket, pair)
        self.socket.setsockopt(zmq.IPV6, int(":" in host))
        self.socket.bind(f"tcp://[{host}]:*" if ":" in host else f"tcp://{host}:*")
        endpoint = self.socket.getsockopt(zmq.LAST_ENDPOINT)
        assert isinstance(endpoint, bytes)
        return endpoint.rstrip(b"\0").decode()

    @property
    def listens_at(self) -> tuple[str, int] | None:
        """Address and port, None for a unix socket."""
        scheme, _, rest = self.address.partition("://")
        host, _, port = rest.rpartition(":")
        return (host.strip("[]"), int(port)) if scheme == "tcp" else None

    def close(self) -> None:
        """In the thread that uses it. The context is its owner's."""
        self.socket.close()
        if self._doorman is not None:
            self._doorman.close()
            self._doorman = None
