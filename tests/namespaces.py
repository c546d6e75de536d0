"""Two network namespaces with a wire between them: two hosts, for what binds to an interface."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from lmkv.core.clock import Deadline

CARRIER_DEADLINE = 10.0  # seconds


@dataclass
class Host:
    namespace: str
    interface: str
    address: str

    def command(self, *words: str) -> list[str]:
        return ["ip", "netns", "exec", self.namespace, *words]


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def _await_carrier(host: Host) -> None:
    """The kernel takes up to a second to say that a wire is there, and UCX takes no other one."""
    until = Deadline(CARRIER_DEADLINE)
    while "state UP" not in _ip("-n", host.namespace, "link", "show", host.interface):
        assert not until.over, f"{host.interface} has no carrier"
        time.sleep(0.01)


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Skips where this user may not make them."""
    if os.getuid() or shutil.which("ip") is None:
        pytest.skip("namespaces take root, and the command ip")
    tag = f"lmkv{os.getpid()}"
    hosts = [Host(f"{tag}{end}", f"w{end}", f"10.213.7.{n}") for n, end in ((1, "a"), (2, "b"))]
    made = []
    try:
        for host in hosts:
            try:
                _ip("netns", "add", host.namespace)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"no namespaces: {error.stderr.strip()}")
            made.append(host)
        a, b = hosts
        words = ["link", "add", a.interface, "netns", a.namespace, "type", "veth"]
        _ip(*words, "peer", "name", b.interface, "netns", b.namespace)
        for host in hosts:
            _ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", host.interface)
            _ip("-n", host.namespace, "link", "set", host.interface, "up")
            _ip("-n", host.namespace, "link", "set", "lo", "up")
        for host in hosts:
            _await_carrier(host)
        yield a, b
    finally:
        for host in made:
            _ip("netns", "delete", host.namespace)
