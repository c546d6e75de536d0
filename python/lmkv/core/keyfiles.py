"""Keys in a folder: make(folder) once on one machine, then each process reads what it needs.

    server.key  server.pub   the controllers' pair, and its public half for their clients
    client.key               of instances and the CLI
    data.key                 by which agents, workers and movers of one cluster know each other
    clients                  `NAME KEY`, a line each: whom controllers let in
    tokens                   of HTTP (`tokens.py`)

A `.key` file holds the lines `public: KEY` and `secret: KEY`; keys are CURVE's, 40 characters of
Z85. The folder is 0700 and all but `server.pub` is 0600: what others can read is refused. Whatever
is wrong is a `BadKeys` whose sentence names the file.
"""

from __future__ import annotations

import hmac
import os
import re
import stat
from pathlib import Path
from typing import Any, NamedTuple

import zmq
from zmq.utils import z85

SERVER, CLIENT, DATA = "server", "client", "data"
CLIENTS, TOKENS = "clients", "tokens"
MOST_BYTES = 1 << 20  # of a file
LINE = re.compile(r"([A-Za-z0-9._-]{1,200}) (\S{40})")


class BadKeys(ValueError):
    """Keys that cannot be had, or that others could have; the text is one sentence."""


class Pair(NamedTuple):
    public: bytes
    secret: bytes


class ClientKeys(NamedTuple):
    """What a client needs: its own pair, and whom it expects."""

    public: bytes
    secret: bytes
    server: bytes


def new_pair() -> Pair:
    return Pair(*zmq.curve_keypair())


def derived(pair: Pair, name: str) -> Pair:
    """A further pair, which whoever has `pair` can make too, and which does not betray it."""
    seed = hmac.digest(pair.secret, b"lmkv 1 " + name.encode(), "sha256")
    secret = z85.encode(seed)
    return Pair(zmq.curve_public(secret), secret)


# ---------------------------------------------------------------- files


def read_private(path: Path) -> str:
    """A file that nobody but its owner, this user or root, can read."""
    found, text = _read(path)
    if found.st_uid not in (os.getuid(), 0):
        raise BadKeys(f"{path}: belongs to uid {found.st_uid}, must be {os.getuid()} or 0")
    if found.st_mode & 0o077:
        mode = found.st_mode & 0o777
        raise BadKeys(f"{path}: mode is {mode:04o}, others can use it; must be 0600 (chmod 600)")
    return _text(path, text)


def _read(path: Path) -> tuple[os.stat_result, bytes]:
    """Never waits, as for who writes into a pipe."""
    try:
        with open(path, "rb", opener=_at_once) as file:
            found = os.fstat(file.fileno())
            regular = stat.S_ISREG(found.st_mode)
            text = file.read(MOST_BYTES + 1) if regular else b""
    except OSError as error:
        raise BadKeys(f"{path}: {error.strerror}") from None
    if not regular:
        raise BadKeys(f"{path}: must be a file")
    return found, text


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _text(path: Path, raw: bytes) -> str:
    if len(raw) > MOST_BYTES:
        raise BadKeys(f"{path}: is longer than {MOST_BYTES} bytes")
    try:
        return raw.decode("ascii")
    except UnicodeDecodeError:
        raise BadKeys(f"{path}: is not ASCII text") from None


def write_new(path: Path, text: str, mode: int = 0o600) -> None:
    """Never over another one."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with open(descriptor, "w", encoding="ascii") as file:
            os.fchmod(descriptor, mode)
            file.write(text)
    except OSError as error:
        raise BadKeys(f"{path}: {error.strerror}; nothing is overwritten") from None


def append_private(path: Path, line: str) -> None:
    """One line more, to a file that is made where there is none. Its last line may lack an end."""
    there = read_private(path) if path.exists() else ""
    end = "\n" if there and not there.endswith("\n") else ""
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o600)
        with open(descriptor, "a", encoding="ascii") as file:
            file.write(end + line + "\n")
    except OSError as error:
        raise BadKeys(f"{path}: {error.strerror}") from None


def _new_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        raise BadKeys(f"{folder}: {error.strerror}") from None
    if found.st_uid != os.getuid():  # who could put another file in the place of one
        raise BadKeys(f"{folder}: belongs to uid {found.st_uid}, must be {os.getuid()}")
    if found.st_mode & 0o077:
        raise BadKeys(f"{folder}: mode is {found.st_mode & 0o777:04o}, must be 0700 (chmod 700)")


def _key(path: Path, text: str) -> bytes:
    try:
        key = text.encode("ascii")
        zmq.curve_public(key)  # Z85 of 32 bytes
    except (ValueError, zmq.ZMQError):
        raise BadKeys(f"{path}: allowed are keys of 40 characters, as lmkv keys writes") from None
    return key


# ---------------------------------------------------------------- making


def make(folder: Path) -> list[Path]:
    """All of a cluster's keys, in `folder`; what was written."""
    _new_folder(folder)
    names = [f"{name}.key" for name in (SERVER, CLIENT, DATA)]
    names += [f"{SERVER}.pub", CLIENTS]
    for name in names:  # before anything is written
        if (folder / name).exists():
            raise BadKeys(f"{folder / name}: is there already; nothing is overwritten")
    server, client = new_pair(), new_pair()
    write_pair(folder, SERVER, server)
    write_pair(folder, CLIENT, client)
    write_pair(folder, DATA, new_pair())
    write_new(folder / f"{SERVER}.pub", server.public.decode() + "\n", 0o644)
    write_new(folder / CLIENTS, f"{CLIENT} {client.public.decode()}\n")
    return [folder / name for name in names]


