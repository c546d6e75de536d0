"""Where NIXL is, whether it is one that lmkv was tested with, and that it does what it should.

find_library() -> check_ports() -> open_agents() -> self_test() -> check_listeners(). Each raises
`NixlError` with one sentence; the mover then runs without NIXL and says why in `MoverState.error`.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import socket
import struct
from pathlib import Path
from typing import NamedTuple

from lmkv import _native
from lmkv.core.interfaces import address_of, is_rdma

PACKAGES = ("nixl_cu13", "nixl_cu12")
INSTALL = "pip install 'lmkv[nixl]'"
# The C library has no version of its own, so the wheel's decides; versions tried: 1.5.1.
TESTED = ((1, 5, 1), (1, 6, 0))  # from, below
PORTS = 2  # a listener for each of the two agents
LISTEN = "0A"


class NixlError(RuntimeError):
    """NIXL cannot be used; the text is for people."""


class Library(NamedTuple):
    path: str
    package: str
    version: str


def find_library() -> Library:
    """The C library beside the NIXL package, which is looked for and never imported."""
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            continue
        site = Path(next(iter(spec.submodule_search_locations))).parent
        version = _version(site, package)
        low, high = TESTED
        if not low <= _numbers(version) < high:
            raise NixlError(
                f"{package} {version or 'of no known version'} is not tested with this lmkv; "
                f"{_text(low)} or newer and below {_text(high)} is: {INSTALL}"
            )
        for folder in (f".{package}.mesonpy.libs", f"{package}.libs", package):
            path = site / folder / "libnixl_capi.so"
            if path.exists():
                return Library(str(path), package, version)
        raise NixlError(f"{package} {version} at {site} has no libnixl_capi.so: {INSTALL}")
    raise NixlError(f"NIXL is not installed: {INSTALL}")


def _version(site: Path, package: str) -> str:
    # importlib.metadata would tell too, and take longer than all the rest of the mover's imports.
    for folder in site.glob(f"{package}-*.dist-info"):
        return folder.name[len(package) + 1 : -len(".dist-info")]
    return ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version)[:3])


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def check_ports(interface: str, ports: str) -> None:
    """UCX looks for a free port in `ports` (first-last) for ever when there is none: so look."""
    try:
        address = interface_address(interface)
    except NixlError:
        return  # UCX, which knows more kinds of interfaces, is the one to say so
    first, last = map(int, ports.split("-"))
    free = (port for port in range(first, last + 1) if _is_free(address, port))
    if len(list(itertools.islice(free, PORTS))) < PORTS:
        raise NixlError(
            f"data_ports = {ports!r}: at {address} fewer than {PORTS} of these ports are free"
        )


def _is_free(address: str, port: int) -> bool:
    with socket.socket() as probe:  # as UCX binds: without SO_REUSEADDR
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


class Agents(NamedTuple):
    """`serve` answers peers, posts nothing and is never reset; `pull` reads from them."""

    serve: _native.Transport
    pull: _native.Transport


def open_agents(library: Library, name: str) -> Agents:
    """`name` is this mover's alone, for ever: NIXL's agents are told apart by it."""
    try:
        serve = _native.Transport("nixl", f"{name}-serve", library.path, progress=True)
        return Agents(serve, _native.Transport("nixl", f"{name}-pull", library.path))
    except RuntimeError as error:
        raise NixlError(str(error)) from None


def self_test(agents: Agents, deadline: float = 2.0) -> None:
    """READ 64 bytes from oneself: the library does what lmkv's declarations of it say."""
    try:
        agents.pull.self_test(agents.serve, deadline)
    except RuntimeError as error:
        raise NixlError(f"NIXL's self-test: {error}") from None


def listeners() -> list[tuple[str, int]]:
    """Address and port of every TCP socket on which this process listens."""
    mine = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
        if target.startswith("socket:["):
            mine.add(target[8:-1])
    found = []
    for table in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except FileNotFoundError:  # a kernel without IPv6
            continue
        for fields in map(str.split, lines):
            if fields[3] == LISTEN and fields[9] in mine:
                address, port = fields[1].split(":")
                found.append((_address(address), int(port, 16)))
    return found


def _address(text: str) -> str:
    """/proc's address, words in the host's byte order, as people write it."""
    words = [text[i : i + 8] for i in range(0, len(text), 8)]
    raw = b"".join(struct.pack("=I", int(word, 16)) for word in words)
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)


def check_listeners(interface: str, own: tuple[str, int] | None = None) -> None:
    """UCX ignores a misspelt setting and then listens on every interface: so look. `own` is the
    control socket's."""
    allowed = {"127.0.0.1", "::1"}
    for name in interface.split(","):
        if name != "lo" and not is_rdma(name):
            allowed.add(interface_address(name))
    for address, port in listeners():
        if address not in allowed and (address, port) != own:
            raise NixlError(
                f"the mover listens on {address}:{port}, which is not an address of the "
                f"data interface {interface!r} ({', '.join(sorted(allowed))})"
            )


def interface_address(interface: str) -> str:
    """Its IPv4 address. Raises NixlError."""
    try:
        return address_of(interface)
    except OSError as error:
        raise NixlError(f"data_interface {interface!r} has no address: {error}") from None
