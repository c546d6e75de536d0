"""Where a network interface is."""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct

SIOCGIFADDR = 0x8915


def address_of(interface: str) -> str:
    """Its IPv4 address; an address is its own. OSError where there is none."""
    try:
        return str(ipaddress.ip_address(interface.strip("[]")))
    except ValueError:
        pass
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("256s", interface.encode()[:15])
        return socket.inet_ntoa(fcntl.ioctl(probe, SIOCGIFADDR, request)[20:24])