def make_client(folder: Path, name: str, into: Path, data: bool) -> list[Path]:
    """A further client of the controllers whose keys `folder` has, in a folder of its own, with
    the data key if it is to be an instance."""
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,200}", name):
        raise BadKeys(f"name = {name!r}: allowed are 1 to 200 letters, digits, '.', '_' or '-'")
    if name in read_clients(folder).values():
        raise BadKeys(f"name = {name!r}: {folder / CLIENTS} has a client of that name")
    server, pair = read_public(folder), new_pair()
    shared = read_pair(folder, DATA) if data else None
    _new_folder(into)
    names = [f"{CLIENT}.key", f"{SERVER}.pub"] + ([f"{DATA}.key"] if data else [])
    write_pair(into, CLIENT, pair)
    write_new(into / f"{SERVER}.pub", server.decode() + "\n", 0o644)
    if shared is not None:
        write_pair(into, DATA, shared)
    append_private(folder / CLIENTS, f"{name} {pair.public.decode()}")
    return [into / name for name in names]


def write_pair(folder: Path, name: str, pair: Pair) -> None:
    text = f"public: {pair.public.decode()}\nsecret: {pair.secret.decode()}\n"
    write_new(folder / f"{name}.key", text)


# ---------------------------------------------------------------- reading


def read_pair(folder: Path, name: str) -> Pair:
    path = folder / f"{name}.key"
    lines = read_private(path).split("\n")
    found = dict(line.split(": ", 1) for line in lines if ": " in line)
    if set(found) != {"public", "secret"}:
        raise BadKeys(f"{path}: allowed are the lines public: KEY and secret: KEY")
    pair = Pair(_key(path, found["public"]), _key(path, found["secret"]))
    if zmq.curve_public(pair.secret) != pair.public:
        raise BadKeys(f"{path}: its public key does not belong to its secret one")
    return pair


def read_public(folder: Path) -> bytes:
    """The controllers'."""
    path = folder / f"{SERVER}.pub"
    return _key(path, _text(path, _read(path)[1]).strip())


def read_client(folder: Path) -> ClientKeys:
    return ClientKeys(*read_pair(folder, CLIENT), read_public(folder))


def read_clients(folder: Path) -> dict[bytes, str]:
    """Names by public key. Empty lines and `#` lines are passed over."""
    path = folder / CLIENTS
    found: dict[bytes, str] = {}
    for number, line in enumerate(read_private(path).splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        parts = LINE.fullmatch(line.strip())
        if parts is None:
            raise BadKeys(f"{path}, line {number}: allowed is NAME KEY")
        found[_key(path, parts[2])] = parts[1]
    return found


def client_keys(folder: str) -> ClientKeys | None:
    """Of the setting `keys`; None where it is empty."""
    return read_client(Path(folder)) if folder else None


# ---------------------------------------------------------------- sockets


def as_client(socket: zmq.Socket[Any], keys: ClientKeys | None) -> None:
    if keys is not None:
        socket.setsockopt(zmq.CURVE_SERVERKEY, keys.server)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)


def as_server(socket: zmq.Socket[Any], pair: Pair | None) -> None:
    """Whoever connects is let in by the context's `Doorman` alone."""
    if pair is not None:
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, pair.secret)
        socket.setsockopt(zmq.ZAP_DOMAIN, b"lmkv")
