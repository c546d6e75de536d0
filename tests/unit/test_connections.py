"""What the bound sockets do about connections whose other end is gone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from lmkv.controller.server import Server
from lmkv.core.clock import Deadline
from lmkv.core.config import ControllerConfig, load
from lmkv.core.rank_sockets import Place, RankSocket

from tests import zmtp

ESTABLISHED, KEEPALIVE = "01", "02"  # proc(5)


@pytest.fixture(params=["controller", "rank"])
def bound(request: pytest.FixtureRequest) -> Iterator[list[tuple[zmq.Socket[bytes], str]]]:
    """Each with its address."""
    if request.param == "controller":
        server = Server(load(ControllerConfig, {"port": 0}))
        yield [(server._state, server.state_address), (server._query, server.query_address)]
        server.close()
        return
    with zmq.Context() as context:
        rank = RankSocket(context, "", Place("127.0.0.1"), {})
        yield [(rank.socket, rank.address)]
        rank.close()


def timers(port: int) -> list[str]:
    """Of the connections that were accepted there, what the kernel waits for."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [f[5][:2] for f in lines if f[1].endswith(f":{port:04X}") and f[3] == ESTABLISHED]


def test_the_kernel_finds_them_and_no_ping_does(bound: list[tuple[zmq.Socket[bytes], str]]) -> None:
    """A ping can abort the process: lmkv/core/connections.py."""
    for each, address in bound:
        assert each.getsockopt(zmq.HEARTBEAT_IVL) == 0
        with zmtp.plain(address, 10.0):
            until = Deadline(10.0)
            while timers(zmtp.address(address)[1]) != [KEEPALIVE]:
                assert not until.over, timers(zmtp.address(address)[1])
