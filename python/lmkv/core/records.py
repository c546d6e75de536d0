"""What the system's resolver has for a name."""

from __future__ import annotations

import socket


def records(name: str, port: int) -> list[str]:
    """All records of `name`, sorted, as addresses. OSError or UnicodeError: there is none."""
    found = socket.getaddrinfo(name.strip("[]"), port, type=socket.SOCK_STREAM)
    hosts = {str(where[0]) for *_, where in found}
    return sorted(
        f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}" for host in hosts
    )
