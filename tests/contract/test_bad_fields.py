"""Every field of every message wrong in every way, told to each process that listens.

Each is refused with a sentence that names the field, and counted; the next good message is served.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import zmq
from lmkv.controller.server import Server
from lmkv.core import wire
from lmkv.core.config import ControllerConfig, load
from lmkv.core.messages import (
    Announce,
    Attach,
    Heartbeat,
    HeartbeatOk,
    Locate,
    Located,
    Lookup,
    Message,
    Peer,
    PeerInfo,
    Ping,
    Pong,
    Pull,
    Pulled,
    PullResult,
    Refused,
    Register,
    Retract,
    Status,
    StatusInfo,
    Stored,
    SyncSlice,
    Touched,
    Welcome,
    WorkerState,
)

from tests.bad_fields import KINDS, tag, wrong
from tests.contract.mover_instance import Instance
from tests.fake_links import CONTROLLER, QUERY, World
from tests.golden.make_wire import example
from tests.stub_instance import StubInstance
from tests.unit.test_control import Side

DEADLINE_MS = 60_000
WRONG = [(tag(kind), field, frame) for kind in KINDS for field, frame in wrong(kind)]

# A message's arrays, and one of each way in which they may be torn.
KEYS, PLACES, COUNTERS, RESULTS = 16, 8, 4, 1


def torn(*sizes: int) -> Iterator[list[bytes]]:
    whole = [bytes(2 * size) for size in sizes]
    yield whole[:-1]
    yield [*whole, whole[-1]]  # a frame twice
    yield [whole[0], *whole]
    for n, size in enumerate(sizes):
        if size > 1:  # of u8 every length is whole
            yield [*whole[:n], bytes(2 * size - 1), *whole[n + 1 :]]
        if len(sizes) > 1:
            yield [*whole[:n], bytes(3 * size), *whole[n + 1 :]]
    yield []


@pytest.mark.parametrize("kind", KINDS, ids=tag)
def test_the_sentence_names_the_field(kind: type[Message]) -> None:
    for field, frame in wrong(kind):
        with pytest.raises(wire.WireError, match=field) as refused:
            wire.decode([frame])
        assert refused.value.name == tag(kind)
        assert "\n" not in str(refused.value) and len(str(refused.value)) < 400


def test_a_field_that_stands_twice_counts_once() -> None:
    """MessagePack has no rule for it: what the last one says is what all that follows checks."""
    [frame] = wire.encode(Ping(1))
    assert frame[0] == 0x82  # a map of two: type, request
    again = b"\x83" + frame[1:] + b"\xa7request"
    assert wire.decode([again + b"\x02"])[0] == Ping(2)
    with pytest.raises(wire.WireError, match="request"):
        wire.decode([again + b"\xff"])


# ------------------------------------------------------------------ the controller


class Client:
    def __init__(self, address: str) -> None:
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.connect(address)

    def ask(self, *frames: bytes) -> Message:
        self.socket.send_multipart(frames)
        assert self.socket.poll(DEADLINE_MS), "no answer"
        return wire.decode(self.socket.recv_multipart())[0]


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(load(ControllerConfig, {"port": 0, "dead_after_beats": 1000}))
    stop = threading.Event()
    thread = threading.Thread(target=server.serve, args=(stop.is_set,))
    thread.start()
    yield server
    stop.set()
    thread.join()
    server.close()


def test_a_mistake_of_the_controllers_own_costs_an_answer_and_not_the_controller(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(server, "_say", told.append)

    def mistaken(*_: object) -> None:
        raise OverflowError("too large to encode")

    client = Client(server.state_address)
    question = wire.encode(Status(7))
    with monkeypatch.context() as patched:
        patched.setattr("lmkv.controller.views.ask", mistaken)
        for _ in range(2):
            said = client.ask(*question)
            assert isinstance(said, Refused)
            assert (said.code, said.request) == ("failed", 7)
            assert said.message == "OverflowError while answering: too large to encode"
    assert isinstance(client.ask(*question), StatusInfo)
    assert server.failures == 2
    [sentence] = told  # with where it was
    assert "in mistaken" in sentence


@pytest.mark.parametrize("socket", ["state", "query"])
def test_a_controller(server: Server, socket: str) -> None:
    client = Client(getattr(server, f"{socket}_address"))
    good, us = Client(server.state_address), StubInstance("good")
    assert isinstance(good.ask(*wire.encode(us.registration)), Welcome)
    for name, field, frame in WRONG:
        said = client.ask(frame)
        assert isinstance(said, Refused) and said.code == "field", (name, field, said)
        assert name in said.message and field in said.message, (name, field, said)
    assert server.registry.bad_messages == len(WRONG)
    beat, _ = us.heartbeat()
    assert isinstance(good.ask(*wire.encode(beat)), HeartbeatOk)
    for each in (client, good):
        each.socket.close()


def test_a_controller_hears_torn_arrays_of_a_registered_instance(server: Server) -> None:
    us = StubInstance("good")
    client, query = Client(server.state_address), Client(server.query_address)
    client.ask(*wire.encode(us.registration))
    epoch = us.epoch
    told: list[tuple[Client, Callable[[], Message], tuple[int, ...]]] = [
        (client, lambda: Announce(epoch, us.number()), (KEYS, PLACES, COUNTERS)),
        (client, lambda: Retract(epoch, us.number()), (KEYS, PLACES, COUNTERS)),
        (client, lambda: SyncSlice(epoch, us.number(), 0, 0, 64), (KEYS, PLACES, COUNTERS)),
        (client, lambda: Lookup(1), (KEYS,)),
        (query, lambda: Locate(1, "default", "good", epoch), (KEYS,)),
    ]
    count = 0
    for who, message, sizes in told:
        for arrays in torn(*sizes):
            if isinstance(message(), Lookup) and len(arrays) == 0:
                continue  # tokens may stand for keys
            said = who.ask(*wire.encode(message(), *arrays))
            assert isinstance(said, Refused) and said.code == "field", (message(), arrays, said)
            count += 1
    assert server.registry.bad_messages == count
    beat, _ = us.heartbeat()
    assert isinstance(client.ask(*wire.encode(beat)), HeartbeatOk)
    client.socket.close()
    query.socket.close()


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("rank", 3, "rank: [3] are not 0 .. 0"),
        ("granule_bytes", 1000, "granule_bytes: 1000 is not a multiple of 4096"),
        ("granule_bytes", 0, "granule_bytes: 0 is not"),
        ("granules", 17, "granules: 17 is not a multiple of 16"),
        ("granules", 0, "granules: 0 is not"),
        ("segment_granules", 0, "segment_granules: 0 is not"),
        ("segment_granules", 100, "segment_granules: 100 is not"),
        ("usable_segments", 9, "usable_segments: 9, the pool has 8"),
        ("pool_address", (1 << 64) - 4096, "pool_address: 0xfffffffffffff000 is too high"),
    ],
)
def test_ranks_that_contradict_themselves(
    server: Server, field: str, value: int, named: str
) -> None:
    """Whoever registers them is refused; whoever hears of them avoids that peer."""
    us = StubInstance("liar")
    [rank] = us.registration.ranks
    rank.granule_bytes, rank.granules, rank.segment_granules = 4096, 128, 16
    rank.usable_segments, rank.pool_address = 8, 1 << 44
    client = Client(server.state_address)
    assert isinstance(client.ask(*wire.encode(us.registration)), Welcome)
    setattr(rank, field, value)
    client.socket.close()
    client = Client(server.state_address)
    said = client.ask(*wire.encode(us.registration))
    client.socket.close()
    assert isinstance(said, Refused) and said.field == "ranks" and named in said.message

    world = World()
    prompt = world.prompt(2)
    world.begin("a", prompt)
    world.located(2)
    assert world.match("a", prompt) is None
    state = world.at(CONTROLLER, 1)
    asked, _ = state.last(Peer)
    state.say(PeerInfo(asked.request, "peer", 9, 0, [rank]))
    assert world.match("a", prompt) == 0
    assert world.agent.stats.take()["alarms"] == {"peer": 1}
    assert world.agent.locator.avoids("peer")
    assert not world.at("ipc://mover0").of(Pull)


# ------------------------------------------------------------------ the agent


def test_an_agent() -> None:
    world = World()
    prompt = world.prompt(2)
    world.begin("a", prompt)
    world.match("a", prompt)
    links = [world.at(CONTROLLER), world.at(QUERY), world.at("ipc://worker0")]
    for link in links:
        for _, _, frame in WRONG:
            link.say_raw(frame)
    world.turn()
    world.match("a", prompt)
    assert world.agent.stats.take()["alarms"] == {"message": len(links) * len(WRONG)}
    world.located(2)
    assert world.match("a", prompt) is None
    world.peer_info()
    assert world.match("a", prompt) is None
    mover = world.at("ipc://mover0")
    for _, _, frame in WRONG:
        mover.say_raw(frame)
    world.pulled([PullResult.GOOD] * 2)
    assert world.match("a", prompt) == 8
    assert world.agent.stats.take()["alarms"] == {"message": len(WRONG)}


def test_an_agent_hears_torn_arrays() -> None:
    """Of its controller, its mover and its worker."""
    for arrays in torn(PLACES, COUNTERS):
        world = World()
        prompt = world.prompt(2)
        world.begin("a", prompt)
        query = world.at(QUERY)
        asked, _ = query.last(Locate)
        good = example(Located, full=False)
        good.request = asked.request
        query.say(good, *arrays)
        assert world.match("a", prompt) == 0
        assert world.agent.stats.take()["alarms"] == {"message": 1}
    world = World()
    touched = list(torn(KEYS, PLACES, COUNTERS, 4))
    for arrays in touched:
        world.at(CONTROLLER).say(Touched(world.agent.epoch), *arrays)
    world.turn()
    assert world.agent.stats.take()["alarms"] == {"message": len(touched)}


@pytest.mark.parametrize("results", [b"", b"\0", b"\0\0\0", b"\0\x07", b"\xff\0"])
def test_an_agent_hears_results_that_are_none(results: bytes) -> None:
    world = World()
    prompt = world.prompt(2)
    world.begin("a", prompt)
    world.located(2)
    world.match("a", prompt)
    world.peer_info()
    world.match("a", prompt)
    job = world.pull()[0].job
    world.at("ipc://mover0").say(Pulled(0, job), results)
    assert world.match("a", prompt) == 0
    taken = world.agent.stats.take()
    assert taken["alarms"] == {"message": 1}
    assert world.granules("reserved") == 0
    step = [("a", *world.agent.plan("a", prompt, 4), [range(9)])]
    world.agent.allocated("a", [], 0)
    (store,) = world.agent.step(step, []).stores
    frames = (bytes(8), bytes(4), results) if len(results) != 1 else (results,)
    world.at("ipc://worker0").say(Stored(0, store.job), *frames)
    world.turn()
    assert world.agent.stats.take()["alarms"] == {"message": 1}
    assert world.agent.table.lookup(store.key) == 0


@pytest.mark.parametrize(
    ("runs", "named"),
    [
        ([(0, 2, 5, 0)], "runs: peer 5 of 1"),
        ([(0, 2, 0, 1)], "runs: offset 1 + 2 of 2 places"),
        ([(0, 0xFFFFFFFF, 0, 0)], "runs: offset 0 + 4294967295 of 2 places"),
        ([(0xFFFFFFFF, 2, 0, 0)], "runs: keys 4294967295 .. 4294967296 of 2"),
        ([(1, 2, 0, 0)], "runs: keys 1 .. 2 of 2"),
        ([(0, 2, 0, 0), (1, 1, 0, 0)], "runs: key 1 stands in two of them"),
        ([(1, 1, 0, 0), (0, 2, 0, 0)], "runs: key 1 stands in two of them"),
    ],
)
def test_runs_that_cannot_be(
    runs: list[tuple[int, int, int, int]], named: str, caplog: pytest.LogCaptureFixture
) -> None:
    from lmkv.core.messages import PeerRef, Run

    world = World()
    prompt = world.prompt(2)
    world.begin("a", prompt)
    query = world.at(QUERY)
    asked, _ = query.last(Locate)
    located = Located(asked.request, 77, 2, [Run(*run) for run in runs], [], [PeerRef("p", 1, 0)])
    query.say(located, bytes(16), bytes(8))
    assert world.match("a", prompt) == 0
    assert world.agent.stats.take()["alarms"] == {"message": 1}
    assert named in caplog.text
    world.begin("b", prompt)  # the next answer is served
    world.located(0)
    assert world.match("b", prompt) == 0


@pytest.mark.parametrize(
    "welcome",
    [Welcome(2, "c", 1, 7551), Welcome(1, "c", 1, 7551, heartbeat=0.0),
     Welcome(1, "c", 1, 7551, heartbeat=1e6)],
)  # fmt: skip
def test_a_welcome_under_which_nothing_can_go_on(welcome: Welcome) -> None:
    world = World(controller=False)
    world.at(CONTROLLER).say(welcome)
    world.turn()
    assert not world.agent.background.ready
    assert world.agent.stats.take()["alarms"] == {"message": 1}
    world.welcome()
    world.turn()
    assert world.agent.background.ready
    assert world.at(CONTROLLER).of(Register)
    assert not world.at(CONTROLLER).of(Heartbeat)[1:]


# ------------------------------------------------------------------ worker and mover


def test_a_worker(run_dir: str) -> None:
    side = Side(run_dir)
    try:
        with side.agent() as agent:
            for _, _, frame in WRONG:
                agent.send_multipart([frame])
            agent.send_multipart(wire.encode(Attach("a", 5)))
            assert agent.poll(DEADLINE_MS)
            state = wire.decode(agent.recv_multipart())[0]
            assert isinstance(state, WorkerState) and state.epoch == 5
            assert side.control.refused == len(WRONG)
    finally:
        side.close()


def test_a_mover(run_dir: str) -> None:
    with Instance("a", run_dir) as instance:
        for name, field, frame in WRONG:
            instance.agent.send_multipart([frame])
            said, _ = instance.receive()
            assert isinstance(said, Refused), (name, field, said)
            assert name in said.message and field in said.message
        peer = instance.peer()
        for number, arrays in enumerate(torn(KEYS, PLACES, COUNTERS, PLACES, COUNTERS)):
            instance.send(Pull(number, peer, 1.0, 1), *arrays)
            said, _ = instance.receive()
            assert isinstance(said, Refused) and "frame" in said.message
        instance.send(Ping(7))
        assert instance.receive()[0] == Pong(7)
        assert instance.deaths() == 0
