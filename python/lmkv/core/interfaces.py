"""Where a network interface is, and what it is made for."""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
from pathlib import Path

SIOCGIFADDR = 0x8915
SYSTEM = Path("/sys/class")


def address_of(interface: str) -> str:
    """Its IPv4 address; an address is its own. OSError where there is none."""
    try:
        return str(ipaddress.ip_address(interface.strip("[]")))
    except ValueError:
        pass
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("256s", interface.encode()[:15])
        return socket.inet_ntoa(fcntl.ioctl(probe, SIOCGIFADDR, request)[20:24])


def is_rdma(name: str, system: Path = SYSTEM) -> bool:
    """Whether this is what UCX calls a port of an RDMA card, `mlx5_0:1`, which has no address."""
    return _port(name, system).is_dir()


def link_rate(interfaces: str, system: Path = SYSTEM) -> float | None:
    """Bytes a second of the fastest of these (`eth0,mlx5_0:1`), as the system says; None: it does
    not, as of `lo`."""
    rates = [_rate(name, system) for name in interfaces.split(",")]
    return max((rate for rate in rates if rate), default=None)


def _port(name: str, system: Path) -> Path:
    device, _, port = name.partition(":")
    return system / "infiniband" / device / "ports" / (port or "1")


def _rate(name: str, system: Path) -> float | None:
    try:
        if is_rdma(name, system):
            return float((_port(name, system) / "rate").read_text().split()[0]) * 1e9 / 8  # Gb/sec
        megabits = float((system / "net" / name / "speed").read_text())
        return megabits * 1e6 / 8 if megabits > 0 else None
    except (OSError, ValueError, IndexError):
        return None
