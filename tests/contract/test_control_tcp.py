"""Control sockets over TCP, for ranks on several hosts: a real worker and mover at other loopback
addresses, with keys and without."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import zmq
from lmkv.agent.links import Link
from lmkv.core import config, keyfiles, wire
from lmkv.core.keyfiles import BadKeys, ClientKeys
from lmkv.core.messages import Attach, Ping, Pong, WorkerState
from lmkv.core.rank_sockets import agent_keys, place

from tests import zmtp
from tests.contract.test_worker import DEADLINE, EPOCH, Rank, chunk

HOST = "127.0.0.2"


def settings(**given: object) -> config.InstanceConfig:
    return config.load(config.InstanceConfig, given)


class TcpRank(Rank):
    """Its agent has `given` keys."""

    def __init__(self, run_dir: str, given: ClientKeys | None, **inline: object) -> None:
        super().__init__("a", run_dir, 1, **{"control_interface": HOST, **inline})
        self.agent.close()
        self.agent = Link(self.hello["control"], given, short=False).socket


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    keyfiles.make(tmp_path / "keys")
    return tmp_path / "keys"


@pytest.fixture
def rank(run_dir: str, keys: Path) -> Iterator[TcpRank]:
    given = agent_keys(place(settings(control_interface=HOST, keys=str(keys))))
    running = TcpRank(run_dir, given, keys=str(keys))
    yield running
    running.close()


def answers(address: str, given: ClientKeys | None, seconds: float) -> bool:
    """Whether a mover answers."""
    link = Link(address, given, short=False)
    try:
        if not link.socket.poll(int(1000 * seconds), zmq.POLLOUT):
            return False
        assert link.send(Ping(7))
        assert link.socket.poll(int(1000 * DEADLINE)), "it let us in, and says nothing"
        return wire.decode(link.socket.recv_multipart())[0] == Pong(7)
    finally:
        link.close()


def test_a_worker_and_its_mover_by_tcp(rank: TcpRank, keys: Path) -> None:
    state = rank.ready()
    assert rank.hello["control"].startswith(f"tcp://{HOST}:")
    assert state.mover_socket.startswith(f"tcp://{HOST}:")
    assert state.mover_socket != rank.hello["control"]
    rank.save(1, [0, 1])
    assert rank.load(chunk(1, [2, 3])).good == 1
    data = keyfiles.read_pair(keys, "data")
    assert answers(state.mover_socket, ClientKeys(*data, data.public), DEADLINE)
    client, other = keyfiles.read_pair(keys, "client"), keyfiles.new_pair()
    for given in (None, ClientKeys(*client, data.public), ClientKeys(*other, data.public)):
        assert not answers(state.mover_socket, given, 0.5)
        link = Link(rank.hello["control"], given, short=False)
        assert not link.socket.poll(500, zmq.POLLOUT)
        link.close()
    assert answers(state.mover_socket, ClientKeys(*data, data.public), DEADLINE)


def test_a_mover_that_dies_has_a_new_address(rank: TcpRank) -> None:
    before = rank.ready()
    rank.worker.supervisor.replace(before.mover_generation)
    after = rank.state(lambda s: s.mover_socket not in ("", before.mover_socket))
    assert after.mover_socket.startswith(f"tcp://{HOST}:")


def test_strangers_cost_nothing(rank: TcpRank) -> None:
    """Half a handshake, rubbish, a GiB: the agent goes on."""
    state = rank.ready()
    for address in (rank.hello["control"], state.mover_socket):
        with zmtp.connect(address, DEADLINE) as plain, zmtp.connect(address, DEADLINE) as other:
            with suppress(ConnectionError):  # it may have closed already
                plain.sendall(b"rubbish" * 1000)
                other.sendall(zmtp.header(1 << 30))
            assert zmtp.closed(plain) and zmtp.closed(other)
    rank.save(1, [0, 1])


def test_without_keys_on_loopback(run_dir: str) -> None:
    running = TcpRank(run_dir, None)
    try:
        assert running.ready().mover_socket.startswith(f"tcp://{HOST}:")
        with zmtp.connect(running.hello["control"], DEADLINE) as raw:
            raw.sendall(zmtp.header(1 << 30))
            assert zmtp.closed(raw)
        running.save(1, [0, 1])
    finally:
        running.close()


def test_what_is_allowed(keys: Path) -> None:
    assert place(settings()) is None
    lo = place(settings(control_interface="lo"))
    assert lo is not None and (lo.host, lo.pair) == ("127.0.0.1", None)
    with pytest.raises(ValueError, match=r"control_interface = '192.0.2.1' .*name keys, or say in"):
        place(settings(control_interface="192.0.2.1"))
    open_ = place(settings(control_interface="192.0.2.1", insecure=True))
    assert open_ is not None and open_.pair is None
    locked = place(settings(control_interface="192.0.2.1", keys=str(keys)))
    assert locked is not None and locked.pair == keyfiles.read_pair(keys, "data")
    with pytest.raises(ValueError, match=r"'nowhere0' .*has no address"):
        place(settings(control_interface="nowhere0"))
    (keys / "data.key").chmod(0o644)
    with pytest.raises(BadKeys, match="mode is 0644"):
        place(settings(control_interface=HOST, keys=str(keys)))


def test_states_say_where_the_mover_is(rank: TcpRank) -> None:
    state = rank.ready()
    assert isinstance(state, WorkerState)
    again = Attach("a", EPOCH + 1)
    rank.send(again)
    assert rank.state(lambda s: s.epoch == EPOCH + 1).mover_socket == state.mover_socket
