"""Descriptors: as many as are wanted, or as the system lets, and any of them can be waited for."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from lmkv.core.descriptors import allow_descriptors, readable
from lmkv.mover import probe
from lmkv.mover.transport import NixlError
from lmkv.sim.controllers import ControllerProcess
from lmkv.sim.room import A_SOCKET, OTHERS

FD_SETSIZE = 1024

LIMITED = """
import resource, os
from lmkv.core.descriptors import allow_descriptors
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 128))
os.setresuid(65534, 65534, 65534) if os.getuid() == 0 else None
print(allow_descriptors(100), allow_descriptors(50), allow_descriptors(1000), resource.getrlimit(7))
"""
TOO_MANY = """
import resource, os
from lmkv.sim.room import TooMany, make_room
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 4096))
os.setresuid(65534, 65534, 65534) if os.getuid() == 0 else None
make_room(100, 1)
try:
    make_room(1000, 3)
except TooMany as error:
    print(error)
try:
    make_room(10000, 16)
except TooMany as error:
    print(error)
"""


def said(code: str) -> list[str]:
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


def test_the_limit_is_raised_as_far_as_it_goes() -> None:
    assert said(LIMITED) == ["100 50 128 (128, 128)"]


def test_more_instances_than_there_are_descriptors_for_is_one_sentence() -> None:
    needed = (15_000 + OTHERS) * A_SOCKET
    first, second = said(TOO_MANY)
    assert first == (
        f"1000 instances at 3 controllers need {needed} open descriptors, and 4096 are allowed: "
        f"ulimit -n {needed}"
    )
    assert second.startswith(f"10000 instances at 16 controllers need {800_000 + OTHERS} sockets")


@pytest.fixture
def crowded() -> Iterator[None]:
    """What is opened now has a number that `select` has no room for."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allow_descriptors(2048) < 2048:
        pytest.skip("this system lets a process have fewer than 2,048 descriptors")
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, before)
        while (taken := os.open(os.devnull, os.O_RDONLY)) < FD_SETSIZE:
            stack.callback(os.close, taken)
        stack.callback(os.close, taken)
        yield


def test_a_descriptor_above_1023_is_waited_for(crowded: None) -> None:
    ours, theirs = os.pipe()
    assert ours > FD_SETSIZE
    assert not readable(ours, 0) and not readable(ours, -1)
    os.write(theirs, b"a")
    assert readable(ours, 20)
    assert os.read(ours, 9) == b"a"
    os.close(theirs)
    assert readable(ours, 20)
    os.close(ours)


def test_a_controller_of_a_simulation_is_heard(crowded: None) -> None:
    says = "echo lmkv: listening at tcp://h:1, queries at tcp://h:2 >&2; exec sleep 60"
    controller = ControllerProcess(before=["sh", "-c", says])
    controller.end()
    assert (controller.address, controller.query) == ("tcp://h:1", "tcp://h:2")


def test_the_process_that_is_read_from_is_heard(crowded: None) -> None:
    ours, theirs = os.pipe()
    os.write(theirs, b"warning\nheld 6162 ")
    os.write(theirs, b"7\n")
    assert probe._held(ours) == (b"ab", 7)
    os.close(theirs)
    with pytest.raises(NixlError, match="the process that is read from did not start"):
        probe._held(ours)
    os.close(ours)
