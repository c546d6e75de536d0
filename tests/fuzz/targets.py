"""What is fuzzed: each target takes bytes, and raises only where lmkv is wrong.

`TARGETS` by name; `SEEDS` are good inputs to begin with. Both hypothesis and atheris drive them.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import json
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import zmq
from lmkv import _native
from lmkv.agent.links import Link
from lmkv.controller.server import Server
from lmkv.core import config, keyfiles, tokens, wire
from lmkv.core.client import Client
from lmkv.core.messages import Status, StatusInfo

FRAMES = Path(__file__).resolve().parents[1] / "golden" / "wire.json"
DEADLINE = 60.0
MOST_CHARACTERS = 20_000
BATCH = 64  # messages, before a question shows that the controller has lived through them


def sentence(error: ValueError) -> None:
    """What people read of it is one line, and says nothing to a terminal."""
    text = str(error)
    assert text.isprintable() and 0 < len(text) < MOST_CHARACTERS, error


def refused_or_not(error: type[ValueError], call: Callable[..., object], *given: object) -> None:
    try:
        call(*given)
    except error as refused:
        sentence(refused)


# ---------------------------------------------------------------- frames


def split(data: bytes) -> list[bytes]:
    """Frames: the first byte says how many, and each begins with its share of 256ths."""
    if not data:
        return []
    count, rest = data[0] % 6, data[1:]
    frames = []
    for _ in range(count):
        length = len(rest[1:]) * rest[0] // 255 if rest else 0
        frames.append(rest[1 : 1 + length])
        rest = rest[1 + length :]
    return [*frames, rest]


def joined(frames: list[bytes]) -> bytes:
    """What `split` makes one frame of."""
    return bytes([0]) + b"".join(frames)


def wire_frames(data: bytes) -> None:
    frames = split(data)
    try:
        message, arrays = wire.decode(frames)
        wire.counts(arrays, *(16, 8, 4)[: len(arrays)])
    except wire.WireError as error:
        sentence(error)
        return
    again, behind = wire.decode(wire.encode(message, *arrays))
    assert repr(again) == repr(message) and behind == arrays


@functools.cache
def live() -> tuple[Server, dict[str, zmq.Socket[bytes]]]:
    server = Server(config.load(config.ControllerConfig, {"port": 0}))
    ended = threading.Event()
    thread = threading.Thread(target=server.serve, args=(ended.is_set,), daemon=True)
    thread.start()
    sockets = {}
    for name in ("state", "query"):
        sockets[name] = Link(getattr(server, f"{name}_address")).socket
        assert sockets[name].poll(int(1000 * DEADLINE), zmq.POLLOUT)

    def end() -> None:
        ended.set()
        thread.join()
        for each in sockets.values():
            each.close()
        server.close()

    atexit.register(end)
    return server, sockets


def sockets(data: bytes) -> None:
    """A controller in another thread: it answers somebody else afterwards."""
    server, open_ = live()
    frames = split(data) or [b""]
    for each in open_.values():
        assert each.poll(int(1000 * DEADLINE), zmq.POLLOUT), "it takes nothing more"
        each.send_multipart(frames, zmq.NOBLOCK)
        while each.poll(0):
            wire.decode(each.recv_multipart())
    sockets.sent += 1  # type: ignore[attr-defined]
    if sockets.sent % BATCH == 0:  # type: ignore[attr-defined]
        with Client(server.state_address, DEADLINE) as client:
            answer, _ = client.ask(Status(1))
            assert isinstance(answer, StatusInfo)


sockets.sent = 0  # type: ignore[attr-defined]

# ---------------------------------------------------------------- files


@functools.cache
def folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="lmkv-fuzz-"))


def written(data: bytes, name: str) -> Path:
    path = folder() / name
    path.write_bytes(data)
    path.chmod(0o600)
    return path


def config_files(data: bytes) -> None:
    path = str(written(data, "config.yaml"))
    for kind in config.KINDS:
        refused_or_not(config.ConfigError, config.read, kind, {"config": path}, {})


def key_files(data: bytes) -> None:
    for name, read in (
        ("clients", lambda: keyfiles.read_clients(folder())),
        ("client.key", lambda: keyfiles.read_pair(folder(), "client")),
        ("server.pub", lambda: keyfiles.read_public(folder())),
        ("tokens", lambda: tokens.read(folder() / "tokens")),
    ):
        written(data, name)
        refused_or_not(keyfiles.BadKeys, read)


# ---------------------------------------------------------------- slots

LAYOUT = _native.SlotLayout(5, 192, 1, 0xFEEDFACE)
KEY, GENERATION = b"sixteen-byte-key", (77 << 32) | 3
HEAD, PAYLOAD_AT = 112, 4096  # header and table; SLOT_FORMAT


@functools.cache
def slot() -> tuple[_native.Pool, ctypes.Array[ctypes.c_ubyte], bytes]:
    """A pool of one, its bytes, and what a good slot has in them."""
    pool = _native.Pool(LAYOUT.granule_bytes, 1, 1)
    pool.add_segment()
    room = (ctypes.c_ubyte * LAYOUT.used_bytes).from_address(pool.address)
    payload = bytes(range(256)) * 4
    _native.write_slot(pool.address, LAYOUT, KEY, GENERATION, payload[: LAYOUT.payload_bytes])
    return pool, room, bytes(room)


def slot_bytes(data: bytes) -> None:
    """The first bytes are header and table, the next ones payload."""
    pool, room, good = slot()
    head, payload = data[:HEAD], data[HEAD : HEAD + LAYOUT.payload_bytes]
    bad = head + good[len(head) : PAYLOAD_AT] + payload + good[PAYLOAD_AT + len(payload) :]
    room[:] = list(bad)
    found = _native.check_slot(pool.address, LAYOUT, KEY, GENERATION)
    assert (found == _native.SlotStatus.GOOD) == (_relied(bad) == _relied(good)), found
    assert _native.adopt_slot(pool.address, LAYOUT, KEY, GENERATION, GENERATION + 1) == found
    again = _native.check_slot(pool.address, LAYOUT, KEY, GENERATION + 1)
    assert (again == _native.SlotStatus.GOOD) == (found == _native.SlotStatus.GOOD)


def _relied(slot: bytes) -> bytes:
    """What a reader relies on."""
    return slot[:HEAD] + slot[PAYLOAD_AT : PAYLOAD_AT + LAYOUT.payload_bytes]


# ---------------------------------------------------------------- all

TARGETS: dict[str, Callable[[bytes], None]] = {
    "wire": wire_frames,
    "sockets": sockets,
    "config": config_files,
    "keys": key_files,
    "slots": slot_bytes,
}


def seeds(name: str) -> list[bytes]:
    """Good inputs, which the fuzzers change."""
    if name in ("wire", "sockets"):
        return [joined([bytes.fromhex(each["frame"])]) for each in json.loads(FRAMES.read_text())]
    if name == "config":
        examples = Path(__file__).resolve().parents[2] / "examples"
        return [path.read_bytes() for path in sorted(examples.glob("*.yaml"))]
    if name == "keys":
        one = keyfiles.new_pair()
        key = one.public
        return [
            b"public: " + key + b"\nsecret: " + one.secret + b"\n",
            b"# ours\nname " + key + b"\n",
            b"name read " + tokens.digest("t").encode() + b"\n",
        ]
    good = slot()[2]
    return [_relied(good), good[:HEAD], b""]
