"""Whatever arrives is a message or a WireError, and a controller answers it and goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lmkv.controller.server import Server
from lmkv.core.clock import ManualClock
from lmkv.core.config import ControllerConfig, load
from lmkv.core.messages import Heartbeat, HeartbeatOk, Message
from lmkv.core.wire import WireError, counts, decode, encode

from tests.golden.make_wire import KINDS, PATH, example, tag
from tests.stub_instance import StubInstance

FRAMES = [bytes.fromhex(vector["frame"]) for vector in json.loads(PATH.read_text())]
BODIES = [msgspec.msgpack.decode(frame) for frame in FRAMES]

values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=9)
    | st.binary(max_size=40),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4)
    ),
    max_leaves=8,
)  # fmt: skip


@st.composite
def cut(draw: st.DrawFn) -> bytes:
    """A real frame, cut short, with a byte changed or some put in."""
    frame = bytearray(draw(st.sampled_from(FRAMES)))
    at = draw(st.integers(0, len(frame) - 1))
    frame[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=4))
    return bytes(frame[: draw(st.integers(0, len(frame)))] if draw(st.booleans()) else frame)


@st.composite
def twisted(draw: st.DrawFn) -> bytes:
    """A real message with a field at a value of any kind."""
    body = dict(draw(st.sampled_from(BODIES)))
    body[draw(st.sampled_from(sorted(body)))] = draw(values)
    return msgspec.msgpack.encode(body)


first_frames = st.binary(max_size=200) | cut() | twisted() | values.map(msgspec.msgpack.encode)
arrays = st.lists(
    st.binary(max_size=64) | st.integers(0, 4).map(lambda n: bytes(16 * n)), max_size=5
)


@given(first_frames, arrays)
@settings(max_examples=500, deadline=None)
def test_any_bytes_are_a_message_or_a_wire_error(frame: bytes, behind: list[bytes]) -> None:
    try:
        message, frames = decode([frame, *behind])
    except WireError:
        return
    assert isinstance(message, Message)
    assert frames == behind
    again = encode(message)  # what was understood can be said again
    assert msgspec.msgpack.encode(decode(again)[0]) == again[0]


sized = st.tuples(st.sampled_from([1, 4, 8, 16]), st.integers(0, 3), st.integers(-1, 1))


@given(st.lists(sized, max_size=4), st.integers(0, 4))
@settings(max_examples=300, deadline=None)
def test_counts_are_equal_or_a_wire_error(items: list[tuple[int, int, int]], expected: int) -> None:
    """Frames of n items each, some a byte too short or too long, one too few or too many."""
    frames = [bytes(max(0, size * n + more)) for size, n, more in items]
    sizes = [size for size, _, _ in items][:expected]
    fitting = len(sizes) == len(frames) and len({n for _, n, _ in items}) <= 1
    if fitting and all(len(f) == size * n for f, (size, n, _) in zip(frames, items)):
        assert counts(frames, *sizes) == (items[0][1] if items else 0)
        return
    try:
        number = counts(frames, *sizes)
    except WireError:
        return
    assert [len(frame) for frame in frames] == [number * size for size in sizes]


# ------------------------------------------------------------------ a controller hears it


class Heard:
    """A server whose sockets are not used: what it would send is kept."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.said: list[Message] = []

    def hear(self, connection: bytes, *frames: bytes) -> list[Message]:
        """Both sockets hear it; what they answered."""
        self.said.clear()
        for socket, answer in (
            (self.server._state, self.server._state_answer),
            (self.server._query, self.server._query_answer),
        ):
            self.server._guard(socket, [connection, *frames], answer)
        return list(self.said)


@pytest.fixture(scope="module")
def heard() -> Iterator[Heard]:
    server = Server(load(ControllerConfig, {"port": 0, "dead_after_beats": 1000}), ManualClock())
    heard = Heard(server)
    with pytest.MonkeyPatch.context() as patch:

        def keep(socket: object, connection: bytes, message: Message, *arrays: bytes) -> None:
            heard.said.append(decode(encode(message, *arrays))[0])

        patch.setattr("lmkv.controller.server.reply", keep)
        yield heard
    server.close()


def named(frame: bytes, epoch: int) -> bytes:
    """The message as if it came from the registered instance, where it can be read."""
    try:
        body = msgspec.msgpack.decode(frame)
    except Exception:  # it stays what it is
        return frame
    if isinstance(body, dict):
        body = {**body, **({"epoch": epoch} if "epoch" in body else {})}
        body = {**body, **({"instance": "victim"} if "instance" in body else {})}
        return msgspec.msgpack.encode(body)
    return frame


@given(first_frames, arrays, st.booleans())
@settings(max_examples=500, deadline=None)
def test_a_controller_answers_and_goes_on(
    heard: Heard, frame: bytes, behind: list[bytes], as_victim: bool
) -> None:
    """Whatever a stranger or a registered instance sends, a well-behaved one is served after it."""
    good, victim = StubInstance("good", 1), StubInstance("victim", 2)
    heard.hear(b"victim", *encode(victim.registration))
    heard.hear(b"victim" if as_victim else b"stranger", named(frame, 2) if as_victim else frame,
               *behind)  # fmt: skip
    heard.server.registry.tick()
    heard.server.registry.touched()
    heard.hear(b"good", *encode(good.registration))
    for message, frames in good.sync():
        heard.hear(b"good", *encode(message, *frames))
    beat, _ = good.heartbeat()
    assert isinstance(beat, Heartbeat)
    answers = heard.hear(b"good", *encode(beat))
    assert any(isinstance(answer, HeartbeatOk) and answer.seq == beat.seq for answer in answers)


@pytest.mark.parametrize("kind", KINDS, ids=tag)
def test_every_message_is_answered_or_taken(heard: Heard, kind: type[Message]) -> None:
    [frame] = encode(example(kind, full=True))
    heard.hear(b"victim", *encode(StubInstance("victim", 2).registration))
    for connection in (b"stranger", b"victim"):
        heard.hear(connection, named(frame, 2), bytes(16), bytes(8), bytes(4))
